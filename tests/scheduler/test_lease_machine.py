"""Random lives of jobs and leases on a fake clock, checked after each step."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from scheduler.desk import Assignment, Cancelled, Done, Failed, Outcome, Returned, Worker
from scheduler.errors import LeaseLostError, StateError
from scheduler.states import is_terminal
from scheduler.steps import Policy
from storage.errors import NotFoundError
from storage.records import Build, Job
from storage.rows import Rows
from tests.scheduler.farm_parts import make_parts, prepared, publication, record, spec

MODELS = (b"one", b"two")


class LeaseMachine(RuleBasedStateMachine):
    """Two models, three workers, and everything that may happen to them."""

    assignments = Bundle("assignments")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.parts = make_parts(
            Path(self._folder.name),
            policy=Policy(tasks_per_shard=1, failures_allowed=1, losses_allowed=2),
        )
        self.engines: dict[tuple[str, int], str] = {}
        self.tokens: dict[str, int] = {}

    def teardown(self) -> None:
        self.parts.database.close()
        self._folder.cleanup()

    def job(self, assignment: Assignment) -> Job:
        with self.parts.database.reading() as rows:
            return rows.jobs.get(assignment.lease.job_id)

    def holds(self, assignment: Assignment) -> bool:
        job = self.job(assignment)
        return job.state == "running" and job.token == assignment.lease.token

    @rule(model=st.sampled_from(MODELS), force=st.booleans())
    def submit(self, model: bytes, force: bool) -> None:
        self.parts.submit(spec(model), force=force)

    @rule(target=assignments, number=st.integers(1, 3))
    def claim(self, number: int) -> object:
        assignment = self.parts.desk.claim(Worker(f"worker-{number}", ("cpu",)))
        if assignment is None:
            return multiple()
        job_id, token = assignment.lease.job_id, assignment.lease.token
        assert token > self.tokens.get(job_id, 0)
        self.tokens[job_id] = token
        return assignment

    @rule(assignment=assignments)
    def renew(self, assignment: Assignment) -> None:
        held = self.holds(assignment)
        try:
            standing = self.parts.desk.renew(assignment.lease)
        except LeaseLostError:
            assert not held
        else:
            assert held
            assert standing.until > self.parts.clock.now()

    @rule(assignment=assignments)
    def record(self, assignment: Assignment) -> None:
        held = self.holds(assignment)
        try:
            self.parts.desk.record(assignment.lease, timings=[record("a")])
        except LeaseLostError:
            assert not held
        else:
            assert held

    @rule(
        assignment=assignments,
        outcome=st.sampled_from(
            [
                Returned(),
                Cancelled(),
                Failed("model", "ModelError", "no"),
                Failed("infrastructure", "OSError", "full"),
            ]
        ),
    )
    def give_up(self, assignment: Assignment, outcome: Outcome) -> None:
        held = self.holds(assignment)
        try:
            self.parts.desk.release(assignment.lease, outcome)
        except LeaseLostError:
            assert not held
        else:
            assert held
            assert self.job(assignment).state != "running"

    @rule(assignment=assignments, tasks=st.integers(0, 3))
    def finish(self, assignment: Assignment, tasks: int) -> None:
        held = self.holds(assignment)
        # The graph differs by model, so that no build is answered by another's engine.
        graph = assignment.spec["model"]["files"][0]["digest"]
        done = prepared(self.parts.blobs, *"abc"[:tasks], graph=graph)
        try:
            if assignment.kind == "prepare":
                self.parts.desk.release(assignment.lease, done)
            elif assignment.kind == "tune":
                self.parts.desk.release(assignment.lease, Done())
            else:
                self.publish(assignment)
        except LeaseLostError:
            assert not held or assignment.kind == "assemble"
        else:
            assert held or assignment.kind == "assemble"

    def publish(self, assignment: Assignment) -> None:
        before = self.job(assignment)
        content = f"{assignment.lease.job_id}.{assignment.lease.token}".encode()
        engine = self.parts.desk.publish(assignment.lease, publication(self.parts.blobs, content))
        # Publishing succeeds for the present holder, or answers its own earlier success.
        assert before.token == assignment.lease.token
        assert before.state in ("running", "done")
        if before.state == "running":
            place = (engine.key, engine.generation)
            assert place not in self.engines
            self.engines[place] = engine.digest

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.parts.clock.advance(seconds)

    @rule()
    def expire(self) -> None:
        self.parts.desk.expire()

    @rule(model=st.sampled_from(MODELS))
    def cancel(self, model: bytes) -> None:
        # A build that was never submitted, or that has ended, cannot be cancelled.
        with suppress(StateError, NotFoundError):
            self.parts.submissions.cancel(spec(model).key)

    @invariant()
    def what_must_always_hold(self) -> None:
        with self.parts.database.reading() as rows:
            builds = rows.builds.newest(limit=1000)
            assert len({build.key for build in rows.builds.open()}) == len(rows.builds.open())
            engines = {(item.key, item.generation): item.digest for item in rows.engines.newest()}
            assert engines == self.engines
            for build in builds:
                numbers = [event.number for event in rows.builds.events(build.id)]
                assert numbers == list(range(1, len(numbers) + 1))
                jobs = rows.jobs.of_build(build.id)
                still_open = [job for job in jobs if not is_terminal(job.state)]
                assert bool(still_open) != is_terminal(build.state)
                assert (build.state == "done") == published_by(rows, build)
                for job in jobs:
                    attempts = rows.jobs.attempts(job.id)
                    assert [item.token for item in attempts] == list(range(1, job.token + 1))
                    running = [item.token for item in attempts if item.state == "running"]
                    assert running == ([job.token] if job.state == "running" else [])


def published_by(rows: Rows, build: Build) -> bool:
    """Whether the engine of a build's key and generation was published by this build."""
    with suppress(NotFoundError):
        return rows.engines.get(build.key, build.generation).build_id == build.id
    return False


LeaseMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLeases = LeaseMachine.TestCase
