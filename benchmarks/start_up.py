"""How soon things are ready: imports, hits, first outputs, builds; and a model of 3 GB.

``python -m benchmarks.start_up`` measures each in processes of its own, prints what was found
beside what is to be reached, and appends it to ``results/start_up.json``. ``--only NAME,...``
takes some. Exits with 1 when something is not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.surroundings import RESULTS, append, surroundings, warn_when_busy

ROOT = Path(__file__).parent.parent
REPEATS = 7
GREAT_LAYERS, GREAT_WIDTH = 48, 4096  # 48 matrices of 64 MB


@dataclass(frozen=True, slots=True)
class Measured:
    """One number with its unit, and the greatest that is good."""

    name: str
    value: float
    unit: str
    most: float

    @property
    def is_good(self) -> bool:
        return self.value <= self.most


@contextmanager
def private_folders() -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder that goes away, and an environment with home and caches inside it."""
    with tempfile.TemporaryDirectory(prefix="enginefarm-bench-") as name:
        folder = Path(name)
        yield folder, environment(folder)


def environment(folder: Path, **more: str) -> dict[str, str]:
    paths = {
        "ENGINEFARM_HOME": str(folder / "home"),
        "ENGINEFARM_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **paths, **more}


def child(task: str, *words: object, env: dict[str, str], cwd: Path | None = None) -> Any:
    """Run a task of `benchmarks.start_up_tasks` in a process of its own; what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.start_up_tasks", task, *map(str, words)],
        env=env,
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{task} failed: {done.stderr.strip()[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def model(name: str) -> Path:
    """A benchmark network, made before anything is timed."""
    from benchmarks import models

    return models.load(name)


def importing() -> list[Measured]:
    """`import engine` alone, which imports names when they are used, and with those names."""
    found = []
    with private_folders() as (_, env):
        for title, names in (
            ("import engine", ""),
            ("import engine, load and build", "load,build"),
        ):
            times = [child("import", names, env=env)["seconds"] for _ in range(REPEATS)]
            found.append(Measured(title, statistics.median(times), "s", 0.2))
    return found


def hits() -> list[Measured]:
    path = model("resnet50")
    with private_folders() as (_, env):
        build = child("command", "build", path, "--level", 0, env=env)
        assert build["answer"] == "built", build
        found = [child("command", "build", path, "--level", 0, env=env) for _ in range(REPEATS)]
    assert all(item["answer"] == "hit" for item in found)
    seconds = statistics.median(item["process_seconds"] for item in found)
    return [Measured("enginefarm build, a hit", seconds, "s", 0.5)]


def resnet50() -> list[Measured]:
    """Built cold by the command line, then loaded with the C cache warm and cold."""
    path = model("resnet50")
    with private_folders() as (folder, env):
        plan = folder / "resnet50.engine"
        build = child("command", "build", path, "-o", plan, env=env)
        assert build["answer"] == "built", build
        child("first_output", plan, env=env)  # leaves the kernels in the cache
        warm = [child("first_output", plan, env=env) for _ in range(REPEATS)]
        cold = []
        for turn in range(3):
            fresh = environment(folder, ENGINEFARM_CACHE=str(folder / f"cold{turn}"))
            cold.append(child("first_output", plan, env=fresh))
    return [
        Measured("build ResNet-50, cold, tuned", build["process_seconds"], "s", 15),
        Measured("ResNet-50 first output, warm", _median(warm), "s", 0.3),
        Measured("ResNet-50 first output, cold", _median(cold), "s", 0.6),
    ]


def _median(found: Sequence[dict[str, Any]]) -> float:
    return float(statistics.median(item["seconds"] for item in found))


def great() -> list[Measured]:
    """A model with 3 GB of external data: memory of its build, time and memory of its load."""
    with private_folders() as (folder, env):
        made = child("make_great", folder, GREAT_LAYERS, GREAT_WIDTH, env=env)
        plan = folder / "great.engine"
        build = child("build_great", made["model"], plan, env=env)
        (folder / "great.bin").unlink()
        loaded = child("load_great", plan, env=env)
    size = made["nbytes"]
    return [
        Measured("3 GB model, peak memory of build over size", build["peak"] / size, "", 1.3),
        Measured("3 GB model, memory of its own after load", loaded["own"] / 1e6, "MB", 64),
        Measured("3 GB model, load with verification", loaded["seconds"], "s", 30),
    ]


def identical() -> list[Measured]:
    """Builds from the same records in other folders and with other hash seeds: distinct files."""
    source = model("shufflenet").parent
    with private_folders() as (folder, env):
        digests = set()
        records = folder / "records.json"
        child("record", source / "batch_1.onnx", records, env=env)
        for turn in range(3):
            place = folder / f"copy{turn}"
            shutil.copytree(source, place)
            seeded = environment(folder, PYTHONHASHSEED=str(turn * 1000 + 1))
            found = child("build", "batch_1.onnx", records, env=seeded, cwd=place)
            digests.add(found["digest"])
    return [Measured("distinct files of one build", len(digests), "", 1)]


MEASUREMENTS: dict[str, Callable[[], list[Measured]]] = {
    "import": importing,
    "hit": hits,
    "resnet50": resnet50,
    "great": great,
    "identical": identical,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="names with commas")
    parser.add_argument("--output", type=Path, help="append here (default for all: results)")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    entry, found = surroundings(), list[Measured]()
    warn_when_busy(entry)
    for name in names:
        for item in MEASUREMENTS[name]():
            found.append(item)
            verdict = "reached" if item.is_good else "NOT reached"
            print(f"{item.name:44} {item.value:8.3f} {item.unit:3} (most {item.most:g}) {verdict}")
            sys.stdout.flush()
    entry["measured"] = [
        {"name": item.name, "value": item.value, "unit": item.unit, "most": item.most}
        for item in found
    ]
    output = options.output or (
        RESULTS / "start_up.json" if set(names) == {*MEASUREMENTS} else None
    )
    if output is not None:
        append(output, entry)
        print(f"written: {output}")
    return 0 if all(item.is_good for item in found) else 1


if __name__ == "__main__":
    sys.exit(main())
