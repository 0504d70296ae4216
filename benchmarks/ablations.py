"""What each idea behind the CPU target's speed is worth: with it and without it, in turns.

``python -m benchmarks.ablations`` builds a network twice for each idea, once with the idea switched
off, compares their outputs, and times both engines in turns on two threads. It prints a table and
appends the run to ``results/ablations.json``. ``--only NAME,...`` takes some of the ideas.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import engine
from benchmarks import models
from benchmarks.surroundings import RESULTS, append, surroundings, warn_when_busy
from engine.tactics import tactic
from workers.bench_timing import Length, take_turns

THREADS = 2
LARGEST_DIFFERENCE = 1e-2


@contextmanager
def without_tactic(name: str) -> Iterator[None]:
    """Tactics but for one; a build before this has found them all."""
    kept = {key: value for key, value in tactic._TACTICS.items() if key != name}
    assert len(kept) < len(tactic._TACTICS), f"there is no tactic {name}"
    with mock.patch.object(tactic, "_TACTICS", kept):
        yield


@contextmanager
def without_fusions(stage: str, word: str = "") -> Iterator[None]:
    """Fusions but for those of a stage whose statement holds a word."""
    rules = importlib.import_module(
        "engine.fusions.fusion"
    )  # the package has a function of its name
    known = rules.known

    def fewer(asked: str) -> list[Any]:
        return [f for f in known(asked) if asked != stage or word not in f.statement]

    assert len(fewer(stage)) < len(known(stage)), f"no fusion of {stage} has {word!r}"
    with mock.patch.object(rules, "known", fewer):
        yield


def without_slices() -> AbstractContextManager[Any]:
    """Every joined tensor is copied together."""
    return mock.patch("engine.lower.lowering.plan_slices", return_value={})


@dataclass(frozen=True, slots=True)
class Idea:
    """Something that can be left out, and a network that shows what it is worth."""

    name: str
    network: str
    off: Callable[[], AbstractContextManager[Any]] = nullcontext
    level: int = 3
    threads: int = THREADS  # 0 for NumPy


IDEAS: dict[str, Idea] = {
    "winograd": Idea(
        "Winograd for 3 x 3 filters", "resnet50", lambda: without_tactic("c.winograd")
    ),
    "epilogues": Idea(
        "bias, activation and residual in the epilogue",
        "resnet50",
        lambda: without_fusions("layout", "epilogue"),
    ),
    "slices": Idea("tensors made in slices of the joined one", "densenet121", without_slices),
    "attention": Idea("attention as one layer", "bert_base", lambda: without_fusions("attention")),
    "projections": Idea(
        "one product for queries, keys and values",
        "bert_base",
        lambda: without_fusions("projections"),
    ),
    "tuning": Idea("tuning at level 3 instead of none", "resnet50", level=0),
    "threads": Idea("the second thread", "resnet50", threads=1),
    "c": Idea("generated C instead of NumPy", "resnet50", threads=0),
}


def measure(idea: Idea, *, rounds: int, seconds: float) -> dict[str, Any]:
    """One row: the times with the idea and without it, and how far the outputs differ."""
    path = models.load(idea.network)
    with_it = engine.load(engine.build(path, level=3), compile="wait", threads=THREADS)
    with idea.off():
        plan = engine.build(path, level=idea.level)
    without = engine.load(
        plan, compile="wait" if idea.threads else "never", threads=idea.threads or None
    )
    feeds = models.inputs(idea.network)
    first, second = with_it(feeds), without(feeds)
    off = max(
        float(np.max(np.abs(first[name] - second[name])) / (np.ptp(first[name]) or 1.0))
        for name in first
    )
    if off > LARGEST_DIFFERENCE:
        raise RuntimeError(f"{idea.name}: the outputs differ by {off:.1e} of their range")
    with with_it.create_context() as ours, without.create_context() as theirs:
        times = take_turns(
            (lambda: ours.run(feeds), lambda: theirs.run(feeds)), rounds, Length(None, seconds, 2)
        )
    return {
        "idea": idea.name,
        "model": idea.network,
        "seconds": statistics.median(times[0]),
        "without_seconds": statistics.median(times[1]),
        "gain": statistics.median(b / a for a, b in zip(*times, strict=True)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations")
    parser.add_argument("--only", default=",".join(IDEAS), help="names with commas")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each engine")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring per idea")
    parser.add_argument("--output", type=Path, help="append here (default for all: results)")
    options = parser.parse_args(arguments)
    names = [name for name in options.only.split(",") if name]
    entry = {**surroundings(), "threads": THREADS, "rounds": options.rounds, "rows": []}
    warn_when_busy(entry)
    for name in names:
        row = measure(IDEAS[name], rounds=options.rounds, seconds=options.seconds)
        entry["rows"].append(row)
        print(
            f"{row['idea']:46} {row['model']:12} {1e3 * row['seconds']:8.2f} ms, without "
            f"{1e3 * row['without_seconds']:8.2f} ms: {row['gain']:.2f} times as fast",
            flush=True,
        )
    output = options.output or (RESULTS / "ablations.json" if set(names) == {*IDEAS} else None)
    if output is not None:
        append(output, entry)
        print(f"written: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
