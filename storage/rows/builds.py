"""Rows of builds, their submissions and their events."""

from __future__ import annotations

from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from storage.errors import ConflictError, NotFoundError
from storage.records import Build, Event, Json, Submission
from storage.rows.freeze import escape_like, freeze
from storage.tables import BuildRow, EventRow, SubmissionRow

OPEN_STATES = ("queued", "running")
SHORTEST_PREFIX = 8


class BuildRows:
    """Builds, submissions and events within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def insert(
        self,
        *,
        id: str,
        key: str,
        generation: int,
        spec: Json,
        context_digest: str,
        model_name: str,
        model_path: str | None,
        at: float,
    ) -> Build:
        """A new queued build; raises ConflictError when the key has an open build already."""
        row = BuildRow(
            id=id,
            key=key,
            generation=generation,
            state="queued",
            spec=spec,
            context_digest=context_digest,
            model_name=model_name,
            model_path=model_path,
            cancel_requested=False,
            last_event=0,
            created_at=at,
        )
        self._session.add(row)
        self._session.flush()
        return freeze(row, Build)

    def get(self, build_id: str) -> Build:
        """The build with exactly this id; raises NotFoundError."""
        return freeze(self._row(build_id), Build)

    def find(self, words: str) -> Build:
        """The newest build of an id, a key, a submission's id, or a prefix of 8 digits or more."""
        submission = self._session.get(SubmissionRow, words)
        if submission is not None:
            return self.get(submission.build_id)
        pattern = escape_like(words) + "%"
        matches = or_(
            BuildRow.id.like(pattern, escape="\\"), BuildRow.key.like(pattern, escape="\\")
        )
        rows = self._session.scalars(
            select(BuildRow).where(matches).order_by(BuildRow.created_at.desc())
        ).all()
        exact = [row for row in rows if words in (row.id, row.key)]
        rows = exact or (rows if len(words) >= SHORTEST_PREFIX else [])
        if not rows:
            raise NotFoundError(
                f"there is no build {words!r}; `enginefarm ls` shows ids and keys "
                f"(a prefix needs {SHORTEST_PREFIX} characters or more)"
            )
        if len({row.key for row in rows}) > 1:
            raise ConflictError(f"{words!r} begins more than one build; give more of it")
        return freeze(rows[0], Build)

    def open_of_key(self, key: str) -> Build | None:
        """The build of a key that is queued or running."""
        row = self._session.scalars(
            select(BuildRow).where(BuildRow.key == key, BuildRow.state.in_(OPEN_STATES))
        ).one_or_none()
        return None if row is None else freeze(row, Build)

    def newest_of_key(self, key: str) -> Build | None:
        """The build of a key that was made last, whatever its state."""
        row = self._session.scalars(
            select(BuildRow)
            .where(BuildRow.key == key)
            .order_by(BuildRow.created_at.desc())
            .limit(1)
        ).one_or_none()
        return None if row is None else freeze(row, Build)

    def newest(self, *, state: str | None = None, limit: int = 50) -> list[Build]:
        """Builds, the newest first."""
        query = select(BuildRow).order_by(BuildRow.created_at.desc(), BuildRow.id).limit(limit)
        if state is not None:
            query = query.where(BuildRow.state == state)
        return [freeze(row, Build) for row in self._session.scalars(query)]

    def open(self) -> list[Build]:
        """Every build that is queued or running."""
        query = select(BuildRow).where(BuildRow.state.in_(OPEN_STATES)).order_by(BuildRow.id)
        return [freeze(row, Build) for row in self._session.scalars(query)]

    def update(self, build_id: str, **changes: Any) -> Build:
        """Change columns of a build."""
        row = self._row(build_id)
        for column, value in changes.items():
            setattr(row, column, value)
        self._session.flush()
        return freeze(row, Build)

    def append_event(self, build_id: str, *, at: float, kind: str, data: Json) -> Event:
        """Add the next event of a build; its number is one more than the last."""
        row = self._row(build_id, lock=True)
        row.last_event += 1
        event = EventRow(build_id=build_id, number=row.last_event, at=at, kind=kind, data=data)
        self._session.add(event)
        self._session.flush()
        return freeze(event, Event)

    def events(self, build_id: str, *, after: int = 0) -> list[Event]:
        """The events of a build with numbers greater than `after`, in order."""
        query = (
            select(EventRow)
            .where(EventRow.build_id == build_id, EventRow.number > after)
            .order_by(EventRow.number)
        )
        return [freeze(row, Event) for row in self._session.scalars(query)]

    def submit(
        self, *, id: str, build_id: str, user: str, name: str | None, at: float
    ) -> Submission:
        """A new submission that waits for a build."""
        row = SubmissionRow(id=id, build_id=build_id, user=user, name=name, created_at=at)
        self._session.add(row)
        self._session.flush()
        return freeze(row, Submission)

    def submissions(self, build_id: str, *, live_only: bool = False) -> list[Submission]:
        """The submissions of a build, the oldest first."""
        query = select(SubmissionRow).where(SubmissionRow.build_id == build_id)
        if live_only:
            query = query.where(SubmissionRow.cancelled_at.is_(None))
        ordered = query.order_by(SubmissionRow.created_at, SubmissionRow.id)
        return [freeze(row, Submission) for row in self._session.scalars(ordered)]

    def cancel_submission(self, submission_id: str, *, at: float) -> Submission:
        """Mark a submission as cancelled; raises NotFoundError."""
        row = self._session.get(SubmissionRow, submission_id)
        if row is None:
            raise NotFoundError(f"there is no submission {submission_id!r}")
        row.cancelled_at = row.cancelled_at or at
        self._session.flush()
        return freeze(row, Submission)

    def _row(self, build_id: str, *, lock: bool = False) -> BuildRow:
        row = self._session.get(BuildRow, build_id, with_for_update=True if lock else None)
        if row is None:
            raise NotFoundError(f"there is no build {build_id!r}")
        return row
