"""Tuning a graph: which layers are unmeasured, and measuring them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, Self

from engine.errors import KernelError, OptionError
from engine.ir.graph import Graph, Node
from engine.kernels.isa import detect
from engine.lower.builder import ProgramBuilder
from engine.lower.updates import shared_operands
from engine.profile import profile_symbols
from engine.runtime.compilation import Function, find_compiler, load
from engine.runtime.kernels import kernel_function
from engine.tactics import Candidate, is_last_resort
from engine.target import CpuTarget, CudaTarget, Target, describe
from engine.tune.choosing import identity, offers, points_of, unanswered
from engine.tune.measuring import measure
from engine.tune.records import TimingRecord, layer_signature
from engine.tune.whole_programs import LEAST_LEVEL, unmeasured_programs

if TYPE_CHECKING:
    from engine.building import BuildOptions

__all__ = [
    "CpuTuner",
    "Task",
    "Tuner",
    "compile_candidates",
    "is_described",
    "measure_task",
    "open_tuner",
    "toolchain_digest",
    "tune_graph",
    "tuning_tasks",
    "usable_records",
]

#: Candidates measured per layer of a CPU, by level; level 0 measures nothing.
BREADTH = {0: 0, 1: 2, 2: 3, 3: 4, 4: 8, 5: 10_000}
#: Up to this level a library is not asked again about a layer of which records of it tell.
LAST_LEVEL_OF_RECORDS = 3
#: Candidates measured per layer and tactic of a GPU, where many compile in parallel.
DEVICE_BREADTH = {0: 0, 1: 2, 2: 4, 3: 8, 4: 16, 5: 10_000}


@dataclass(frozen=True, slots=True)
class Task:
    """One layer to measure: its signature, a node that has it, and the candidates that race.

    ``shared`` lists operands and results of the node that share their memory.
    """

    signature: str
    node: Node
    point: Mapping[str, int]
    own_point: Mapping[str, int]
    offered: tuple[Candidate, ...]
    shared: tuple[tuple[int, int], ...] = ()


def toolchain_digest(target: str = "cpu") -> str:
    """What the speed of a candidate depends on beside the device."""
    if target.partition(":")[0] == "cuda":
        from engine.tune.device_tuning import device_toolchain

        return device_toolchain()
    return _cpu_toolchain()


@cache
def _cpu_toolchain() -> str:
    """Compiler and NumPy versions."""
    import numpy

    compiler = find_compiler()
    version = compiler.identity.rpartition("\n")[2] if compiler else "none"
    return hashlib.sha256(f"{version}|{numpy.__version__}".encode()).hexdigest()[:16]


def usable_records(records: Iterable[TimingRecord], target: str) -> list[TimingRecord]:
    """The records of this target made with this toolchain; others say nothing about it."""
    known = list(records)
    if not known:
        return []
    device, toolchain = describe(target).to_json(), toolchain_digest(target)
    return [r for r in known if r.toolchain == toolchain and dict(r.target) == device]


def tuning_tasks(graph: Graph, options: BuildOptions, known: Iterable[TimingRecord]) -> list[Task]:
    """The layers for which more than one candidate is offered and some were never measured.

    A layer of symbolic sizes is one task per point at which the profile is tuned.
    """
    target = describe(options.target)
    points = points_of(options, profile_symbols(graph, options.profile), target)
    shared = shared_operands(graph, options.updates) if isinstance(target, CudaTarget) else {}
    table: dict[str, list[TimingRecord]] = {}
    for record in known:
        table.setdefault(record.signature, []).append(record)
    tasks: dict[str, Task] = {}
    for point, node in itertools.product(points, graph.nodes):
        if node.kind == "View":  # no work, and no form that a signature is made of
            continue
        pairs = shared.get(node.name, ())
        signature, own_point = layer_signature(node, point, pairs)
        rows = table.get(signature, ())
        asked = options.tactics
        if options.level <= LAST_LEVEL_OF_RECORDS:
            asked = tuple(unanswered(asked, rows, target))
        found = [item.candidate for item in offers(node, asked, point, target)]
        chosen = likeliest(found, options.level, target)
        if len(chosen) + len(options.tactics) - len(asked) < 2:  # a library not asked is a rival
            continue
        measured = {record.key for record in rows}
        if all((signature, *identity(candidate)) in measured for candidate in chosen):
            continue
        tasks.setdefault(signature, Task(signature, node, point, own_point, tuple(chosen), pairs))
    return list(tasks.values())


def likeliest(offered: Sequence[Candidate], level: int, target: Target) -> list[Candidate]:
    """The candidates worth measuring at a level.

    On a GPU each tactic sends its best, and what is of last resort stays out when others are there.
    """
    if not isinstance(target, CudaTarget):
        return list(offered[: BREADTH[level]])
    taken: dict[str, int] = {}
    chosen: list[Candidate] = []
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


class Tuner(Protocol):
    """Compiles and measures tasks on one device; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def compile(
        self, tasks: Sequence[Task], report: Callable[[int, int], None] | None = None
    ) -> None:
        """Compile the kernels of all candidates; ``report`` may hear (done, all)."""
        ...

    def measure(self, task: Task) -> list[TimingRecord]:
        """Timing records of all candidates of one layer."""
        ...

    def measure_programs(
        self, graph: Graph, options: BuildOptions, records: Sequence[TimingRecord]
    ) -> list[TimingRecord]:
        """Timing records of whole programs, when those of all layers are there."""
        ...


