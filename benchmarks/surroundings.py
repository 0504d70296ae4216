"""What a result depends on beside the code: commit, versions, class of machine; and the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.kernels.isa import detect
from engine.kernels.runner import default_threads
from engine.runtime.compilation import find_compiler

__all__ = ["RESULTS", "append", "surroundings", "warn_when_busy"]

RESULTS = Path(__file__).parent / "results"
#: A load from which on times say more about other processes than about this one.
BUSY = 0.7
_WORDS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "generic": "no vector extension"}


def surroundings() -> dict[str, Any]:
    """The commit (with "+" for changes on top), versions, the machine in words, its load before."""
    compiler = find_compiler()
    return {
        "commit": commit(),
        "versions": {name: version(name) for name in ("numpy", "onnx", "onnxruntime")},
        "compiler": compiler.identity.splitlines()[-1] if compiler else None,
        "machine": f"{default_threads()} cores, {_WORDS[detect().name]}",
        "load": round(os.getloadavg()[0], 1),
    }


def warn_when_busy(found: dict[str, Any]) -> None:
    """Say on stderr that other work was under way, so that nobody trusts the times too far."""
    if found["load"] > BUSY:
        print(f"the machine is busy (load {found['load']}): times are too long", file=sys.stderr)


def commit() -> str:
    """The commit of this checkout; "unknown" where there is no git."""
    root = Path(__file__).parent.parent
    code = ["engine", "workers", "benchmarks/*.py"]
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add an entry to a file that holds a list of them."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    known.append(entry)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
