"""The checks of `enginefarm doctor`, each a function that finds one thing and never raises."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from workers import settings
from workers.failures import sentence_of
from workers.findings import Finding, State
from workers.gpu_health import GPU_CHECKS
from workers.home import present_home

__all__ = ["CHECKS", "Finding", "all_findings"]

LEAST_DISK = 1_000_000_000
SELF_TEST_TOLERANCE = 1e-4


def all_findings() -> list[Finding]:
    """What every check finds; a check that fails is a finding too."""
    found = []
    for name, check in CHECKS.items():
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                finding = check(name)
            found.append(finding)
            # That there is no compiler has a line of its own.
            texts = (str(item.message) for item in caught)
            found += [Finding(name, "limited", t) for t in texts if "no C compiler" not in t]
        except Exception as error:
            found.append(Finding(name, "broken", sentence_of(error)))
    return list(dict.fromkeys(found))


def _python(name: str) -> Finding:
    text = f"{platform.python_version()} ({sys.executable})"
    return Finding(name, "fine" if sys.version_info >= (3, 11) else "broken", text)


def _processor(name: str) -> Finding:
    from engine.target import CpuTarget, describe

    target = describe("cpu")
    assert isinstance(target, CpuTarget)
    text = f"{platform.machine()}, {target.isa}, {target.threads} threads"
    return Finding(name, "limited" if target.isa == "generic" else "fine", text)


def _compiler(name: str) -> Finding:
    from engine.runtime.compilation import find_compiler, why_no_compiler

    compiler = find_compiler()
    if compiler is None:
        advice = "install gcc or clang, or name one in ENGINEFARM_CC; until then NumPy runs engines"
        return Finding(name, "limited", f"{why_no_compiler()}; {advice}")
    return Finding(name, "fine", f"{compiler.command[0]}: {compiler.identity.splitlines()[-1]}")


def _kernel_cache(name: str) -> Finding:
    from engine.runtime.compilation import cache_folder

    folder = cache_folder()
    chosen = settings.cache_folder() / "c"
    state: State = "fine" if folder == chosen else "limited"
    return Finding(name, state, f"{folder}, mode {_mode(folder)}")


def _mode(folder: Path) -> str:
    return f"{stat.S_IMODE(folder.stat().st_mode):04o}"


def _home(name: str) -> Finding:
    folder = present_home().folder
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if os.access(above, os.W_OK):
            return Finding(name, "fine", f"{folder}, made at the first build")
        return Finding(name, "broken", f"{above} may not be written; set ENGINEFARM_HOME")
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "fine", f"{folder}, mode {_mode(folder)}")
    return Finding(name, "limited", f"{folder} may only be read: engines can be found, not built")


def _disk(name: str) -> Finding:
    from workers.output import size_text

    folder = present_home().folder
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    state: State = "fine" if free >= LEAST_DISK else "limited"
    return Finding(name, state, f"{size_text(free)} free at {existing}")


def _database(name: str) -> Finding:
    home = present_home()
    if not home.database.exists():
        return Finding(name, "fine", f"{home.database}, made at the first build")
    from workers.farm import open_farm

    with open_farm(home).database.reading() as rows:
        rows.timings.all(limit=1)
    return Finding(name, "fine", f"{home.database} opens")


def _package(package: str, *, needed: bool, why: str) -> Callable[[str], Finding]:
    def check(name: str) -> Finding:
        try:
            return Finding(name, "fine", version(package))
        except PackageNotFoundError:
            state: State = "broken" if needed else "limited"
            return Finding(name, state, f"not installed; {why}")

    return check


def _self_test(name: str) -> Finding:
    """A tiny model built, run compiled and on NumPy, and both compared with its meaning."""
    import numpy as np

    from engine.debug.compare import difference
    from engine.debug.interpret import interpret
    from engine.debug.tiny import tiny_graph
    from engine.loading import load

    graph, plan = tiny_graph()
    feeds = {"x": np.linspace(-2, 2, 3 * 16, dtype=np.float32).reshape(3, 16)}
    wanted = interpret(graph, feeds)["y"]
    modes = {"compiled": load(plan, compile="wait"), "numpy": load(plan, compile="never")}
    for mode, engine in modes.items():
        off = difference("y", engine(feeds)["y"], wanted).error
        if not off <= SELF_TEST_TOLERANCE:
            return Finding(name, "broken", f"{mode}: off by {off:.3g} of the spread")
    return Finding(name, "fine", "a tiny engine gives the same, compiled and on NumPy")


CHECKS: dict[str, Callable[[str], Finding]] = {
    "python": _python,
    "processor": _processor,
    "compiler": _compiler,
    "kernel cache": _kernel_cache,
    "home": _home,
    "disk": _disk,
    "database": _database,
    "numpy": _package("numpy", needed=True, why="nothing runs without it"),
    "onnx": _package("onnx", needed=False, why="pip install 'enginefarm[build]' to build engines"),
    "sqlalchemy": _package(
        "sqlalchemy", needed=False, why="pip install 'enginefarm[build]' to build engines"
    ),
    "onnxruntime": _package(
        "onnxruntime", needed=False, why="comparisons take the operators' meanings instead"
    ),
    "self-test": _self_test,
    **GPU_CHECKS,
}
