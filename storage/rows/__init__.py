"""The rows of one transaction, by subject; every method takes and returns plain values."""

from __future__ import annotations

from sqlalchemy.orm import Session

from storage.rows.builds import BuildRows
from storage.rows.engines import EngineRows
from storage.rows.jobs import JobRows
from storage.rows.timings import TimingRows


class Rows:
    """What a transaction may read and write; of no use once the transaction has ended."""

    def __init__(self, session: Session) -> None:
        self.builds = BuildRows(session)
        self.jobs = JobRows(session)
        self.engines = EngineRows(session)
        self.timings = TimingRows(session)
