"""The read-only way to an engine record, with nothing but the standard library.

A build that was made before is found by one query, without SQLAlchemy and Alembic, whose imports
would take longer than everything else in a hit. Anything unusual (no database, another schema, a
lock) is answered with "not found here": the ordinary way then says what is wrong.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from storage.records import Engine
from storage.schema import HEAD

_JSON_COLUMNS = ("target", "options", "report")
_COLUMNS = tuple(field.name for field in fields(Engine))
_BY_KEY = f"SELECT {', '.join(_COLUMNS)} FROM engine WHERE key = ? ORDER BY generation DESC LIMIT 1"
_BY_NAME = (
    f"SELECT {', '.join('engine.' + column for column in _COLUMNS)} FROM engine "
    "JOIN name ON name.key = engine.key AND name.generation = engine.generation "
    "WHERE name.name = ? AND name.tag = ?"
)


def find_engine(database: Path, key: str) -> Engine | None:
    """The current engine of a key, or None when this way does not find one."""
    return _ask(database, _BY_KEY, (key,))


def find_named_engine(database: Path, name: str, tag: str) -> Engine | None:
    """The engine to which a name points, or None when this way does not find one."""
    return _ask(database, _BY_NAME, (name, tag))


def _ask(database: Path, query: str, values: tuple[str, ...]) -> Engine | None:
    """Run one query on a database opened for reading.

    In a folder that may not be written SQLite cannot open a database in WAL mode, unless it is told
    that nobody changes it; while there is no log beside it, nobody does.
    """
    if not database.is_file():
        return None
    row = _row(database, "mode=ro", query, values)
    if row is None and not database.with_name(f"{database.name}-wal").exists():
        row = _row(database, "immutable=1", query, values)
    if row is None:
        return None
    values_by_column = dict(zip(_COLUMNS, row, strict=True))
    for column in _JSON_COLUMNS:
        values_by_column[column] = json.loads(values_by_column[column])
    return Engine(**values_by_column)


def _row(database: Path, mode: str, query: str, values: tuple[str, ...]) -> tuple[Any, ...] | None:
    """The first row of a query, or None when there is none or the database cannot be read."""
    try:
        address = f"file:{quote(str(database))}?{mode}"
        with closing(sqlite3.connect(address, uri=True, timeout=2.0)) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if found is None or found[0] != HEAD:
                return None
            row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
            return row
    except sqlite3.Error:
        return None
