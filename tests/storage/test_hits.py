"""The fast way to an engine sees what the ORM wrote, and says nothing about anything unusual."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from storage import hits
from storage.database import open_database
from storage.records import Engine
from storage.rows import Rows


def engine(generation: int) -> Engine:
    return Engine(
        key="a" * 64,
        generation=generation,
        digest="d" * 64,
        nbytes=10,
        statement_digest="e" * 64,
        build_id="bld_1",
        model_name="m",
        graph_digest="f" * 64,
        context_digest="c" * 64,
        same_as=None,
        target={"name": "cpu"},
        options={"shapes": {"x": ["batch=1..8", 3]}},
        report={"layers": 3, "nested": {"ä": [1.5, None]}},
        build_seconds=1.25,
        created_at=1000.5 + generation,
    )


def insert(rows: Rows, *engines: Engine) -> None:
    rows.builds.insert(
        id="bld_1",
        key="a" * 64,
        generation=1,
        spec={},
        context_digest="c" * 64,
        model_name="m",
        model_path=None,
        at=1.0,
    )
    rows.engines.note_blob("d" * 64, 10, at=1.0)
    rows.engines.note_blob("e" * 64, 10, at=1.0)
    for item in engines:
        rows.engines.insert(item)


def test_the_greatest_generation_of_a_key_is_found_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "farm.db"
    with open_database(path).transaction() as rows:
        insert(rows, engine(2), engine(10), engine(3))
    assert hits.find_engine(path, "a" * 64) == engine(10)
    assert hits.find_engine(path, "b" * 64) is None


def test_a_name_leads_to_the_generation_that_it_points_to(tmp_path: Path) -> None:
    path = tmp_path / "farm.db"
    with open_database(path).transaction() as rows:
        insert(rows, engine(1), engine(2))
        rows.engines.move_name("resnet50", "prod", key="a" * 64, generation=1, at=2.0)
    assert hits.find_named_engine(path, "resnet50", "prod") == engine(1)
    assert hits.find_named_engine(path, "resnet50", "test") is None


def test_no_database_another_schema_and_no_database_at_all_are_misses(tmp_path: Path) -> None:
    path = tmp_path / "farm.db"
    assert hits.find_engine(path, "a" * 64) is None
    assert not path.exists()
    with open_database(path).transaction() as rows:
        insert(rows, engine(1))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert hits.find_engine(path, "a" * 64) is None
    path.write_bytes(b"no database" * 100)
    assert hits.find_engine(path, "a" * 64) is None


def test_looking_for_a_hit_imports_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import storage.hits; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['storage']"
