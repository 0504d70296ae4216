"""Rows of jobs and attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from storage.errors import NotFoundError
from storage.records import Attempt, Job, Json
from storage.rows.freeze import freeze
from storage.tables import AttemptRow, BuildRow, JobRow

OPEN_STATES = ("queued", "running")


class JobRows:
    """Jobs and attempts within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def insert(
        self,
        *,
        id: str,
        build_id: str,
        kind: str,
        ordinal: int,
        device_class: str,
        payload: Json,
        at: float,
    ) -> Job:
        """A new queued job; raises ConflictError when the build has this step already."""
        row = JobRow(
            id=id,
            build_id=build_id,
            kind=kind,
            ordinal=ordinal,
            device_class=device_class,
            state="queued",
            payload=payload,
            token=0,
            failures=0,
            losses=0,
            created_at=at,
        )
        self._session.add(row)
        self._session.flush()
        return freeze(row, Job)

    def get(self, job_id: str, *, lock: bool = False) -> Job:
        """The job with this id; raises NotFoundError."""
        return freeze(self._row(job_id, lock=lock), Job)

    def of_build(self, build_id: str, *, kind: str | None = None) -> list[Job]:
        """The jobs of a build in the order in which they were inserted."""
        query = select(JobRow).where(JobRow.build_id == build_id)
        if kind is not None:
            query = query.where(JobRow.kind == kind)
        ordered = query.order_by(JobRow.created_at, JobRow.kind.desc(), JobRow.ordinal)
        return [freeze(row, Job) for row in self._session.scalars(ordered)]

    def best_queued(
        self, *, device_classes: Sequence[str], build_id: str | None = None
    ) -> Job | None:
        """The queued job that has waited longest, locked where the database has row locks.

        Jobs of builds that are to be cancelled are left out. Two transactions never get one job:
        SQLite runs them one after the other, PostgreSQL skips what another has locked.
        """
        query = claim_query(device_classes, build_id)
        row = self._session.scalars(query).one_or_none()
        return None if row is None else freeze(row, Job)

    def running(self, *, build_id: str | None = None, expired_at: float | None = None) -> list[Job]:
        """Jobs under a lease: all, those of a build, or those whose lease ended by a time."""
        query = select(JobRow).where(JobRow.state == "running").order_by(JobRow.id)
        if build_id is not None:
            query = query.where(JobRow.build_id == build_id)
        if expired_at is not None:
            query = query.where(JobRow.lease_until <= expired_at)
        locked = query.with_for_update(skip_locked=True)
        return [freeze(row, Job) for row in self._session.scalars(locked)]

    def count_open(self, build_id: str) -> int:
        """How many jobs of a build are queued or running."""
        query = select(func.count()).where(
            JobRow.build_id == build_id, JobRow.state.in_(OPEN_STATES)
        )
        return self._session.scalar(query) or 0

    def update(self, job_id: str, **changes: Any) -> Job:
        """Change columns of a job."""
        row = self._row(job_id)
        for column, value in changes.items():
            setattr(row, column, value)
        self._session.flush()
        return freeze(row, Job)

    def begin_attempt(self, *, job_id: str, token: int, worker: str, at: float) -> Attempt:
        """A new running attempt under a fencing token."""
        row = AttemptRow(job_id=job_id, token=token, worker=worker, state="running", started_at=at)
        self._session.add(row)
        self._session.flush()
        return freeze(row, Attempt)

    def end_attempt(
        self, *, job_id: str, token: int, state: str, at: float, error: Json | None = None
    ) -> Attempt:
        """Close an attempt with what became of it."""
        row = self._session.get(AttemptRow, (job_id, token))
        if row is None:
            raise NotFoundError(f"there is no attempt {token} of job {job_id!r}")
        row.state, row.finished_at, row.error = state, at, error
        self._session.flush()
        return freeze(row, Attempt)

    def attempts(self, job_id: str) -> list[Attempt]:
        """The attempts of a job, the oldest first."""
        query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.token)
        return [freeze(row, Attempt) for row in self._session.scalars(query)]

    def _row(self, job_id: str, *, lock: bool = False) -> JobRow:
        row = self._session.get(JobRow, job_id, with_for_update=True if lock else None)
        if row is None:
            raise NotFoundError(f"there is no job {job_id!r}")
        return row


def claim_query(device_classes: Sequence[str], build_id: str | None) -> Select[Any]:
    """The query for the queued job that has waited longest."""
    query = (
        select(JobRow)
        .join(BuildRow, BuildRow.id == JobRow.build_id)
        .where(
            JobRow.state == "queued",
            JobRow.device_class.in_(device_classes),
            BuildRow.cancel_requested.is_(False),
        )
        .order_by(JobRow.created_at, JobRow.ordinal, JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=JobRow)
    )
    return query if build_id is None else query.where(JobRow.build_id == build_id)
