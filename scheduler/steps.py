"""The rules of builds and jobs within one transaction: what follows what, and how things end."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.clock import NewId
from scheduler.states import (
    AttemptState,
    FailureKind,
    Kind,
    State,
    check_move,
    is_terminal,
)
from storage.records import Build, Engine, Job, Json
from storage.rows import Rows


@dataclass(frozen=True, slots=True)
class Policy:
    """How long leases last and how often a job may be tried."""

    lease_s: float = 60.0
    failures_allowed: int = 0
    losses_allowed: int = 3
    tasks_per_shard: int = 16


def insert_build_jobs(rows: Rows, build: Build, *, new_id: NewId, at: float) -> None:
    """Give a new build its first step."""
    _insert_job(rows, build, Kind.PREPARE, 0, {}, new_id=new_id, at=at)


def advance(rows: Rows, build: Build, *, policy: Policy, new_id: NewId, at: float) -> None:
    """Insert the next steps once no step of the build is open; called by who finished one."""
    if is_terminal(build.state) or rows.jobs.count_open(build.id):
        return
    jobs = rows.jobs.of_build(build.id)
    kinds = {Kind(job.kind) for job in jobs}
    if Kind.TUNE not in kinds and Kind.ASSEMBLE not in kinds:
        tasks = prepared_result(jobs).get("tasks", [])
        shards = [
            tasks[first : first + policy.tasks_per_shard]
            for first in range(0, len(tasks), policy.tasks_per_shard)
        ]
        for ordinal, shard in enumerate(shards):
            _insert_job(rows, build, Kind.TUNE, ordinal, {"tasks": shard}, new_id=new_id, at=at)
        if shards:
            return
    if Kind.ASSEMBLE not in kinds:
        _insert_job(rows, build, Kind.ASSEMBLE, 0, {}, new_id=new_id, at=at)


def prepared_result(jobs: list[Job]) -> Json:
    """What the prepare step of a build left for the others."""
    for job in jobs:
        if job.kind == Kind.PREPARE and job.result is not None:
            return job.result
    return {}


def end_job(
    rows: Rows, job: Job, state: State, *, at: float, attempt: AttemptState, error: Json | None
) -> Job:
    """Close a job and its running attempt for good."""
    check_move(job.state, state)
    if job.state == State.RUNNING:
        rows.jobs.end_attempt(job_id=job.id, token=job.token, state=attempt, at=at, error=error)
    return rows.jobs.update(job.id, state=state, lease_owner=None, lease_until=None, finished_at=at)


def requeue_job(
    rows: Rows, job: Job, *, at: float, attempt: AttemptState, error: Json | None
) -> Job:
    """Put a running job back, so that another attempt may claim it under the next token."""
    check_move(job.state, State.QUEUED)
    rows.jobs.end_attempt(job_id=job.id, token=job.token, state=attempt, at=at, error=error)
    job = rows.jobs.update(job.id, state=State.QUEUED, lease_owner=None, lease_until=None)
    if not rows.jobs.running(build_id=job.build_id):
        rows.builds.update(job.build_id, state=State.QUEUED)
    return job


def end_build(
    rows: Rows, build: Build, state: State, *, at: float, failure: Json | None = None
) -> Build:
    """Close a build, with every step that is still open."""
    check_move(build.state, state)
    for job in rows.jobs.of_build(build.id):
        if not is_terminal(job.state):
            end_job(
                rows,
                job,
                State.CANCELLED,
                at=at,
                attempt=AttemptState.CANCELLED,
                error=None,
            )
    ended = rows.builds.update(build.id, state=state, finished_at=at, failure=failure)
    rows.builds.append_event(build.id, at=at, kind=state, data=failure or {})
    return ended


def lose_job(rows: Rows, job: Job, *, policy: Policy, at: float) -> None:
    """A worker was lost with a job: try again, unless too many were lost or nobody waits."""
    build = rows.builds.get(job.build_id)
    losses = job.losses + 1
    rows.jobs.update(job.id, losses=losses)
    rows.builds.append_event(
        build.id, at=at, kind="job_lost", data={"job": job.kind, "worker": job.lease_owner}
    )
    requeue_job(rows, job, at=at, attempt=AttemptState.LOST, error=None)
    if build.cancel_requested:
        end_build(rows, build, State.CANCELLED, at=at)
    elif losses > policy.losses_allowed:
        failure = {
            "kind": FailureKind.INFRASTRUCTURE,
            "class": "WorkerLost",
            "message": f"{losses} workers were lost one after the other in its {job.kind} step",
        }
        end_build(rows, build, State.FAILED, at=at, failure=failure)


def fail_job(rows: Rows, job: Job, error: Json, *, policy: Policy, at: float) -> None:
    """A worker says that a job failed: the model's failures are final, others are tried again."""
    build = rows.builds.get(job.build_id)
    failures = job.failures + 1
    rows.jobs.update(job.id, failures=failures)
    rows.builds.append_event(build.id, at=at, kind="job_failed", data={"job": job.kind, **error})
    if error["kind"] == FailureKind.INFRASTRUCTURE and failures <= policy.failures_allowed:
        requeue_job(rows, job, at=at, attempt=AttemptState.FAILED, error=error)
        return
    end_job(rows, job, State.FAILED, at=at, attempt=AttemptState.FAILED, error=error)
    end_build(rows, build, State.FAILED, at=at, failure=error)


def publish_engine(rows: Rows, build: Build, engine: Engine, *, at: float) -> Engine:
    """Record an engine, end its build and move the names that its submissions asked for."""
    made = rows.engines.insert(engine)
    rows.builds.update(build.id, same_as=engine.same_as)
    rows.builds.append_event(
        build.id,
        at=at,
        kind="published",
        data={"digest": engine.digest, "size": engine.nbytes, "same_as": engine.same_as},
    )
    end_build(rows, build, State.DONE, at=at)
    for submission in rows.builds.submissions(build.id, live_only=True):
        if submission.name:
            name, _, tag = submission.name.partition(":")
            rows.engines.move_name(name, tag, key=engine.key, generation=engine.generation, at=at)
    return made


def _insert_job(
    rows: Rows, build: Build, kind: Kind, ordinal: int, payload: Json, *, new_id: NewId, at: float
) -> None:
    """A new queued step, for devices of the build's class."""
    rows.jobs.insert(
        id=new_id("job"),
        build_id=build.id,
        kind=kind,
        ordinal=ordinal,
        device_class=device_class_of(build.spec["target"]),
        payload=payload,
        at=at,
    )
    rows.builds.append_event(
        build.id, at=at, kind="job_queued", data={"job": kind, "ordinal": ordinal}
    )


def device_class_of(target: Json) -> str:
    """The queue of a target: its `device_class`, else its name, else its vendor."""
    for field in ("device_class", "name", "vendor"):
        value = target.get(field)
        if isinstance(value, str) and value:
            return value
    return "any"