class CpuTuner:
    """Measures in this process."""

    def __init__(self, target: CpuTarget) -> None:
        self.target = target.to_json()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def compile(
        self, tasks: Sequence[Task], report: Callable[[int, int], None] | None = None
    ) -> None:
        """Compile with the system's compiler, all in one call."""
        compile_candidates(tasks)

    def measure(self, task: Task) -> list[TimingRecord]:
        """Time the candidates in turns."""
        return measure_task(task, self.target)

    def measure_programs(
        self, graph: Graph, options: BuildOptions, records: Sequence[TimingRecord]
    ) -> list[TimingRecord]:
        """None: on a processor layers run one after the other, and their times add up."""
        return []


def open_tuner(name: str) -> Tuner:
    """What measures on the target called ``name``.

    Raises OptionError for a GPU that is only described, DeviceError when there is none here.
    """
    target = describe(name)
    if isinstance(target, CpuTarget):
        return CpuTuner(target)
    _, _, which = name.partition(":")
    if is_described(name):
        raise OptionError(
            f"{name} is a description, there is nothing to measure on; build with level 0, give "
            "timing records of such a GPU for every layer, or build on one with the target cuda"
        )
    from engine.tune.device_tuning import DeviceTuner

    return DeviceTuner(target, int(which or 0))


def is_described(name: str) -> bool:
    """Whether a target is a GPU that is only described, not one of this machine."""
    kind, _, which = name.partition(":")
    return kind == "cuda" and bool(which) and not which.isdigit()


def tune_graph(
    graph: Graph,
    options: BuildOptions,
    known: Sequence[TimingRecord],
    report: Callable[[int, int, str], None] | None = None,
    keep: Callable[[Sequence[TimingRecord]], None] | None = None,
) -> list[TimingRecord]:
    """Records of everything in a graph that ``known`` does not cover; on a GPU whole programs last.

    ``report`` hears (done, all, layer), ``keep`` the records of each layer as soon as they are
    made, so that whoever interrupts this loses none.
    """
    tasks = tuning_tasks(graph, options, known)
    if not tasks and not _lacks_programs(graph, options, known):
        return []
    found: list[TimingRecord] = []

    def made(records: Sequence[TimingRecord]) -> None:
        found.extend(records)
        if keep is not None:
            keep(records)

    def compiled(done: int, kernels: int) -> None:
        if report is not None:
            report(0, len(tasks), f"compiling, {done} of {kernels} kernels")

    with open_tuner(options.target) as tuner:
        tuner.compile(tasks, compiled)
        for index, task in enumerate(tasks):
            if report is not None:
                report(index, len(tasks), task.node.name)
            made(tuner.measure(task))
        if options.level >= LEAST_LEVEL and isinstance(describe(options.target), CudaTarget):
            if report is not None:
                report(len(tasks), len(tasks), "whole programs")
            made(tuner.measure_programs(graph, options, [*known, *found]))
    return found


def _lacks_programs(graph: Graph, options: BuildOptions, records: Sequence[TimingRecord]) -> bool:
    """Whether whole programs are to be measured here that never were."""
    return not is_described(options.target) and bool(unmeasured_programs(graph, options, records))
