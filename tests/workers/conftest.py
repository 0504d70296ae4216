"""A farm in a folder of the test's own, and the command line as a process of its own."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest

from storage.records import Json
from workers.cli import command_line
from workers.failures import run_guarded
from workers.farm import Farm, open_farm
from workers.home import Home

ROOT = Path(__file__).parents[2]


def processor_seconds() -> float:
    """Processor time that finished child processes took: not disturbed by a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass
class CommandLine:
    """Runs `enginefarm` with the null compiler on a home of its own."""

    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def farm(self) -> Farm:
        return open_farm(self.home)

    def lines(self, beginning: str = "") -> list[str]:
        """What the null compiler was asked for, by all processes."""
        if not self.log.exists():
            return []
        return [line for line in self.log.read_text().splitlines() if line.startswith(beginning)]

    def model(self, name: str = "m.onnx", content: str = "a model") -> Path:
        path = self.folder / name
        path.write_text(content)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        return path

    def variables(self, null: str) -> dict[str, str]:
        """The environment; `null` has more settings of the null compiler."""
        return {
            "ENGINEFARM_HOME": str(self.home.folder),
            "ENGINEFARM_CACHE": str(self.folder / "cache"),
            "ENGINEFARM_COMPILER": f"null:log={self.log},{null}",
        }

    def start(self, *words: object, null: str = "", **variables: str) -> subprocess.Popen[str]:
        """Start a process of its own."""
        process = subprocess.Popen(
            [sys.executable, "-c", "from workers.cli import main; main()", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **self.variables(null), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(
        self, *words: object, code: int = 0, null: str = "", **variables: str
    ) -> tuple[str, str]:
        """Run a verb to its end in this process; returns stdout and stderr."""
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, {**self.variables(null), **variables}),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            found = run_guarded(command_line, [*map(str, words)])
        assert found == code, (found, out.getvalue(), err.getvalue())
        return out.getvalue(), err.getvalue()

    def json(self, *words: object, code: int = 0, null: str = "", **variables: str) -> Json:
        """Run with --json; returns the one object on stdout."""
        out, _ = self.run(*words, "--json", code=code, null=null, **variables)
        found: Json = json.loads(out)
        return found

    def wait_until(self, true: Callable[[], bool], timeout_s: float = 20.0) -> float:
        """Wait for something to become true; returns how many seconds it took."""
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < timeout_s, "it never became true"
            time.sleep(0.01)
        return time.monotonic() - began


@pytest.fixture
def enginefarm(tmp_path: Path) -> object:
    line = CommandLine(tmp_path)
    yield line
    for process in line.processes:
        if process.poll() is None:
            process.kill()
            process.communicate()
