"""The tables of the farm, typed for SQLAlchemy; the migrations create them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

STATES = ("queued", "running", "done", "failed", "cancelled")
ATTEMPT_STATES = ("running", "done", "failed", "lost", "returned", "cancelled")


def _one_of(column: str, words: tuple[str, ...]) -> str:
    """The SQL condition that a column holds one of some words."""
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


class Table(DeclarativeBase):
    """The parent of all tables; JSON columns hold plain data."""

    type_annotation_map = {dict[str, Any]: JSON, float: Double, str: Text}


class BuildRow(Table):
    """A key being built; at most one open build per key."""

    __tablename__ = "build"
    __table_args__ = (
        CheckConstraint(_one_of("state", STATES), name="build_state"),
        Index(
            "build_open_key",
            "key",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), index=True)
    generation: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]]
    context_digest: Mapped[str] = mapped_column(String(64))
    model_name: Mapped[str]
    model_path: Mapped[str | None]
    graph_digest: Mapped[str | None] = mapped_column(String(64))
    same_as: Mapped[str | None] = mapped_column(String(64))
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    cancel_requested: Mapped[bool]
    last_event: Mapped[int]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class SubmissionRow(Table):
    """A user's wish for a build."""

    __tablename__ = "submission"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    build_id: Mapped[str] = mapped_column(ForeignKey("build.id"), index=True)
    user: Mapped[str] = mapped_column("user_name")
    name: Mapped[str | None]
    created_at: Mapped[float]
    cancelled_at: Mapped[float | None]


class JobRow(Table):
    """A step of a build and its lease."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(_one_of("state", STATES), name="job_state"),
        UniqueConstraint("build_id", "kind", "ordinal", name="job_step"),
        Index("job_claim", "state", "device_class", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    build_id: Mapped[str] = mapped_column(ForeignKey("build.id"))
    kind: Mapped[str] = mapped_column(String(16))
    ordinal: Mapped[int]
    device_class: Mapped[str] = mapped_column(String(80))
    state: Mapped[str] = mapped_column(String(16))
    payload: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    token: Mapped[int] = mapped_column(BigInteger)
    lease_owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    failures: Mapped[int]
    losses: Mapped[int]
    created_at: Mapped[float]
    sent_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class AttemptRow(Table):
    """One worker's go at a job."""

    __tablename__ = "attempt"
    __table_args__ = (CheckConstraint(_one_of("state", ATTEMPT_STATES), name="attempt_state"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    token: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    worker: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    started_at: Mapped[float]
    finished_at: Mapped[float | None]


class EventRow(Table):
    """Something that happened to a build; its number is allocated in the same transaction."""

    __tablename__ = "event"

    build_id: Mapped[str] = mapped_column(ForeignKey("build.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]


class BlobRow(Table):
    """A blob that was, or was about to be, put; what `gc` goes through."""

    __tablename__ = "blob"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    nbytes: Mapped[int] = mapped_column(BigInteger)
    put_at: Mapped[float]


class EngineRow(Table):
    """A published engine; the greatest generation of a key is the current one."""

    __tablename__ = "engine"
    __table_args__ = (Index("engine_same", "context_digest", "graph_digest"),)

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    generation: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(ForeignKey("blob.digest"))
    nbytes: Mapped[int] = mapped_column(BigInteger)
    statement_digest: Mapped[str] = mapped_column(ForeignKey("blob.digest"))
    build_id: Mapped[str] = mapped_column(ForeignKey("build.id"))
    model_name: Mapped[str]
    graph_digest: Mapped[str] = mapped_column(String(64))
    context_digest: Mapped[str] = mapped_column(String(64))
    same_as: Mapped[str | None] = mapped_column(String(64))
    target: Mapped[dict[str, Any]]
    options: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any]]
    build_seconds: Mapped[float]
    created_at: Mapped[float]


class NameRow(Table):
    """A movable pointer to an engine."""

    __tablename__ = "name"
    __table_args__ = (
        ForeignKeyConstraint(["key", "generation"], ["engine.key", "engine.generation"]),
    )

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    tag: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[str] = mapped_column(String(64))
    generation: Mapped[int]
    moved_at: Mapped[float]


class TimingRow(Table):
    """One measurement; the better-sampled one of an identity stays."""

    __tablename__ = "timing"
    __table_args__ = (Index("timing_known", "target_digest", "toolchain_digest", "signature"),)

    identity: Mapped[str] = mapped_column(String(64), primary_key=True)
    signature: Mapped[str]
    tactic: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))
    time_ns: Mapped[float | None]
    samples: Mapped[int]
    target_digest: Mapped[str] = mapped_column(String(64))
    toolchain_digest: Mapped[str] = mapped_column(String(64))
    record: Mapped[dict[str, Any]]
    recorded_at: Mapped[float]
