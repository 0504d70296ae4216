"""The kinds of jobs, the states of builds, jobs and attempts, and the moves between states."""

from __future__ import annotations

from enum import StrEnum

from scheduler.errors import StateError


class Kind(StrEnum):
    """What a job does."""

    PREPARE = "prepare"
    TUNE = "tune"
    ASSEMBLE = "assemble"


class State(StrEnum):
    """Where a build or a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    """What became of one worker's go at a job."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"
    RETURNED = "returned"
    CANCELLED = "cancelled"


class FailureKind(StrEnum):
    """Whose fault a failure is; only the model's are remembered."""

    MODEL = "model"
    INFRASTRUCTURE = "infrastructure"


TERMINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})

_MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.DONE, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.QUEUED, State.DONE, State.FAILED, State.CANCELLED}),
    State.DONE: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def is_terminal(state: str) -> bool:
    """Whether nothing will change any more."""
    return State(state) in TERMINAL


def check_move(before: str, after: str) -> None:
    """Refuse a move out of a terminal state; staying where one is is always allowed."""
    if before != after and State(after) not in _MOVES[State(before)]:
        raise StateError(f"a {before} build or job cannot become {after}")
