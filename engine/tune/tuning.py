"""Tuning a graph: which layers are unmeasured, and measuring them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.errors import KernelError
from engine.ir.graph import Graph, Node
from engine.kernels.isa import detect
from engine.lower.builder import ProgramBuilder
from engine.profile import profile_symbols
from engine.runtime.compilation import Function, find_compiler, load
from engine.runtime.kernels import kernel_function
from engine.tactics import Candidate, candidates, is_last_resort
from engine.target import CudaTarget, Target, describe
from engine.tune.choosing import usual_point
from engine.tune.measuring import measure
from engine.tune.records import TimingRecord, layer_signature

if TYPE_CHECKING:
    from engine.building import BuildOptions

__all__ = [
    "Task",
    "compile_candidates",
    "measure_task",
    "toolchain_digest",
    "tune_graph",
    "tuning_tasks",
]

#: Candidates measured per layer of a CPU, by level; level 0 measures nothing.
BREADTH = {0: 0, 1: 2, 2: 3, 3: 4, 4: 8, 5: 10_000}
#: Candidates measured per layer and tactic of a GPU, where many compile in parallel.
DEVICE_BREADTH = {0: 0, 1: 2, 2: 4, 3: 8, 4: 16, 5: 10_000}


@dataclass(frozen=True, slots=True)
class Task:
    """One layer to measure: its signature, a node that has it, and the candidates that race."""

    signature: str
    node: Node
    point: Mapping[str, int]
    own_point: Mapping[str, int]
    offered: tuple[Candidate, ...]


@cache
def toolchain_digest() -> str:
    """What the speed of a candidate depends on beside the device: compiler and NumPy versions."""
    import numpy

    compiler = find_compiler()
    version = compiler.identity.rpartition("\n")[2] if compiler else "none"
    return hashlib.sha256(f"{version}|{numpy.__version__}".encode()).hexdigest()[:16]


def tuning_tasks(graph: Graph, options: BuildOptions, known: Iterable[TimingRecord]) -> list[Task]:
    """The layers for which more than one candidate is offered and some were never measured."""
    point = usual_point(profile_symbols(graph, options.profile))
    target = describe(options.target)
    measured = {record.key for record in known}
    tasks: dict[str, Task] = {}
    for node in graph.nodes:
        offered, _ = candidates(node, options.tactics, point, target)
        chosen = likeliest(offered, options.level, target)
        if len(chosen) < 2:
            continue
        signature, own_point = layer_signature(node, point)
        keys = [(signature, c.tactic, json.dumps(dict(c.choice), sort_keys=True)) for c in chosen]
        if all(key in measured for key in keys):
            continue
        tasks.setdefault(signature, Task(signature, node, point, own_point, tuple(chosen)))
    return list(tasks.values())


def likeliest(offered: Sequence[Candidate], level: int, target: Target) -> list[Candidate]:
    """The candidates worth measuring at a level.

    On a GPU each tactic sends its best, and what is of last resort stays out when others are there.
    """
    if not isinstance(target, CudaTarget):
        return list(offered[: BREADTH[level]])
    taken: dict[str, int] = {}
    chosen = []
    for candidate in offered:
        if chosen and level < 5 and is_last_resort(candidate, target):
            continue
        count = taken[candidate.tactic] = taken.get(candidate.tactic, 0) + 1
        if count <= DEVICE_BREADTH[level]:
            chosen.append(candidate)
    return chosen


def measure_task(task: Task, target: Mapping[str, Any]) -> list[TimingRecord]:
    """Timing records of all candidates of one layer."""
    return [
        TimingRecord(
            signature=task.signature,
            tactic=result.candidate.tactic,
            choice=dict(result.candidate.choice),
            point=dict(task.own_point),
            target=dict(target),
            toolchain=toolchain_digest(),
            time_ns=result.time_ns if result.samples else 0.0,
            spread=result.spread,
            samples=len(result.samples),
            status="failed" if result.reason else "ok",
            reason=result.reason,
            layer=task.node.name,
        )
        for result in measure(task.node, task.offered, task.point)
    ]


def compile_candidates(tasks: Sequence[Task]) -> None:
    """Compile the kernels of all candidates at once, on all processors.

    What the compiler refuses is left to the measurement of its candidate, which keeps the reason.
    """
    if find_compiler() is None:
        return
    isa = detect()
    functions: dict[str, Function] = {}
    for task in tasks:
        for candidate in task.offered:
            builder = ProgramBuilder(Graph())
            candidate.emit(builder, task.node, builder.layer(task.node, candidate.tactic, {}))
            for kernel in builder.kernels:
                function = kernel_function(kernel, isa)
                functions[function.name] = function
    with contextlib.suppress(KernelError):
        load(list(functions.values()), isa)


def tune_tasks(
    tasks: Sequence[Task],
    target: Mapping[str, Any],
    report: Callable[[int, int, str], None] | None = None,
) -> Iterator[TimingRecord]:
    """Measure tasks one after the other; ``report`` hears (done, all, layer)."""
    compile_candidates(tasks)
    for index, task in enumerate(tasks):
        if report is not None:
            report(index, len(tasks), task.node.name)
        yield from measure_task(task, target)


def tune_graph(
    graph: Graph,
    options: BuildOptions,
    known: Sequence[TimingRecord],
    report: Callable[[int, int, str], None] | None = None,
) -> list[TimingRecord]:
    """Records of everything in a graph that ``known`` does not cover."""
    tasks = tuning_tasks(graph, options, known)
    return list(tune_tasks(tasks, describe(options.target).to_json(), report))
