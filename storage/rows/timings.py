"""Rows of timing records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage.records import Timing
from storage.rows.freeze import escape_like, freeze
from storage.tables import TimingRow

# SQLite allows 999 parameters in old builds; signatures are asked for in slices.
_SLICE = 500


class TimingRows:
    """Timing records within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def keep(self, timings: Iterable[Timing]) -> int:
        """Add records; of two with one identity the one with more samples stays.

        Returns how many were new or better.
        """
        kept = 0
        for timing in timings:
            row = self._session.get(TimingRow, timing.identity)
            if row is not None and row.samples >= timing.samples:
                continue
            kept += 1
            self._session.merge(
                TimingRow(**{name: getattr(timing, name) for name in timing.__slots__})
            )
        self._session.flush()
        return kept

    def known(
        self,
        *,
        target_digest: str,
        toolchain_digest: str,
        signatures: Sequence[str] | None = None,
    ) -> list[Timing]:
        """The records of a target and toolchain, of some signatures or all, by identity."""
        query = select(TimingRow).where(
            TimingRow.target_digest == target_digest,
            TimingRow.toolchain_digest == toolchain_digest,
        )
        if signatures is None:
            rows = list(self._session.scalars(query))
        else:
            wanted = sorted(set(signatures))
            slices = [wanted[i : i + _SLICE] for i in range(0, len(wanted), _SLICE)]
            rows = [
                row
                for part in slices
                for row in self._session.scalars(query.where(TimingRow.signature.in_(part)))
            ]
        return [freeze(row, Timing) for row in sorted(rows, key=lambda row: row.identity)]

    def all(self, *, containing: str = "", limit: int | None = None) -> list[Timing]:
        """Every record whose signature contains a text, by signature and time."""
        pattern = f"%{escape_like(containing)}%"
        query = (
            select(TimingRow)
            .where(TimingRow.signature.like(pattern, escape="\\"))
            .order_by(TimingRow.signature, TimingRow.time_ns, TimingRow.identity)
            .limit(limit)
        )
        return [freeze(row, Timing) for row in self._session.scalars(query)]

    def count(self) -> int:
        """How many records there are."""
        return self._session.scalar(select(func.count()).select_from(TimingRow)) or 0
