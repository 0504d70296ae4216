"""Submitting, cancelling and building again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler import steps
from scheduler.clock import Clock, NewId, random_id
from scheduler.errors import StateError
from scheduler.keys import BuildSpec
from scheduler.names import EngineName
from scheduler.states import FailureKind, State, is_terminal
from storage.blobs import BlobStore
from storage.database import Database
from storage.records import Build, Engine, Submission
from storage.rows import Rows


class Answer(StrEnum):
    """What became of a submission at once."""

    HIT = "hit"
    KNOWN_FAILURE = "known_failure"
    ATTACHED = "attached"
    QUEUED = "queued"


@dataclass(frozen=True, slots=True)
class Submitted:
    """The answer to a submission, with the engine of a hit or the build to wait for."""

    answer: Answer
    engine: Engine | None = None
    build: Build | None = None
    submission: Submission | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A wish for an engine: what to build, for whom, and under which name to keep it.

    `version` is the program's: another version may succeed where an earlier one failed, so a
    failure is remembered for its own version only.
    """

    spec: BuildSpec
    model_name: str
    model_path: str | None
    user: str
    name: EngineName | None = None
    force: bool = False
    version: str = ""


class Submissions:
    """Turns requests into builds; equal keys are one build even while it runs."""

    def __init__(
        self,
        *,
        database: Database,
        blobs: BlobStore,
        clock: Clock,
        new_id: NewId = random_id,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._new_id = new_id

    def submit(self, request: Request) -> Submitted:
        """Find the engine, attach to the open build, recall a failure, or queue a new build."""
        at = self._clock.now()
        key = request.spec.key
        with self._database.transaction() as rows:
            engine = rows.engines.current(key)
            if engine is not None and not request.force and not self._is_damaged(engine):
                _point_name(rows, request.name, engine, at=at)
                return Submitted(Answer.HIT, engine=engine)
            open_build = rows.builds.open_of_key(key)
            if open_build is not None:
                return self._attach(rows, open_build, request, at=at)
            newest = rows.builds.newest_of_key(key)
            if newest is not None and _is_remembered(newest, request.version) and not request.force:
                return Submitted(Answer.KNOWN_FAILURE, build=newest)
            generation = 1 if engine is None else engine.generation + 1
            build = self._insert(rows, request, key, generation=generation, at=at)
            submission = self._add_submission(rows, build, request, at=at)
            return Submitted(Answer.QUEUED, build=build, submission=submission)

    def cancel(self, words: str) -> Build:
        """Cancel a submission by its id, or all live submissions of a build.

        The build ends with its last live submission: at once when no worker holds a step of it,
        else as soon as the worker has stopped. Raises StateError when it ended before.
        """
        at = self._clock.now()
        with self._database.transaction() as rows:
            build = rows.builds.find(words)
            if is_terminal(build.state):
                raise StateError(f"build {build.id} is {build.state} already")
            live = rows.builds.submissions(build.id, live_only=True)
            is_one = any(item.id == words for item in rows.builds.submissions(build.id))
            chosen = [item for item in live if item.id == words or not is_one]
            for submission in chosen:
                rows.builds.cancel_submission(submission.id, at=at)
            if len(chosen) < len(live):
                return build
            build = rows.builds.update(build.id, cancel_requested=True)
            rows.builds.append_event(build.id, at=at, kind="cancel_requested", data={})
            if not rows.jobs.running(build_id=build.id):
                return steps.end_build(rows, build, State.CANCELLED, at=at)
            return build

    def _insert(
        self, rows: Rows, request: Request, key: str, *, generation: int, at: float
    ) -> Build:
        """A new build with its first job."""
        build = rows.builds.insert(
            id=self._new_id("bld"),
            key=key,
            generation=generation,
            spec=request.spec.to_json(),
            context_digest=request.spec.context_digest,
            model_name=request.model_name,
            model_path=request.model_path,
            at=at,
        )
        data = {"user": request.user, "generation": generation}
        rows.builds.append_event(build.id, at=at, kind="submitted", data=data)
        steps.insert_build_jobs(rows, build, new_id=self._new_id, at=at)
        return build

    def _attach(self, rows: Rows, build: Build, request: Request, *, at: float) -> Submitted:
        """Wait for a build that is open; one that was to be cancelled lives on."""
        changes: dict[str, object] = {"cancel_requested": False}
        if request.model_path is not None:
            changes["model_path"] = request.model_path
        build = rows.builds.update(build.id, **changes)
        rows.builds.append_event(build.id, at=at, kind="attached", data={"user": request.user})
        submission = self._add_submission(rows, build, request, at=at)
        return Submitted(Answer.ATTACHED, build=build, submission=submission)

    def _add_submission(
        self, rows: Rows, build: Build, request: Request, *, at: float
    ) -> Submission:
        """A live submission that waits for a build."""
        return rows.builds.submit(
            id=self._new_id("sub"),
            build_id=build.id,
            user=request.user,
            name=None if request.name is None else str(request.name),
            at=at,
        )

    def _is_damaged(self, engine: Engine) -> bool:
        """Whether the engine's file is gone, so that it has to be built again."""
        return bool(self._blobs.missing([engine.digest, engine.statement_digest]))


def _is_remembered(build: Build, version: str) -> bool:
    """Whether a build failed in a way that trying again with this version cannot change."""
    failure = build.failure or {}
    return (
        build.state == State.FAILED
        and failure.get("kind") == FailureKind.MODEL
        and failure.get("version") == version
    )


def _point_name(rows: Rows, name: EngineName | None, engine: Engine, *, at: float) -> None:
    """Move a name to an engine that exists already."""
    if name is not None:
        rows.engines.move_name(
            name.name, name.tag, key=engine.key, generation=engine.generation, at=at
        )
