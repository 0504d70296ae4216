"""Building a model for the GPU benchmarks: timing records read, made and kept, each step timed."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from engine.building import BuildOptions, assemble_plan, optimise, read_model
from engine.plan.plan import Plan
from engine.tune.records import TimingRecord
from engine.tune.tuning import tune_graph, usable_records

__all__ = ["built", "lines"]


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none without a file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def built(
    path: Path, build: BuildOptions, name: str, options: argparse.Namespace, out: Path
) -> tuple[Plan, dict[str, Any]]:
    """The plan of a model, and what a row says about its build.

    Records come from ``out/timing_records.jsonl``, which takes up the new ones, and the files that
    ``options.records`` lists; the plan is kept as ``name`` where ``options.plans`` says so.
    """
    kept = out / "timing_records.jsonl"
    files = (kept, *map(Path, options.records))
    found = [TimingRecord.from_json(line) for file in files for line in lines(file)]
    known = usable_records(found, build.target)
    start = time.perf_counter()
    graph = optimise(read_model(str(path), build), build.precision)
    read = time.perf_counter()
    fresh = tune_graph(graph, build, known)
    tuned = time.perf_counter()
    plan = assemble_plan(graph, build, [*known, *fresh])
    ended = time.perf_counter()
    with kept.open("a", encoding="utf-8") as file:
        for record in fresh:
            file.write(json.dumps(record.to_json(), sort_keys=True) + "\n")
    if options.plans:
        plan.save(Path(options.plans) / f"{name}.engine")
    program = plan.program
    return plan, {
        "read_s": read - start,
        "tune_s": tuned - read,
        "assemble_s": ended - tuned,
        "build_s": ended - start,
        "fresh_records": len(fresh),
        "layers": len(program.layers),
        "launches": len(program.steps),
        "tactics": dict(Counter(layer.tactic for layer in program.layers)),
        "sum_of_layers_ms": sum(layer.time_ns for layer in program.layers) / 1e6,
    }
