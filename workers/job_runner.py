"""What a worker does with a claimed job: prepare, tune or assemble, and how each attempt ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from scheduler.desk import Assignment, Cancelled, Desk, Done, Failed, Outcome, Publication, Returned
from scheduler.errors import LeaseLostError, RequestError
from scheduler.keys import BuildSpec
from scheduler.model_files import DigestCache, model_files
from scheduler.states import FailureKind, Kind
from storage.blobs import BlobStore, put_file, save_blob
from storage.records import Json
from workers import settings
from workers.check_engine import check_in_fresh_process
from workers.compiler import Compiler
from workers.exit_codes import ExitCode, exit_code_of
from workers.failures import (
    BuildCancelledError,
    InfrastructureError,
    ModelFailedError,
    sentence_of,
)
from workers.heartbeat import Heartbeat
from workers.interrupts import Interrupts

OnEvent = Callable[[str, Json], None]
FLUSH_EACH_S = 1.0


class JobRunner:
    """Runs claimed jobs one after the other in this thread."""

    def __init__(
        self,
        *,
        desk: Desk,
        blobs: BlobStore,
        compiler: Compiler,
        work: Path,
        digests: DigestCache,
        interrupts: Interrupts,
        on_event: OnEvent,
    ) -> None:
        self._desk = desk
        self._blobs = blobs
        self._compiler = compiler
        self._work = work
        self._digests = digests
        self._interrupts = interrupts
        self._on_event = on_event
        self.last_error: Exception | None = None

    def run(self, assignment: Assignment) -> None:
        """Do a job and end its attempt; only an interrupt leaves as an exception.

        Also raises when the desk itself fails: then the lease runs out and others go on.
        """
        steps = {Kind.PREPARE: self._prepare, Kind.TUNE: self._tune, Kind.ASSEMBLE: self._assemble}
        self._on_event("job_started", {"job": assignment.kind})
        heartbeat = Heartbeat(self._desk, assignment.lease)
        try:
            with heartbeat.running():
                outcome = steps[Kind(assignment.kind)](assignment, heartbeat)
                heartbeat.check()
        except KeyboardInterrupt:
            self._release(assignment, Returned())
            raise
        except LeaseLostError as error:
            self.last_error = error
            return
        except BuildCancelledError:
            outcome = Cancelled()
        except Exception as error:
            self.last_error = error
            outcome = _failure(error)
        if outcome is not None:
            self._release(assignment, outcome)

    def _release(self, assignment: Assignment, outcome: Outcome) -> None:
        """End the attempt, undisturbed; a lease that was lost meanwhile needs no end."""
        try:
            with self._interrupts.shielded():
                self._desk.release(assignment.lease, outcome)
        except LeaseLostError as error:
            self.last_error = error

    def _prepare(self, assignment: Assignment, heartbeat: Heartbeat) -> Outcome | None:
        """Import and fuse the model; keep the result as a blob."""
        model = self._checked_model(assignment)
        prepared = self._compiler.prepare(model, assignment.spec["options"])
        heartbeat.check()
        if isinstance(prepared.blob, Path):
            blob = put_file(self._blobs, prepared.blob)
        else:
            blob = self._blobs.put([prepared.blob])
        return Done(
            {
                "graph_digest": prepared.graph_digest,
                "prepared": blob.digest,
                "prepared_nbytes": blob.nbytes,
                "tasks": list(prepared.tasks),
            }
        )

    def _tune(self, assignment: Assignment, heartbeat: Heartbeat) -> Outcome | None:
        """Measure; records go to the desk each second, and at the end whatever happens."""
        pending: list[Json] = []
        progress: list[Json] = []
        flushed_at = time.monotonic()

        def report(fields: Json) -> None:
            self._on_event("progress", fields)
            progress[:] = [{"kind": "progress", "data": fields}]

        def flush() -> None:
            nonlocal flushed_at
            if pending or progress:
                with self._interrupts.shielded():
                    self._desk.record(assignment.lease, timings=pending, events=progress)
                    pending.clear()
                    progress.clear()
            flushed_at = time.monotonic()

        records = self._compiler.tune(
            self._prepared_path(assignment),
            assignment.payload["tasks"],
            assignment.known,
            report=report,
            should_stop=heartbeat.should_stop,
        )
        try:
            for record in records:
                pending.append(record)
                if time.monotonic() - flushed_at > FLUSH_EACH_S:
                    flush()
        finally:
            flush()
        return Done()

    def _assemble(self, assignment: Assignment, heartbeat: Heartbeat) -> Outcome | None:
        """Write the engine, check it in a fresh process, put it among the blobs and publish it."""
        prepared = self._prepared_path(assignment)
        output = prepared.with_name(f"engine.{os.getpid()}.{assignment.lease.token}")
        try:
            report = self._compiler.assemble(prepared, assignment.known, output)
            heartbeat.check()
            self._on_event("progress", {"checking": True})
            model, target = self._checked_model(assignment), assignment.spec["options"]["target"]
            report["check"] = check_in_fresh_process(output, model, target)
            heartbeat.check()
            blob = put_file(self._blobs, output)
        finally:
            output.unlink(missing_ok=True)
        with self._interrupts.shielded():
            self._desk.renew(assignment.lease)
            self._desk.publish(assignment.lease, Publication(blob.digest, blob.nbytes, report))
        return None

    def _checked_model(self, assignment: Assignment) -> Path:
        """The model's path, while its files are those that the key was computed from."""
        if assignment.model_path is None:
            raise InfrastructureError("the build names no model file on this machine")
        model = Path(assignment.model_path)
        try:
            found = model_files(model, self._digests)
        except FileNotFoundError as error:
            raise InfrastructureError(
                f"{model} is gone; put the model back and run the same command again"
            ) from error
        except RequestError as error:
            # The key was computed from files that were whole, so this says nothing about the model.
            raise InfrastructureError(f"{error}; run the same command again") from error
        spec = BuildSpec.from_json(assignment.spec)
        if sorted(found, key=lambda file: file.name) != list(spec.files):
            raise InfrastructureError(
                f"{model} was changed while it was being built; run the same command again"
            )
        return model

    def _prepared_path(self, assignment: Assignment) -> Path:
        """The prepared model as a file in the build's work folder."""
        digest = assignment.prepared["prepared"]
        path = self._work / assignment.build_id / f"prepared.{digest[:16]}"
        if not path.exists():
            save_blob(self._blobs, digest, path)
        return path


def _failure(error: Exception) -> Failed:
    """Whose fault an exception is, and what to tell about it."""
    known = (ModelFailedError, InfrastructureError)
    is_model = exit_code_of(error) is ExitCode.MODEL
    message = sentence_of(error)
    if exit_code_of(error) is ExitCode.UNEXPECTED and not isinstance(error, known):
        message = f"unexpected {type(error).__name__}: {message}"
    return Failed(
        kind=FailureKind.MODEL if is_model else FailureKind.INFRASTRUCTURE,
        error_class=type(error).__name__,
        message=message,
        version=settings.program_version(),
    )
