"""`enginefarm build` in processes of its own: hits, waiting, take-over, interrupts, failures."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy

from scheduler.statements import trusted_keys, verify_statement
from storage import database
from storage.digest import digest_of_bytes, digest_of_file
from tests.workers.conftest import ROOT, CommandLine, processor_seconds

MEASUREMENTS = 3 * 2  # the null compiler's tasks and tactics


def files_of(folder: Path) -> set[str]:
    """Unfinished files in a farm's folder."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (".part" in path.name or "unfinished" in path.parts)
    }


def test_a_build_and_then_a_hit(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    output = enginefarm.folder / "out" / "m.engine"
    built = enginefarm.json("build", model, "-o", output)
    assert built["answer"] == "built"
    assert digest_of_file(output) == (built["digest"], built["size"])
    verify_statement(
        Path(built["statement"]).read_bytes(),
        digest=built["digest"],
        trusted=trusted_keys(enginefarm.home.folder / "keys"),
    )
    hit = enginefarm.json("build", model)
    assert (hit["answer"], hit["key"], hit["digest"]) == ("hit", built["key"], built["digest"])
    assert Path(hit["file"]).read_bytes() == output.read_bytes()
    assert len(enginefarm.lines("measure")) == MEASUREMENTS
    assert enginefarm.lines("verify") == ["verify"]
    assert not files_of(enginefarm.folder)


def test_the_first_line_on_stderr_names_the_mode(enginefarm: CommandLine) -> None:
    out, err = enginefarm.run("build", enginefarm.model())
    assert err.splitlines() == [f"embedded farm in {enginefarm.home.folder}"]
    assert out.startswith("built in ")


def test_a_hit_loads_no_orm_and_takes_less_than_half_a_second(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    enginefarm.run("build", model)
    code = (
        "import sys; from workers.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "rooms = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(rooms & {'sqlalchemy', 'alembic', 'cryptography', 'rich', 'filelock', "
        "'onnx', 'numpy', 'engine'}))"
    )
    times = []
    for _ in range(5):
        began = processor_seconds()
        done = subprocess.run(
            [sys.executable, "-c", code, "build", str(model)],
            cwd=ROOT,
            env={
                **os.environ,
                **enginefarm.variables(""),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        times.append(processor_seconds() - began)
        assert done.stdout.startswith("hit (exact)")
        assert done.stdout.splitlines()[-1] == "[]"
    assert min(times) < 0.5


def test_two_processes_with_one_key_make_one_engine(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    processes = [enginefarm.start("build", model, "--json", null="tune_s=0.1") for _ in range(3)]
    found = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({item["digest"] for item in found}) == 1
    assert sorted(item["answer"] for item in found)[-1] == "built"
    assert enginefarm.lines("prepare") == ["prepare"]
    assert len(enginefarm.lines("measure")) == MEASUREMENTS
    assert enginefarm.lines("assemble") == ["assemble"]
    with enginefarm.farm().database.reading() as rows:
        assert len(rows.engines.newest()) == len(rows.builds.newest()) == 1


@pytest.mark.parametrize("step", ["prepare", "tune", "assemble"])
def test_who_waits_takes_over_when_the_builder_is_killed(
    enginefarm: CommandLine, step: str
) -> None:
    model = enginefarm.model()
    word = {"prepare": "prepare", "tune": "measure", "assemble": "assemble"}[step]
    slow = {"prepare": "prepare_s=60", "tune": "tune_s=0.4", "assemble": "assemble_s=60"}[step]
    builder = enginefarm.start("build", model, "--json", null=slow)
    enginefarm.wait_until(lambda: bool(enginefarm.lines(word)))
    waiter = enginefarm.start("build", model, "--json")
    enginefarm.wait_until(lambda: attached(enginefarm))
    if step == "tune":
        enginefarm.wait_until(lambda: count_timings(enginefarm) >= 2)
    before = len(enginefarm.lines())
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert enginefarm.wait_until(lambda: len(enginefarm.lines()) > before) < 2.0
    out, err = waiter.communicate(timeout=60)
    assert waiter.returncode == 0, err
    assert json.loads(out)["answer"] == "resumed"
    with enginefarm.farm().database.reading() as rows:
        build = rows.builds.newest()[0]
        states = [
            attempt.state
            for job in rows.jobs.of_build(build.id)
            for attempt in rows.jobs.attempts(job.id)
        ]
    assert sorted(states) == ["done", "done", "done", "lost"]
    # Of what was measured at most what was not yet committed is measured again.
    assert len(enginefarm.lines("measure")) <= MEASUREMENTS + (3 if step == "tune" else 0)


def attached(enginefarm: CommandLine) -> bool:
    """Whether a second process waits for the build."""
    with enginefarm.farm().database.reading() as rows:
        builds = rows.builds.newest()
        return len(rows.builds.submissions(builds[0].id)) == 2


def count_timings(enginefarm: CommandLine) -> int:
    """How many timing records are committed."""
    with enginefarm.farm().database.reading() as rows:
        return rows.timings.count()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_keeps_its_timings_and_goes_on_from_there(
    enginefarm: CommandLine, number: signal.Signals
) -> None:
    model = enginefarm.model()
    output = enginefarm.folder / "m.engine"
    process = enginefarm.start("build", model, "-o", output, null="tune_s=0.3")
    enginefarm.wait_until(lambda: len(enginefarm.lines("measure")) >= 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1].startswith("error: interrupted; what was measured is kept")
    assert "Traceback" not in err
    assert not output.exists()
    assert not files_of(enginefarm.folder)
    kept = count_timings(enginefarm)
    assert kept >= 2
    measured = len(enginefarm.lines("measure"))
    enginefarm.run("build", model, "-o", output)
    assert len(enginefarm.lines("measure")) - measured == MEASUREMENTS - kept
    assert enginefarm.lines("prepare") == ["prepare"]


def test_an_interrupt_while_somebody_else_builds_leaves_the_build_alone(
    enginefarm: CommandLine,
) -> None:
    model = enginefarm.model()
    builder = enginefarm.start("build", model, null="tune_s=0.4")
    enginefarm.wait_until(lambda: bool(enginefarm.lines("measure")))
    waiter = enginefarm.start("build", model)
    enginefarm.wait_until(lambda: attached(enginefarm))
    time.sleep(0.3)
    waiter.send_signal(signal.SIGINT)
    waiter.communicate(timeout=10)
    assert waiter.returncode == 130
    builder.communicate(timeout=60)
    assert builder.returncode == 0


@pytest.mark.parametrize("step", ["prepare", "tune", "assemble", "verify"])
def test_a_failure_of_the_model_is_told_and_remembered(enginefarm: CommandLine, step: str) -> None:
    model = enginefarm.model()
    _, err = enginefarm.run("build", model, code=7, null=f"fail={step}.model")
    assert "error: m: " in err
    assert "operator Nonsense" in err
    steps = len(enginefarm.lines())
    failed = enginefarm.json("build", model, code=7)
    assert "known from an earlier build" in failed["error"]
    assert failed["exit_code"] == 7
    assert len(enginefarm.lines()) == steps
    assert enginefarm.json("build", model, "--force")["answer"] == "built"
    assert enginefarm.json("build", model)["answer"] == "hit"


@pytest.mark.parametrize("step", ["prepare", "tune", "assemble", "verify"])
@pytest.mark.parametrize("kind", ["disk", "bug"])
def test_a_failure_of_the_machine_is_told_and_tried_again(
    enginefarm: CommandLine, step: str, kind: str
) -> None:
    model = enginefarm.model()
    _, err = enginefarm.run("build", model, code=8, null=f"fail={step}.{kind}")
    assert ("disk is full" if kind == "disk" else "a mistake in the compiler") in err
    assert not files_of(enginefarm.folder)
    assert enginefarm.json("build", model)["answer"] == "built"


@pytest.mark.parametrize("survives", range(6))
def test_a_disk_that_is_full_for_a_blob_leaves_nothing_half_written(
    enginefarm: CommandLine, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    model = enginefarm.model()
    fsync, calls = os.fsync, count()

    def full_after_some(descriptor: int) -> None:
        if next(calls) >= survives:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr("storage.disk.os.fsync", full_after_some)
        _, err = enginefarm.run("build", model, code=8)
    assert "disk is full" in err
    assert not files_of(enginefarm.folder)
    assert enginefarm.json("build", model)["answer"] in ("built", "resumed")
    assert enginefarm.json("build", model)["answer"] == "hit"


@pytest.mark.parametrize("more_pages", range(0, 8, 2))
def test_a_disk_that_is_full_for_the_database_leaves_a_build_to_resume(
    enginefarm: CommandLine, monkeypatch: pytest.MonkeyPatch, more_pages: int
) -> None:
    model = enginefarm.model()
    enginefarm.farm().database.close()
    with closing(sqlite3.connect(enginefarm.home.database)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    unlimited = database._sqlite_engine

    def limited(path: Path, busy_timeout_s: float) -> sqlalchemy.Engine:
        engine = unlimited(path, busy_timeout_s)

        @sqlalchemy.event.listens_for(engine, "connect")
        def limit(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute(f"PRAGMA max_page_count={pages + more_pages}")

        return engine

    with monkeypatch.context() as patched:
        patched.setattr(database, "_sqlite_engine", limited)
        _, err = enginefarm.run("build", model, code=8, null="tasks=60")
    assert "disk is full" in err
    assert enginefarm.json("build", model, null="tasks=60")["answer"] in ("built", "resumed")
    assert not files_of(enginefarm.folder)


def test_a_cancelled_build_ends_with_its_own_code(enginefarm: CommandLine) -> None:
    process = enginefarm.start("build", enginefarm.model(), null="tune_s=0.5,tasks=20")
    enginefarm.wait_until(lambda: bool(enginefarm.lines("measure")))
    ids, _ = enginefarm.run("ls", "-q")
    enginefarm.run("cancel", ids.strip())
    _, err = process.communicate(timeout=30)
    assert process.returncode == 10
    assert "was cancelled" in err
    assert enginefarm.json("status", ids.strip())["state"] == "cancelled"


def test_a_build_whose_builder_died_is_cancelled_at_once(enginefarm: CommandLine) -> None:
    process = enginefarm.start("build", enginefarm.model(), null="prepare_s=60")
    enginefarm.wait_until(lambda: bool(enginefarm.lines("prepare")))
    process.kill()
    process.communicate()
    ids, _ = enginefarm.run("ls", "-q")
    assert enginefarm.json("cancel", ids.strip())["state"] == "cancelled"


def test_a_model_that_changes_while_it_is_built_is_not_published(
    enginefarm: CommandLine,
) -> None:
    model = enginefarm.model()
    process = enginefarm.start("build", model, null="tune_s=0.4")
    enginefarm.wait_until(lambda: bool(enginefarm.lines("measure")))
    model.write_text("another model")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 8
    assert "was changed while it was being built" in err
    assert not enginefarm.farm().engine("x")
    assert enginefarm.json("build", model)["answer"] == "built"


def test_the_same_graph_in_another_file_is_the_same_engine(enginefarm: CommandLine) -> None:
    first = enginefarm.json("build", enginefarm.model("one.onnx", "a model"))
    second = enginefarm.json("build", enginefarm.model("two.onnx", "a  model "))
    assert second["answer"] == "same"
    assert second["same_as"] == first["key"]
    assert second["digest"] == first["digest"]
    assert enginefarm.lines("assemble") == ["assemble"]
    enginefarm.run("verify", second["file"])


def test_timings_are_shared_by_builds_of_other_options(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    enginefarm.run("build", model, "--level", 2)
    enginefarm.run("build", model, "--level", 3)
    assert len(enginefarm.lines("measure")) == MEASUREMENTS
    assert len(enginefarm.lines("assemble")) == 2


def test_an_engine_whose_blob_is_gone_is_built_again(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    built = enginefarm.json("build", model)
    enginefarm.home.blobs.delete(built["digest"])
    again = enginefarm.json("build", model)
    assert (again["answer"], again["generation"]) == ("built", 2)
    assert again["digest"] == built["digest"]


def test_a_flipped_bit_in_an_engine_is_not_handed_out(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    built = enginefarm.json("build", model)
    blob = enginefarm.home.blobs.path_of(built["digest"])
    damaged = bytearray(blob.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    blob.chmod(0o644)
    blob.write_bytes(damaged)
    output = enginefarm.folder / "copy.engine"
    _, err = enginefarm.run("fetch", model, "-o", output, code=9)
    assert "damaged" in err
    enginefarm.run("build", model, "-o", output, code=9)
    assert not output.exists()
    _, err = enginefarm.run("verify", built["file"], code=9)
    assert "altered" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["build", "absent.onnx"], 3, "no such file"),
        (["build", "{model}", "--shape", "x=a=3..2"], 7, "must not decrease"),
        (["build", "{model}", "--shape", "x"], 2, "NAME=DIMENSION"),
        (["build", "{model}", "--level", "9"], 2, "level"),
        (["build", "{model}", "--name", "a b"], 7, "no engine name"),
        (["build", "{folder}"], 7, "is a folder"),
        (["fetch", "resnet50:prod"], 3, "no name resnet50:prod"),
        (["fetch", "0123456789abcdef"], 3, "no engine"),
        (["fetch", "{model}"], 3, "no engine for"),
        (["status", "bld_000000"], 3, "no build"),
        (["verify", "absent.engine"], 3, "no such file"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_each_mistake_has_one_sentence_and_a_code(
    enginefarm: CommandLine, words: list[str], code: int, said: str
) -> None:
    model = enginefarm.model()
    filled = [word.format(model=model, folder=enginefarm.folder) for word in words]
    out, err = enginefarm.run(*filled, code=code)
    assert said in err
    assert out == ""
    told = enginefarm.json(*filled, code=code)
    assert said in told["error"]
    assert told["exit_code"] == code


def test_a_service_that_is_named_is_not_silently_ignored(enginefarm: CommandLine) -> None:
    _, err = enginefarm.run("ls", code=11, ENGINEFARM_URL="http://localhost:1")
    assert "no farm service" in err


def test_a_traceback_is_shown_when_asked_for(enginefarm: CommandLine) -> None:
    process = enginefarm.start("build", "absent.onnx", ENGINEFARM_TRACEBACK="1")
    _, err = process.communicate(timeout=30)
    assert "Traceback" in err


def test_a_home_that_cannot_be_written_is_told(enginefarm: CommandLine) -> None:
    (enginefarm.folder / "file").write_text("")
    _, err = enginefarm.run(
        "build", enginefarm.model(), code=4, ENGINEFARM_HOME=str(enginefarm.folder / "file")
    )
    assert "may not be written" in err


def test_a_database_of_a_newer_version_is_told(enginefarm: CommandLine) -> None:
    enginefarm.farm().database.close()
    with closing(sqlite3.connect(enginefarm.home.database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    _, err = enginefarm.run("build", enginefarm.model(), code=5)
    assert "9999" in err


def test_a_name_moves_with_a_build_and_with_a_hit(enginefarm: CommandLine) -> None:
    first = enginefarm.json("build", enginefarm.model(), "--name", "net:prod")
    second = enginefarm.json("build", enginefarm.model("n.onnx", "other"), "--name", "net:prod")
    fetched = enginefarm.json("fetch", "net:prod", "-o", enginefarm.folder / "x.engine")
    assert fetched["key"] == second["key"]
    assert enginefarm.json("build", enginefarm.model(), "--name", "net:prod")["answer"] == "hit"
    fetched = enginefarm.json("fetch", "net:prod", "-o", enginefarm.folder / "x.engine")
    assert fetched["key"] == first["key"]
    assert digest_of_bytes((enginefarm.folder / "x.engine").read_bytes()) == first["digest"]
