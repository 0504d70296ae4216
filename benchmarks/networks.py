"""The twelve networks: error against onnxruntime, speed beside it, memory, reference steps.

``python -m benchmarks.networks`` builds each network, compares eight outputs with onnxruntime's and
times both in turns on two threads. It prints a table and appends the run to
``results/networks.json``. Exits with 1 when a network errs by more than 1e-3 of the spread or needs
the reference step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import engine
from benchmarks import models
from benchmarks.surroundings import RESULTS, append, surroundings, warn_when_busy
from engine.debug.memory import arena_use
from engine.debug.peer import Peer, onnxruntime_peer
from engine.plan.plan import host_steps, open_plan
from workers.bench_timing import Length, take_turns

THREADS = 2
SAMPLES = 8
LARGEST_ERROR = 1e-3


def error(net: Any, peer: Peer, feeds: Sequence[Mapping[str, Any]]) -> float:
    """The largest error of any output over some inputs, in units of its spread between them."""
    found = [net(item) for item in feeds]
    wanted = [peer(item) for item in feeds]
    return max(
        models.error(
            [np.asarray(outputs[name]) for outputs in found],
            [np.asarray(outputs[name]) for outputs in wanted],
        )
        for name in wanted[0]
    )


def measure(name: str, *, level: int, rounds: int, seconds: float) -> dict[str, Any]:
    """One row of the table; times are medians of rounds, in seconds."""
    path = models.load(name)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"{name}.engine"
        engine.build(path, level=level).save(place)
        built = time.perf_counter() - began
        net = engine.load(place, compile="wait", threads=THREADS)
        plan = open_plan(place, verify=False)
        peer = onnxruntime_peer(path, THREADS)
        off = error(net, peer, [models.inputs(name, seed=seed) for seed in range(SAMPLES)])
        ours, theirs = _times(net, peer, models.inputs(name), rounds, seconds)
    arena = arena_use(net.program)[0]
    steps = list(host_steps(net.program.steps))
    return {
        "model": name,
        "error": off,
        "engine_seconds": statistics.median(ours),
        "onnxruntime_seconds": statistics.median(theirs),
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "arena_nbytes": arena.nbytes,
        "arena_ratio": arena.ratio,
        "reference_steps": sum(step.function == "reference" for step in steps),
        "host_steps": len(steps),
        "layers": len(net.program.layers),
        "fusions": sum(bool(item.get("made")) for item in plan.decisions),
        "build_seconds": built,
    }


def _times(
    net: Any, peer: Peer, feeds: Mapping[str, Any], rounds: int, seconds: float
) -> list[list[float]]:
    with net.create_context() as context:
        return take_turns(
            (lambda: context.run(feeds), lambda: peer(feeds)),
            rounds,
            Length(None, seconds, 3),
        )


def geometric_mean(ratios: Sequence[float]) -> float:
    return statistics.geometric_mean(ratios) if ratios else 0.0


def row_text(row: Mapping[str, Any]) -> str:
    return (
        f"{row['model']:14} {row['error']:9.2e} {1000 * row['engine_seconds']:9.2f} "
        f"{1000 * row['onnxruntime_seconds']:9.2f} {row['ratio']:7.3f} {row['arena_ratio']:7.3f} "
        f"{row['reference_steps']:5} {row['host_steps']:5} {row['fusions']:7} "
        f"{row['build_seconds']:8.1f}"
    )


HEADER = (
    f"{'network':14} {'error':>9} {'engine ms':>9} {'ort ms':>9} {'ratio':>7} {'arena':>7} "
    f"{'ref':>5} {'host':>5} {'fusions':>7} {'build s':>8}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks")
    parser.add_argument("--models", default=",".join(models.NAMES), help="names with commas")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each runtime")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring per network")
    parser.add_argument("--level", type=int, default=3, help="how much tuning")
    parser.add_argument("--output", type=Path, help="append here (default for all twelve: results)")
    options = parser.parse_args(arguments)
    names = [name for name in options.models.split(",") if name]
    entry = {
        **surroundings(),
        "level": options.level,
        "rounds": options.rounds,
        "threads": THREADS,
        "rows": [],
    }
    warn_when_busy(entry)
    print(HEADER)
    for name in names:
        row = measure(name, level=options.level, rounds=options.rounds, seconds=options.seconds)
        entry["rows"].append(row)
        print(row_text(row), flush=True)
    entry["geometric_mean"] = geometric_mean([row["ratio"] for row in entry["rows"]])
    print(f"geometric mean of {len(names)}: {entry['geometric_mean']:.3f} of onnxruntime's speed")
    # A part of the networks must not pass for all of them.
    output = options.output or (RESULTS / "networks.json" if len(names) == 12 else None)
    if output is not None:
        append(output, entry)
        print(f"written: {output}")
    return 0 if all(map(is_good, entry["rows"])) else 1


def is_good(row: Mapping[str, Any]) -> bool:
    return bool(row["error"] <= LARGEST_ERROR and row["reference_steps"] == 0)


if __name__ == "__main__":
    sys.exit(main())
