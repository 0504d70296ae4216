"""The database: opening, migrating, transactions, and one clear error for each misfortune."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from storage.database import Database, _copy_database, open_database
from storage.errors import (
    ConflictError,
    CorruptError,
    DiskFullError,
    LockedError,
    NewerSchemaError,
    NotFoundError,
    ReadOnlyError,
)
from storage.migrations.upgrade import alembic_config
from storage.records import Build, Timing
from storage.rows import Rows
from storage.rows.jobs import claim_query
from storage.schema import HEAD, REVISIONS
from storage.tables import Table


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(tmp_path / "farm.db")


def insert_build(rows: Rows, id: str, *, key: str = "a" * 64, at: float = 1.0) -> Build:
    return rows.builds.insert(
        id=id,
        key=key,
        generation=1,
        spec={"options": {}},
        context_digest="c" * 64,
        model_name="m",
        model_path=None,
        at=at,
    )


def timing(identity: str, *, signature: str = "conv", samples: int = 20) -> Timing:
    return Timing(
        identity=identity,
        signature=signature,
        tactic="c.direct",
        status="ok",
        time_ns=1000.0,
        samples=samples,
        target_digest="t" * 64,
        toolchain_digest="l" * 64,
        record={"signature": signature, "samples": samples},
        recorded_at=1.0,
    )


def test_the_migrations_make_exactly_the_tables_of_the_code(database: Database) -> None:
    with database._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_the_list_of_revisions_is_that_of_the_migrations() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    found = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS
    assert scripts.get_current_head() == HEAD


def test_what_was_committed_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "farm.db"
    first = open_database(path)
    with first.transaction() as rows:
        build = insert_build(rows, "bld_1")
    first.close()
    with open_database(path).reading() as rows:
        assert rows.builds.get("bld_1") == build


def test_an_exception_rolls_everything_back(database: Database) -> None:
    def insert_and_fail() -> None:
        with database.transaction() as rows:
            insert_build(rows, "bld_1")
            raise RuntimeError("after the insert")

    with pytest.raises(RuntimeError):
        insert_and_fail()
    with database.reading() as rows, pytest.raises(NotFoundError):
        rows.builds.get("bld_1")


def test_a_key_has_one_open_build_and_may_have_many_closed_ones(database: Database) -> None:
    with database.transaction() as rows:
        insert_build(rows, "bld_1")
    with pytest.raises(ConflictError), database.transaction() as rows:
        insert_build(rows, "bld_2")
    with database.transaction() as rows:
        rows.builds.update("bld_1", state="failed")
        insert_build(rows, "bld_2", at=2.0)
        assert rows.builds.find("a" * 64).id == "bld_2"


def test_events_are_numbered_per_build_without_gaps_even_after_a_rollback(
    database: Database,
) -> None:
    with database.transaction() as rows:
        insert_build(rows, "bld_1")
        insert_build(rows, "bld_2", key="b" * 64)

    def append_and_fail() -> None:
        with database.transaction() as rows:
            rows.builds.append_event("bld_1", at=1.0, kind="lost", data={})
            raise RuntimeError

    for attempt in range(3):
        with pytest.raises(RuntimeError):
            append_and_fail()
        with database.transaction() as rows:
            event = rows.builds.append_event("bld_1", at=1.0, kind="kept", data={"n": attempt})
            assert event.number == attempt + 1
    with database.reading() as rows:
        assert [event.number for event in rows.builds.events("bld_1", after=1)] == [2, 3]
        assert rows.builds.events("bld_2") == []


def test_the_better_sampled_timing_stays(database: Database) -> None:
    with database.transaction() as rows:
        assert rows.timings.keep([timing("1", samples=20)]) == 1
        assert rows.timings.keep([timing("1", samples=5), timing("2", signature="a_b")]) == 1
        assert rows.timings.keep([timing("1", samples=40)]) == 1
    with database.reading() as rows:
        known = rows.timings.known(
            target_digest="t" * 64, toolchain_digest="l" * 64, signatures=["conv", "none"]
        )
        assert [(item.identity, item.samples) for item in known] == [("1", 40)]
        assert [item.identity for item in rows.timings.all(containing="_")] == ["2"]
        assert not rows.timings.known(target_digest="x" * 64, toolchain_digest="l" * 64)


def test_many_signatures_may_be_asked_for_at_once(database: Database) -> None:
    with database.transaction() as rows:
        rows.timings.keep(timing(f"{n:04}", signature=f"s{n}") for n in range(1203))
    with database.reading() as rows:
        found = rows.timings.known(
            target_digest="t" * 64,
            toolchain_digest="l" * 64,
            signatures=[f"s{n}" for n in range(1203)],
        )
    assert [item.identity for item in found] == [f"{n:04}" for n in range(1203)]


def test_a_full_disk_is_said_clearly_and_nothing_is_half_written(database: Database) -> None:
    with database.transaction() as rows:
        insert_build(rows, "bld_1")
    database.close()
    # The limit holds for one connection; the pool hands the same one out again.
    with database._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1")

    def write_much() -> None:
        with database.transaction() as rows:
            for number in range(1000):
                rows.builds.append_event("bld_1", at=1.0, kind="much", data={"text": "x" * number})

    with pytest.raises(DiskFullError, match="disk is full"):
        write_much()
    with database.reading() as rows:
        assert rows.builds.events("bld_1") == []


def test_a_database_that_may_not_be_written_is_said_clearly(database: Database) -> None:
    with database._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(ReadOnlyError, match="write access"), database.transaction() as rows:
        insert_build(rows, "bld_1")


def test_a_folder_that_cannot_be_made_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ReadOnlyError, match="write access"):
        open_database(tmp_path / "file" / "farm.db")


def test_a_database_held_by_another_process_is_said_clearly(tmp_path: Path) -> None:
    path = tmp_path / "farm.db"
    open_database(path).close()
    holding = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        waiting = open_database(path, busy_timeout_s=0.1)
        with pytest.raises(LockedError, match="another process"), waiting.transaction() as rows:
            rows.builds.newest()
        with waiting.reading() as rows:
            assert rows.builds.newest() == []
        other.communicate()
    with waiting.transaction() as rows:
        insert_build(rows, "bld_1")


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "farm.db"
    open_database(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NewerSchemaError, match="9999"):
        open_database(path)


def test_a_file_that_is_no_database_is_said_clearly(tmp_path: Path) -> None:
    path = tmp_path / "farm.db"
    path.write_bytes(b"this is a letter, not a database, and long enough to be read" * 20)
    with pytest.raises(CorruptError, match="not a readable database"):
        open_database(path)


def test_the_copy_before_a_migration_holds_what_is_still_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "farm.db"
    database = open_database(path)
    with database.transaction() as rows:
        insert_build(rows, "bld_1")
    _copy_database(path, tmp_path / "copy.db")
    with open_database(tmp_path / "copy.db").reading() as rows:
        assert rows.builds.get("bld_1").key == "a" * 64


def test_several_processes_may_make_one_database_at_once(tmp_path: Path) -> None:
    opening = (
        "import sys; from pathlib import Path; from storage.database import open_database; "
        "sys.stdin.read(1); open_database(Path(sys.argv[1]))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", opening, str(tmp_path / "farm.db")],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(3)
    ]
    outcomes = [process.communicate(b"g") for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outcomes


def test_the_same_tables_and_claims_can_be_said_to_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in Table.metadata.sorted_tables:
        assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE" in str(CreateIndex(index).compile(dialect=dialect))
    claim = str(claim_query(["cpu"], "bld_1").compile(dialect=dialect))
    assert claim.rstrip().endswith("FOR UPDATE OF job SKIP LOCKED")
