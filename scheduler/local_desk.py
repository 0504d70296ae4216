"""The desk in the process that holds the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from scheduler import steps
from scheduler.clock import Clock, NewId, random_id
from scheduler.desk import (
    Assignment,
    Cancelled,
    Done,
    Failed,
    Lease,
    Outcome,
    Publication,
    Standing,
    Worker,
)
from scheduler.errors import LeaseLostError, StateError
from scheduler.keys import BuildSpec
from scheduler.statements import Made, statement_of
from scheduler.states import AttemptState, Kind, State, is_terminal
from scheduler.steps import Policy
from scheduler.timings import digests_of, records_of, timing_of, timing_set_digest
from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import NotFoundError
from storage.records import Build, Engine, Job, Json, Timing
from storage.rows import Rows


class Signer(Protocol):
    """Signs statements."""

    def sign(self, statement: Json) -> bytes:
        """The signed envelope of a statement."""


class LocalDesk:
    """Claims, leases and publishes on a database and a blob store of this process."""

    def __init__(
        self,
        *,
        database: Database,
        blobs: BlobStore,
        signer: Signer,
        clock: Clock,
        new_id: NewId = random_id,
        policy: Policy | None = None,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._signer = signer
        self._clock = clock
        self._new_id = new_id
        self._policy = policy or Policy()

    def claim(self, worker: Worker, *, build_id: str | None = None) -> Assignment | None:
        """Lease the queued job that has waited longest to the worker."""
        at = self._clock.now()
        with self._database.transaction() as rows:
            job = rows.jobs.best_queued(device_classes=worker.device_classes, build_id=build_id)
            if job is None:
                return None
            job = rows.jobs.update(
                job.id,
                state=State.RUNNING,
                token=job.token + 1,
                lease_owner=worker.name,
                lease_until=at + self._policy.lease_s,
            )
            rows.jobs.begin_attempt(job_id=job.id, token=job.token, worker=worker.name, at=at)
            build = rows.builds.get(job.build_id)
            if build.state == State.QUEUED:
                build = rows.builds.update(
                    build.id, state=State.RUNNING, started_at=build.started_at or at
                )
            data = {"job": job.kind, "ordinal": job.ordinal, "worker": worker.name}
            rows.builds.append_event(build.id, at=at, kind="job_started", data=data)
            return self._assignment(rows, build, job)

    def renew(self, lease: Lease) -> Standing:
        """Prolong a lease; one that ran out may be renewed as long as nobody else took the job."""
        at = self._clock.now()
        with self._database.transaction() as rows:
            job = _held(rows, lease)
            until = at + self._policy.lease_s
            rows.jobs.update(job.id, lease_until=until)
            return Standing(until, rows.builds.get(job.build_id).cancel_requested)

    def record(
        self, lease: Lease, *, timings: Sequence[Json] = (), events: Sequence[Json] = ()
    ) -> None:
        """Keep measurements and events, all or none."""
        at = self._clock.now()
        with self._database.transaction() as rows:
            job = _held(rows, lease)
            if timings:
                spec = BuildSpec.from_json(rows.builds.get(job.build_id).spec)
                target, toolchain = digests_of(spec)
                rows.timings.keep(
                    timing_of(record, target_digest=target, toolchain_digest=toolchain, at=at)
                    for record in timings
                )
                # A job that gets on is not what kills its workers.
                rows.jobs.update(job.id, losses=0)
            for event in events:
                rows.builds.append_event(
                    job.build_id, at=at, kind=event["kind"], data=event.get("data", {})
                )

    def publish(self, lease: Lease, publication: Publication) -> Engine:
        """Check the blob and the lease, sign, and commit engine, build and names together.

        Asked again after a commit whose outcome stayed unknown, it answers with the engine.
        """
        with self._database.reading() as rows:
            job = rows.jobs.get(lease.job_id)
            build = rows.builds.get(job.build_id)
            done = rows.engines.current(build.key)
        if job.state == State.DONE and job.token == lease.token and done is not None:
            return done
        if job.kind != Kind.ASSEMBLE:
            raise StateError(f"a {job.kind} job cannot publish an engine")
        _check_held(job, lease)
        for _ in self._blobs.get(publication.digest):
            pass  # the iterator refuses bytes with another digest
        at = self._clock.now()
        timing_set = str(job.payload["timing_set"])
        engine, statement = self._engine_of(build, publication, timing_set=timing_set, at=at)
        with self._database.transaction(durable=True) as rows:
            job = _held(rows, lease)
            if job.lease_until is None or job.lease_until <= self._clock.now():
                raise LeaseLostError(f"the lease of job {job.id} ran out before it published")
            if rows.builds.get(build.id).cancel_requested:
                raise LeaseLostError(f"build {build.id} is being cancelled")
            steps.end_job(rows, job, State.DONE, at=at, attempt=AttemptState.DONE, error=None)
            _note_blobs(rows, engine, len(statement), at=at)
            return steps.publish_engine(rows, build, engine, at=at)

    def release(self, lease: Lease, outcome: Outcome) -> None:
        """End an attempt in one of four ways."""
        at = self._clock.now()
        if isinstance(outcome, Done):
            self._finish(lease, outcome.result, at=at)
            return
        with self._database.transaction() as rows:
            job = _held(rows, lease)
            build = rows.builds.get(job.build_id)
            if isinstance(outcome, Failed):
                error = {
                    "kind": outcome.kind,
                    "class": outcome.error_class,
                    "message": outcome.message,
                    "version": outcome.version,
                }
                steps.fail_job(rows, job, error, policy=self._policy, at=at)
            elif isinstance(outcome, Cancelled) and build.cancel_requested:
                steps.end_build(rows, build, State.CANCELLED, at=at)
            else:
                _give_back(rows, job, build, at=at)

    def expire(self) -> int:
        """Take back every job whose lease ran out; returns how many."""
        at = self._clock.now()
        with self._database.transaction() as rows:
            jobs = rows.jobs.running(expired_at=at)
            for job in jobs:
                self._lose(rows, job, at=at)
            return len(jobs)

    def abandon(self, build_id: str) -> int:
        """Take back every running job of a build whose holder is known to be dead."""
        at = self._clock.now()
        with self._database.transaction() as rows:
            jobs = rows.jobs.running(build_id=build_id)
            for job in jobs:
                self._lose(rows, job, at=at)
            return len(jobs)

    def _lose(self, rows: Rows, job: Job, *, at: float) -> None:
        """Give one job up, unless its build ended together with another of its jobs."""
        if rows.jobs.get(job.id).state == State.RUNNING:
            steps.lose_job(rows, job, policy=self._policy, at=at)

    def _finish(self, lease: Lease, result: Json, *, at: float) -> None:
        """End a prepare or tune step and insert what follows, or find the engine made already."""
        twin = self._twin(lease, result)
        with self._database.transaction(durable=twin is not None) as rows:
            job = _held(rows, lease)
            if job.kind == Kind.ASSEMBLE:
                raise StateError("an assemble job ends by publishing")
            if "prepared" in result:
                rows.engines.note_blob(result["prepared"], result["prepared_nbytes"], at=at)
            rows.jobs.update(job.id, result=result)
            job = steps.end_job(rows, job, State.DONE, at=at, attempt=AttemptState.DONE, error=None)
            rows.builds.append_event(
                job.build_id, at=at, kind="job_done", data={"job": job.kind, "ordinal": job.ordinal}
            )
            build = rows.builds.get(job.build_id)
            if job.kind == Kind.PREPARE:
                build = rows.builds.update(build.id, graph_digest=result["graph_digest"])
            if build.cancel_requested:
                steps.end_build(rows, build, State.CANCELLED, at=at)
            elif twin is not None:
                engine, statement_nbytes = twin
                _note_blobs(rows, engine, statement_nbytes, at=at)
                steps.publish_engine(rows, build, engine, at=at)
            else:
                steps.advance(rows, build, policy=self._policy, new_id=self._new_id, at=at)

    def _twin(self, lease: Lease, result: Json) -> tuple[Engine, int] | None:
        """The engine for this build when the same graph was built under another key before.

        A rebuild (a generation above the first) is never answered so.
        """
        with self._database.reading() as rows:
            job = rows.jobs.get(lease.job_id)
            build = rows.builds.get(job.build_id)
            if job.kind != Kind.PREPARE or build.generation > 1:
                return None
            same = rows.engines.same(
                context_digest=build.context_digest, graph_digest=result["graph_digest"]
            )
        if same is None or self._blobs.missing([same.digest]):
            return None
        publication = Publication(same.digest, same.nbytes, same.report)
        engine, statement = self._engine_of(
            build,
            publication,
            timing_set=str(same.report["timing_set"]),
            at=self._clock.now(),
            same_as=same.key,
            graph_digest=same.graph_digest,
        )
        return engine, len(statement)

    def _engine_of(
        self,
        build: Build,
        publication: Publication,
        *,
        timing_set: str,
        at: float,
        same_as: str | None = None,
        graph_digest: str | None = None,
    ) -> tuple[Engine, bytes]:
        """The record of an engine to publish, with its signed statement put among the blobs."""
        started_at = build.started_at or build.created_at
        spec = BuildSpec.from_json(build.spec)
        statement = self._signer.sign(
            statement_of(
                name=f"{build.model_name}.engine",
                digest=publication.digest,
                spec=spec,
                made=Made(build.id, started_at, at, timing_set, same_as),
            )
        )
        statement_digest = self._blobs.put([statement]).digest
        engine = Engine(
            key=build.key,
            generation=build.generation,
            digest=publication.digest,
            nbytes=publication.nbytes,
            statement_digest=statement_digest,
            build_id=build.id,
            model_name=build.model_name,
            graph_digest=graph_digest or build.graph_digest or "",
            context_digest=build.context_digest,
            same_as=same_as,
            target=spec.target,
            options=spec.options,
            report={**publication.report, "timing_set": timing_set},
            build_seconds=max(0.0, at - started_at),
            created_at=at,
        )
        return engine, statement

    def _assignment(self, rows: Rows, build: Build, job: Job) -> Assignment:
        """Everything a worker needs for a job it has just claimed."""
        prepared = steps.prepared_result(rows.jobs.of_build(build.id))
        known: Sequence[Timing] = ()
        if job.kind != Kind.PREPARE:
            tasks = (job.payload if job.kind == Kind.TUNE else prepared).get("tasks", [])
            target, toolchain = digests_of(BuildSpec.from_json(build.spec))
            known = rows.timings.known(
                target_digest=target,
                toolchain_digest=toolchain,
                signatures=[task["signature"] for task in tasks],
            )
        if job.kind == Kind.ASSEMBLE:
            payload = {**job.payload, "timing_set": timing_set_digest(known)}
            job = rows.jobs.update(job.id, payload=payload)
        assert job.lease_until is not None
        return Assignment(
            lease=Lease(job.id, job.token, job.lease_until),
            build_id=build.id,
            kind=job.kind,
            spec=build.spec,
            model_path=build.model_path,
            payload=job.payload,
            prepared=prepared,
            known=records_of(known),
        )


def _held(rows: Rows, lease: Lease) -> Job:
    """The job of a lease, locked; raises LeaseLostError unless its token is the present one."""
    try:
        job = rows.jobs.get(lease.job_id, lock=True)
    except NotFoundError as error:
        raise LeaseLostError(f"job {lease.job_id} does not exist any more") from error
    _check_held(job, lease)
    return job


def _check_held(job: Job, lease: Lease) -> None:
    """Refuse a lease whose job was lost, ended or claimed by another."""
    if job.state != State.RUNNING or job.token != lease.token:
        raise LeaseLostError(
            f"the lease of job {job.id} is lost: token {lease.token} was shown, "
            f"the job is {job.state} under token {job.token}"
        )


def _give_back(rows: Rows, job: Job, build: Build, *, at: float) -> None:
    """Queue a job again without blame, or end its build when nobody waits for it."""
    steps.requeue_job(rows, job, at=at, attempt=AttemptState.RETURNED, error=None)
    rows.builds.append_event(build.id, at=at, kind="job_returned", data={"job": job.kind})
    if build.cancel_requested and not is_terminal(build.state):
        steps.end_build(rows, build, State.CANCELLED, at=at)


def _note_blobs(rows: Rows, engine: Engine, statement_nbytes: int, *, at: float) -> None:
    """Remember both blobs of an engine before the engine refers to them."""
    rows.engines.note_blob(engine.digest, engine.nbytes, at=at)
    rows.engines.note_blob(engine.statement_digest, statement_nbytes, at=at)
