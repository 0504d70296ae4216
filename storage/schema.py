"""The revisions of the database, oldest first; the last is what this version reads and writes."""

from __future__ import annotations

REVISIONS: tuple[str, ...] = ("0001",)
HEAD = REVISIONS[-1]
