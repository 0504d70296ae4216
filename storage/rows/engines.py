"""Rows of engines, names and blobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from storage.errors import ConflictError, NotFoundError
from storage.records import Engine, Name
from storage.rows.freeze import escape_like, freeze
from storage.tables import BlobRow, BuildRow, EngineRow, JobRow, NameRow

SHORTEST_PREFIX = 8


class EngineRows:
    """Engines, names and blobs within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def insert(self, engine: Engine) -> Engine:
        """A new engine; raises ConflictError when its key has this generation already."""
        values: dict[str, Any] = {name: getattr(engine, name) for name in engine.__slots__}
        row = EngineRow(**values)
        self._session.add(row)
        self._session.flush()
        return freeze(row, Engine)

    def current(self, key: str) -> Engine | None:
        """The greatest generation of a key."""
        query = (
            select(EngineRow)
            .where(EngineRow.key == key)
            .order_by(EngineRow.generation.desc())
            .limit(1)
        )
        row = self._session.scalars(query).one_or_none()
        return None if row is None else freeze(row, Engine)

    def get(self, key: str, generation: int) -> Engine:
        """One generation of a key; raises NotFoundError."""
        row = self._session.get(EngineRow, (key, generation))
        if row is None:
            raise NotFoundError(f"there is no engine {key[:12]} of generation {generation}")
        return freeze(row, Engine)

    def find(self, prefix: str) -> Engine:
        """The current engine whose key, or digest, begins so; raises NotFoundError."""
        pattern = escape_like(prefix) + "%"
        query = select(EngineRow.key).where(
            or_(
                EngineRow.key.like(pattern, escape="\\"),
                EngineRow.digest.like(pattern, escape="\\"),
            )
        )
        keys = sorted(set(self._session.scalars(query)))
        if len(prefix) < SHORTEST_PREFIX or not keys:
            raise NotFoundError(
                f"there is no engine {prefix!r}; `enginefarm engines` shows keys "
                f"(a prefix needs {SHORTEST_PREFIX} characters or more)"
            )
        if len(keys) > 1:
            raise ConflictError(f"{prefix!r} begins more than one key; give more of it")
        found = self.current(keys[0])
        assert found is not None
        return found

    def newest(self, *, limit: int = 1000) -> list[Engine]:
        """All generations of all engines, the newest first."""
        query = select(EngineRow).order_by(EngineRow.created_at.desc(), EngineRow.key).limit(limit)
        return [freeze(row, Engine) for row in self._session.scalars(query)]

    def same(self, *, context_digest: str, graph_digest: str) -> Engine | None:
        """The newest engine of the same normalised graph under the same options and target."""
        query = (
            select(EngineRow)
            .where(
                EngineRow.context_digest == context_digest, EngineRow.graph_digest == graph_digest
            )
            .order_by(EngineRow.created_at.desc())
            .limit(1)
        )
        row = self._session.scalars(query).one_or_none()
        return None if row is None else freeze(row, Engine)

    def move_name(self, name: str, tag: str, *, key: str, generation: int, at: float) -> Name:
        """Point a name to an engine, whatever it pointed to before."""
        row = self._session.get(NameRow, (name, tag))
        if row is None:
            row = NameRow(name=name, tag=tag)
            self._session.add(row)
        row.key, row.generation, row.moved_at = key, generation, at
        self._session.flush()
        return freeze(row, Name)

    def named(self, name: str, tag: str) -> Name:
        """What a name points to; raises NotFoundError."""
        row = self._session.get(NameRow, (name, tag))
        if row is None:
            raise NotFoundError(f"there is no name {name}:{tag}; `enginefarm names` shows all")
        return freeze(row, Name)

    def names(self) -> list[Name]:
        """All names in their order."""
        query = select(NameRow).order_by(NameRow.name, NameRow.tag)
        return [freeze(row, Name) for row in self._session.scalars(query)]

    def remove_name(self, name: str, tag: str) -> None:
        """Forget a name; the engine stays. Raises NotFoundError."""
        self.named(name, tag)
        self._session.execute(delete(NameRow).where(NameRow.name == name, NameRow.tag == tag))

    def note_blob(self, digest: str, nbytes: int, *, at: float) -> None:
        """Remember that a blob is, or is about to be, put, so that it can be swept one day."""
        row = self._session.get(BlobRow, digest)
        if row is None:
            row = BlobRow(digest=digest, nbytes=nbytes)
            self._session.add(row)
        row.put_at = at
        self._session.flush()

    def referenced_blobs(self) -> set[str]:
        """The digests that engines and open builds refer to."""
        digests = self._session.execute(select(EngineRow.digest, EngineRow.statement_digest))
        return {digest for pair in digests for digest in pair} | self._blobs_in_work()

    def forget_blob(self, digest: str) -> None:
        """Forget a blob; raises ConflictError when an engine refers to it."""
        self._session.execute(delete(BlobRow).where(BlobRow.digest == digest))

    def _blobs_in_work(self) -> set[str]:
        """Digests that the results of jobs of open builds name."""
        query = (
            select(JobRow.result)
            .join(BuildRow, BuildRow.id == JobRow.build_id)
            .where(BuildRow.state.in_(("queued", "running")), JobRow.result.is_not(None))
        )
        results = list(self._session.scalars(query))
        return {
            str(value)
            for result in results
            if result
            for value in result.values()
            if isinstance(value, str)
        }
