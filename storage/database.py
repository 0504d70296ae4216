"""Opening the database, and the only begin, commit, rollback and error translation."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy import event, exc
from sqlalchemy.orm import Session

from storage.disk import disk_errors
from storage.errors import (
    ConflictError,
    CorruptError,
    DiskFullError,
    LockedError,
    NewerSchemaError,
    ReadOnlyError,
    StorageError,
)
from storage.rows import Rows
from storage.schema import HEAD, REVISIONS

BUSY_TIMEOUT_S = 10.0

_READING = {"reading": True}
_DURABLE = {"durable": True}


class Database:
    """The farm's rows behind transactions; safe to share between threads.

    `transaction` takes the write lock with its first statement (BEGIN IMMEDIATE in SQLite), so that
    what it read still holds when it writes; `reading` sees one snapshot, whoever writes meanwhile.
    """

    def __init__(self, engine: sqlalchemy.Engine, where: str) -> None:
        self._engine = engine
        self._reader = engine.execution_options(**_READING)
        self._durable = engine.execution_options(**_DURABLE)
        self.where = where

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[Rows]:
        """Rows to read and write; committed at the end, rolled back when an exception leaves.

        A crash of this process loses nothing that was committed. A loss of power may lose the last
        SQLite commits, unless one of them or a later one was `durable`.
        """
        with (
            _translated(self.where),
            Session(self._durable if durable else self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield Rows(session)

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """Rows to read, all as of one moment."""
        with (
            _translated(self.where),
            Session(self._reader, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield Rows(session)

    def close(self) -> None:
        """Give back every connection."""
        self._engine.dispose()


def open_database(path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
    """Open the SQLite database at `path`, making or migrating it when needed.

    Raises ReadOnlyError, LockedError, DiskFullError, CorruptError and NewerSchemaError.
    """
    where = str(path)
    with disk_errors(where):
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = _sqlite_engine(path, busy_timeout_s)
    with disk_errors(where), _translated(where):
        if _revision(engine, path) != HEAD:
            _migrate_alone(engine, path, busy_timeout_s)
    return Database(engine, where)


def _sqlite_engine(path: Path, busy_timeout_s: float) -> sqlalchemy.Engine:
    """A SQLAlchemy engine whose writing transactions begin by taking the write lock."""
    engine = sqlalchemy.create_engine(
        f"sqlite:///{path}", connect_args={"timeout": busy_timeout_s, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        # The driver must not open transactions by itself; `begin` below does.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={int(busy_timeout_s * 1000)}")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        options = connection.get_execution_options()
        if options.get("reading", False):
            connection.exec_driver_sql("BEGIN")
            return
        flush = "FULL" if options.get("durable", False) else "NORMAL"
        connection.exec_driver_sql(f"PRAGMA synchronous={flush}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _revision(engine: sqlalchemy.Engine, path: Path) -> str | None:
    """The revision of a database, None when it is empty or absent; refuses unknown revisions."""
    if not path.exists():
        return None
    with engine.execution_options(**_READING).begin() as connection:
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            return None
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if found is not None and found not in REVISIONS:
        raise NewerSchemaError(
            f"{path} has revision {found}; this version reads {HEAD} and older: "
            "install the version of enginefarm that wrote it, or name another folder"
        )
    return found


def _migrate_alone(engine: sqlalchemy.Engine, path: Path, wait_s: float) -> None:
    """Bring a database to the head while no other process does, keeping a copy of the old one."""
    from storage.migrations.upgrade import upgrade

    try:
        with FileLock(f"{path}.migrating", timeout=wait_s):
            found = _revision(engine, path)
            if found == HEAD:
                return
            if found is not None:
                _copy_database(path, path.with_name(f"{path.name}.before-{HEAD}"))
            with engine.connect() as connection:
                # WAL is a property of the file; it cannot be set inside a transaction.
                raw: Any = connection.connection.driver_connection
                raw.execute("PRAGMA journal_mode=WAL")
            upgrade(engine)
    except Timeout as error:
        raise LockedError(
            f"{path}: another process has been migrating it for more than {wait_s:g} s; try again"
        ) from error


def _copy_database(source: Path, destination: Path) -> None:
    """Copy a SQLite database, its write-ahead log included, to a file made in one move."""
    aside = destination.with_name(f"{destination.name}.part")
    with sqlite3.connect(source) as old, sqlite3.connect(aside) as new:
        old.backup(new)
    new.close()
    old.close()
    shutil.move(aside, destination)


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Turn the errors of drivers and of the operating system into the classes of this room."""
    try:
        yield
    except exc.IntegrityError as error:
        raise ConflictError(f"{where}: {error.orig}") from error
    except exc.DBAPIError as error:
        raise _from_driver(error.orig, where) from error
    except sqlite3.Error as error:
        raise _from_driver(error, where) from error


def _from_driver(error: BaseException | None, where: str) -> StorageError:
    """The error of this room for what a database driver raised."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary == sqlite3.SQLITE_FULL:
        return DiskFullError(f"{where}: the disk is full; free some space and try again")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockedError(
            f"{where}: another process holds the database; wait for it to end and try again"
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return ReadOnlyError(
            f"{where}: the database may not be written; give this user write access "
            "to its folder, or name another folder in ENGINEFARM_HOME"
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptError(
            f"{where}: not a readable database ({error}); move it away to start a new one"
        )
    return StorageError(f"{where}: {error}")
