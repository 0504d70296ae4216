"""The verbs that look at the farm and change it: each prints for people and for programs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from storage.records import Json
from tests.workers.conftest import ROOT, CommandLine, processor_seconds
from workers.cli import VERBS


def lines(out: str) -> list[Json]:
    """The JSON objects of a listing."""
    return [json.loads(line) for line in out.splitlines()]


def test_the_help_names_every_verb_and_imports_none() -> None:
    code = (
        "import sys; from workers.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('workers.cli.')])"
    )
    began = processor_seconds()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert processor_seconds() - began < 2.0
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


def test_engines_lists_the_newest_first_with_their_names(enginefarm: CommandLine) -> None:
    first = enginefarm.json("build", enginefarm.model("a.onnx", "a"))
    second = enginefarm.json("build", enginefarm.model("b.onnx", "b"), "--name", "net:prod")
    out, _ = enginefarm.run("engines", "--json")
    found = lines(out)
    assert [item["key"] for item in found] == [second["key"], first["key"]]
    assert [item["names"] for item in found] == [["net:prod"], []]
    assert enginefarm.run("engines", "-q")[0].split() == [second["key"], first["key"]]
    enginefarm.home.blobs.delete(first["digest"])
    assert "damaged" in enginefarm.run("engines")[0]


def test_a_name_is_set_listed_followed_and_removed(enginefarm: CommandLine) -> None:
    built = enginefarm.json("build", enginefarm.model())
    enginefarm.run("names", "set", "net:prod", built["key"][:10])
    enginefarm.run("names", "set", "net:test", "net:prod")
    listed = lines(enginefarm.run("names", "--json")[0])
    assert [(item["name"], item["tag"], item["key"]) for item in listed] == [
        ("net", "prod", built["key"]),
        ("net", "test", built["key"]),
    ]
    enginefarm.run("names", "rm", "net:prod")
    assert "net:prod" not in enginefarm.run("names")[0]
    enginefarm.run("names", "rm", "net:prod", code=3)
    enginefarm.run("fetch", "net:prod", code=3)
    enginefarm.run("names", "set", "x", "0" * 64, code=3)


def test_an_engine_is_fetched_by_model_key_prefix_and_name(
    enginefarm: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(enginefarm.folder)
    model = enginefarm.model()
    built = enginefarm.json("build", model, "--name", "net")
    for what in (model, built["key"], built["key"][:8], "net", "net:latest"):
        fetched = enginefarm.json("fetch", what)
        assert fetched["digest"] == built["digest"]
        enginefarm.run("verify", Path("m.engine"))


def test_an_engine_for_another_machine_is_fetched_only_on_request(
    enginefarm: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(enginefarm.folder)
    enginefarm.run("build", enginefarm.model(), "--name", "net")
    monkeypatch.setattr("workers.null_compiler.VENDOR", "other")
    _, err = enginefarm.run("fetch", "net", code=3)
    assert "vendor is 'null' there and 'other' here" in err
    enginefarm.run("fetch", "net", "--any-target")


def test_explain_tells_how_an_engine_was_made(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    built = enginefarm.json("build", model)
    explained = enginefarm.json("explain", model)
    assert (explained["answer"], explained["key"]) == ("hit", built["key"])
    assert [job["kind"] for job in explained["jobs"]] == ["prepare", "tune", "assemble"]
    assert built["key"] in enginefarm.run("explain", built["key"][:9])[0]


def test_explain_tells_what_a_miss_differs_in(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    built = enginefarm.json("build", model)
    explained = enginefarm.json("explain", model, "--level", 5)
    assert (explained["answer"], explained["nearest"]) == ("miss", built["key"])
    assert explained["differences"] == {"options.level": "3 -> 5"}
    assert "no build of this model" in enginefarm.run("explain", enginefarm.model("x.onnx", "x"))[0]


def test_explain_tells_of_a_failure_that_is_remembered(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    enginefarm.run("build", model, code=7, null="fail=prepare.model")
    explained = enginefarm.json("explain", model)
    assert explained["state"] == "failed"
    assert "Nonsense" in explained["failure"]["message"]


def test_builds_are_listed_shown_and_told_step_by_step(enginefarm: CommandLine) -> None:
    built = enginefarm.json("build", enginefarm.model())
    enginefarm.run("build", enginefarm.model("n.onnx", "n"), code=7, null="fail=tune.model")
    assert enginefarm.run("ls", "-q", "--state", "done")[0].split() == [built["build_id"]]
    assert [item["state"] for item in lines(enginefarm.run("ls", "--json")[0])] == [
        "failed",
        "done",
    ]
    status = enginefarm.json("status", built["key"][:12])
    assert [job["state"] for job in status["jobs"]] == ["done", "done", "done"]
    events = lines(enginefarm.run("logs", built["build_id"], "-f", "--json")[0])
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["kind"] for event in events][-2:] == ["published", "done"]
    later = lines(enginefarm.run("logs", built["build_id"], "--after", "3", "--json")[0])
    assert later == events[3:]


def test_a_rerun_builds_a_new_generation(enginefarm: CommandLine) -> None:
    built = enginefarm.json("build", enginefarm.model())
    again = enginefarm.json("rerun", built["build_id"])
    assert (again["key"], again["generation"]) == (built["key"], 2)
    enginefarm.run("cancel", again["build_id"], code=5)


def test_timings_travel_to_another_farm(enginefarm: CommandLine, tmp_path: Path) -> None:
    enginefarm.run("build", enginefarm.model())
    file = tmp_path / "timings.jsonl"
    assert enginefarm.json("timings", "export", file)["exported"] == 6
    other = CommandLine(tmp_path / "other")
    other.folder.mkdir()
    assert other.json("timings", "import", file)["imported"] == 6
    assert other.json("timings", "import", file)["imported"] == 0
    assert len(lines(other.run("timings", "ls", "--json")[0])) == 6
    other.run("build", other.model())
    assert other.lines("measure") == []
    file.write_text('{"record": {}}\n')
    assert "line 1 is no timing" in other.run("timings", "import", file, code=1)[1]


def test_gc_deletes_what_nothing_refers_to_and_nothing_else(enginefarm: CommandLine) -> None:
    built = enginefarm.json("build", enginefarm.model())
    stray = enginefarm.home.blobs.put([b"stray"]).digest
    unfinished = enginefarm.home.folder / "blobs" / "unfinished" / "half"
    unfinished.write_bytes(b"half")
    assert enginefarm.json("gc")["files"] == {}
    would = enginefarm.json("gc", "--dry-run", "--grace-hours", "0")["files"]
    assert str(unfinished) in would
    assert not enginefarm.home.blobs.missing([stray])
    assert enginefarm.json("gc", "--grace-hours", "0")["files"] == would
    assert enginefarm.home.blobs.missing([stray]) == {stray}
    assert not unfinished.exists()
    hit = enginefarm.json("build", enginefarm.model())
    assert hit["answer"] == "hit"
    enginefarm.run("verify", built["file"])


def test_gc_leaves_a_build_that_is_under_way_alone(enginefarm: CommandLine) -> None:
    model = enginefarm.model()
    process = enginefarm.start("build", model, null="tune_s=0.2")
    enginefarm.wait_until(lambda: bool(enginefarm.lines("measure")))
    enginefarm.run("gc", "--grace-hours", "0")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_terminal_sees_the_steps_of_a_build(enginefarm: CommandLine) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from workers.cli import main; main()",
            "build",
            str(enginefarm.model()),
        ],
        cwd=ROOT,
        env={**os.environ, **enginefarm.variables("tune_s=0.3"), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    # Reading a terminal whose other side is closed is an error on Linux.
    with suppress(OSError):
        while piece := os.read(ours, 4096):
            seen += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert process.stdout is not None
    assert process.stdout.read().startswith(b"built in ")
    assert seen.startswith(b"embedded farm in ")
    assert b"measuring" in seen
