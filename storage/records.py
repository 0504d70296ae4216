"""Frozen records of what the database holds; rows themselves never leave this room.

Times are seconds since 1970 in UTC. JSON columns appear as plain Python data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Build:
    """One key being built, or built, or failed; the parent of its jobs."""

    id: str
    key: str
    generation: int
    state: str
    spec: Json
    context_digest: str
    model_name: str
    model_path: str | None
    graph_digest: str | None
    same_as: str | None
    failure: Json | None
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class Submission:
    """A user's wish for a build; a build is cancelled with its last live submission."""

    id: str
    build_id: str
    user: str
    name: str | None
    created_at: float
    cancelled_at: float | None


@dataclass(frozen=True, slots=True)
class Job:
    """One step of a build, with its lease while a worker holds it."""

    id: str
    build_id: str
    kind: str
    ordinal: int
    device_class: str
    state: str
    payload: Json
    result: Json | None
    token: int
    lease_owner: str | None
    lease_until: float | None
    failures: int
    losses: int
    created_at: float
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One worker's go at a job, named by the fencing token that it was given."""

    job_id: str
    token: int
    worker: str
    state: str
    error: Json | None
    started_at: float
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a build, numbered from 1 without gaps."""

    build_id: str
    number: int
    at: float
    kind: str
    data: Json


@dataclass(frozen=True, slots=True)
class Engine:
    """One published engine: the digest of its plan file and how it came about."""

    key: str
    generation: int
    digest: str
    nbytes: int
    statement_digest: str
    build_id: str
    model_name: str
    graph_digest: str
    context_digest: str
    same_as: str | None
    target: Json
    options: Json
    report: Json
    build_seconds: float
    created_at: float


@dataclass(frozen=True, slots=True)
class Name:
    """A movable pointer such as resnet50:prod to one engine."""

    name: str
    tag: str
    key: str
    generation: int
    moved_at: float


@dataclass(frozen=True, slots=True)
class Timing:
    """One measurement of one tactic; `record` is what the engine wrote, whole."""

    identity: str
    signature: str
    tactic: str
    status: str
    time_ns: float | None
    samples: int
    target_digest: str
    toolchain_digest: str
    record: Json
    recorded_at: float
