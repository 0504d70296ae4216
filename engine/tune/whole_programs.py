"""Whole programs timed last: what is fastest layer by layer may not be so together.

Kernels of one source overlap better than calls of libraries, and a cache that one layer leaves warm
helps the next. So the best few programs, as chosen and with fewer libraries, with and without
kernels that begin early, with and without branches side by side, are measured as complete graphs,
and that decides. Among those within the noise of the fastest the one with fewer libraries wins.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import DeviceError
from engine.ir.digest import structure_digest
from engine.ir.graph import Graph
from engine.ir.types import Array
from engine.lower.branches import Work, branch_lanes
from engine.lower.lowering import Attempt, Compile, Lowered, UncompiledError, lower
from engine.ops.fixed_sizes import fix_sizes
from engine.plan.plan import host_steps
from engine.plan.structure import Program, Symbol
from engine.profile import profile_symbols
from engine.runtime.steps import flat_steps
from engine.target import CudaTarget, describe
from engine.tune.choosing import (
    LIBRARIES,
    Choices,
    Memo,
    choose_all,
    identity,
    ties,
    usual_point,
)
from engine.tune.contest import Contest, Entrant, Outcome
from engine.tune.isolation import full_places
from engine.tune.records import TimingRecord
from engine.tune.weights import made_weight

if TYPE_CHECKING:
    from engine.building import BuildOptions

__all__ = [
    "LEAST_LEVEL",
    "TACTIC",
    "Alternative",
    "Making",
    "choose_program",
    "lower_chosen",
    "measure_programs",
    "unmeasured_programs",
    "whole_signature",
]

#: What the records of whole programs name as their tactic.
TACTIC = "whole"
LEAST_LEVEL = 2
SAMPLES = 20
#: Largest error of a program against the one as chosen, in units of the spread of an output.
TOLERANCE = 1e-1
#: The part of a device's memory that the weights of all programs may take together.
MEMORY_PART = 4
#: Sources whose steps part what runs on the device.
_ON_HOST = ("numpy", "cupy")
#: Sources to leave out, one try after the other.
_WITHOUT: tuple[tuple[str, ...], ...] = ((), ("cudnn",), ("cublaslt",), ("cublaslt", "cudnn"))


@dataclass(frozen=True, slots=True)
class Making:
    """How a program is made of a graph.

    ``sources`` are those its layers are chosen from, ``early`` lets kernels begin early,
    ``branches`` lets independent branches run side by side.
    """

    sources: tuple[str, ...]
    early: bool = True
    branches: bool = False


@dataclass(frozen=True, slots=True)
class Alternative:
    """A way to make the whole program: allowed sources, and whether kernels begin early.

    ``beside`` are layers that run beside others, with their lanes. ``program`` is the digest of the
    choices that come of it, ``libraries`` are those in use.
    """

    sources: tuple[str, ...]
    early: bool
    program: str
    libraries: tuple[str, ...]
    beside: tuple[tuple[str, int], ...] = ()

    @property
    def branches(self) -> bool:
        """Whether independent branches run side by side."""
        return bool(self.beside)

    @property
    def making(self) -> Making:
        """What to make of the graph."""
        return Making(self.sources, self.early, self.branches)

    def to_json(self) -> dict[str, Any]:
        """The choice of a timing record."""
        return {
            "early": self.early,
            "program": self.program,
            "libraries": list(self.libraries),
            **({"branches": dict(self.beside)} if self.beside else {}),
        }

    def describes(self, record: TimingRecord) -> bool:
        """Whether a record is about this program."""
        choice = record.choice
        made = choice.get("early"), choice.get("program"), choice.get("branches", {})
        return made == (self.early, self.program, dict(self.beside))


def whole_signature(graph: Graph, options: BuildOptions) -> str:
    """What the records of a graph's whole programs are found by."""
    text = json.dumps([TACTIC, structure_digest(graph), options.to_json()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(choices: Choices) -> str:
    """What tells the choices of a program from others."""
    rows = []
    for name, (candidate, _) in choices.last.items():
        cases = [
            [str(case.guards), *identity(case.candidate)] for case in choices.cases.get(name, ())
        ]
        rows.append([name, *identity(candidate), cases])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _libraries(choices: Choices) -> tuple[str, ...]:
    used = {candidate.tactic.split(".")[0] for candidate, _ in choices.last.values()}
    for cases in choices.cases.values():
        used |= {case.candidate.tactic.split(".")[0] for case in cases}
    return tuple(name for name in LIBRARIES if name in used)


def alternatives(
    graph: Graph,
    options: BuildOptions,
    symbols: Sequence[Symbol],
    records: list[TimingRecord],
    memo: Memo,
) -> list[Alternative]:
    """The programs worth measuring, each once: as chosen, with fewer libraries, without overlap.

    Last come those whose branches run side by side, where there are any: as chosen, and with the
    fewest libraries.
    """
    found: dict[tuple[str, bool], Alternative] = {}
    parted: dict[str, Alternative] = {}
    for without in _WITHOUT:
        sources = tuple(name for name in options.tactics if name not in without)
        choices = choose_all(graph, options, symbols, records, allowed=sources, memo=memo)
        if len(choices.last) < sum(node.kind != "View" for node in graph.nodes):
            continue  # a layer would be left to the host
        one = Alternative(sources, True, _digest(choices), _libraries(choices))
        found.setdefault((one.program, True), one)
        if not without:
            found[one.program, False] = dataclasses.replace(one, early=False)
        if beside := _beside(graph, choices):
            parted.setdefault(one.program, dataclasses.replace(one, beside=beside))
    ends = list(parted.values())
    fewest = min(ends, key=lambda item: len(item.libraries), default=None)
    return [*found.values(), *ends[:1], *(item for item in ends[1:] if item is fewest)]


def _beside(graph: Graph, choices: Choices) -> tuple[tuple[str, int], ...]:
    """Layers that may run beside others, with their lanes, by the layers' measured times."""
    works = {}
    for name, (candidate, time_ns) in choices.last.items():
        shown = (case.time_ns for case in choices.cases.get(name, ()) if case.usual)
        works[name] = Work(next(shown, time_ns), candidate.tactic.split(".")[0] in _ON_HOST)
    return tuple(sorted(branch_lanes(graph, works)[0].items()))


def choose_program(
    graph: Graph,
    options: BuildOptions,
    symbols: Sequence[Symbol],
    records: list[TimingRecord],
    memo: Memo,
) -> Making:
    """How the whole program is made.

    A pure function of records: without those of whole programs the options' sources.
    """
    plain = Making(options.tactics)
    if not any(record.tactic == TACTIC for record in records):
        return plain
    signature = whole_signature(graph, options)
    whole = [record for record in records if record.signature == signature]
    measured: list[tuple[Alternative, TimingRecord]] = []
    for item in alternatives(graph, options, symbols, records, memo) if whole else []:
        rows = [record for record in whole if item.describes(record) and record.status == "ok"]
        if rows:
            measured.append((item, max(rows, key=lambda r: (r.samples, -r.time_ns, -r.spread))))
    if not measured:
        return plain
    fastest = min((record for _, record in measured), key=lambda r: (r.time_ns, r.spread))
    tied = [item for item, record in measured if ties(record, fastest)]
    best = min(tied, key=lambda item: (len(item.libraries), item.branches, not item.early))
    return best.making


def lower_chosen(
    graph: Graph,
    options: BuildOptions,
    symbols: Sequence[Symbol],
    records: list[TimingRecord],
    compile: Compile | None,
    making: Making,
    *,
    memo: Memo,
) -> tuple[Lowered, list[tuple[Attempt, str]]]:
    """The program of the chosen candidates.

    A candidate whose kernel does not compile makes room for the next best one; those that did are
    returned with a reason.
    """
    failed: set[Attempt] = set()
    reasons: list[tuple[Attempt, str]] = []
    while True:
        chosen = choose_all(
            graph, options, symbols, records, failed, allowed=making.sources, memo=memo
        )
        try:
            lowered = lower(
                graph,
                symbols,
                chosen.last,
                compile,
                cases=chosen.cases,
                updates=options.updates,
                early=making.early,
                branches=making.branches,
            )
        except UncompiledError as error:  # measured at fixed sizes, or not at all
            fresh = sorted(set(error.attempts) - failed)
            if not fresh:
                raise
            failed.update(fresh)
            reasons += [(attempt, str(error)) for attempt in fresh]
            continue
        return lowered, reasons


def unmeasured_programs(
    graph: Graph, options: BuildOptions, records: Iterable[TimingRecord]
) -> list[Alternative]:
    """All alternatives when some were never measured; none on a CPU and at low levels."""
    target = describe(options.target)
    if not isinstance(target, CudaTarget) or options.level < LEAST_LEVEL:
        return []
    known = list(records)
    signature = whole_signature(graph, options)
    whole = [record for record in known if record.signature == signature]
    symbols = profile_symbols(graph, options.profile)
    found = alternatives(graph, options, symbols, known, {})
    missing = [item for item in found if not any(item.describes(record) for record in whole)]
    return found if missing else []


def measure_programs(
    graph: Graph,
    options: BuildOptions,
    records: list[TimingRecord],
    compile: Compile,
    measure: Callable[[Contest], Sequence[Outcome]],
    toolchain: str,
) -> list[TimingRecord]:
    """Timing records of the whole programs at the usual sizes.

    None when a program needs the host between kernels, or when all of them together do not fit.
    """
    offered = unmeasured_programs(graph, options, records)
    target = describe(options.target)
    symbols = profile_symbols(graph, options.profile)
    if not offered or any(item.source[0] != "input" for item in symbols):
        return []
    assert isinstance(target, CudaTarget)
    point = usual_point(symbols)
    packed: dict[Any, Array] = {}
    memo: Memo = {}
    entrants = []
    for item in offered:
        making = item.making
        lowered, _ = lower_chosen(graph, options, symbols, records, compile, making, memo=memo)
        program = _fixed(lowered.program, point)
        if any(step.function != "copy" for step in host_steps(program.steps)):
            return []
        entrants.append(_entrant(program, lowered, packed))
    if not _fit(entrants, target):  # programs with branches weigh as much as those without
        offered = [item for item in offered if not item.branches]
        entrants = entrants[: len(offered)]
    if not _fit(entrants, target):
        return []
    places = full_places(graph, point)
    contest = Contest(entrants[0], tuple(entrants), SAMPLES, TOLERANCE, places)
    signature = whole_signature(graph, options)
    return [
        TimingRecord(
            signature=signature,
            tactic=TACTIC,
            choice=item.to_json(),
            point=point,
            target=target.to_json(),
            toolchain=toolchain,
            time_ns=outcome.time_ns if outcome.samples else 0.0,
            spread=outcome.spread,
            samples=len(outcome.samples),
            status="failed" if outcome.reason else "ok",
            reason=outcome.reason,
            layer="the whole program",
        )
        for item, outcome in zip(offered, _outcomes(measure, contest), strict=True)
    ]


def _fit(entrants: Sequence[Entrant], target: CudaTarget) -> bool:
    """Whether the weights of all programs together leave the device room for other things."""
    nbytes = sum(array.nbytes for item in entrants for array in item.weights.values())
    return nbytes <= (target.memory_gib << 30) // MEMORY_PART


def _outcomes(
    measure: Callable[[Contest], Sequence[Outcome]], contest: Contest
) -> Sequence[Outcome]:
    """The outcomes; when even the program as chosen cannot be measured, its reason for all."""
    try:
        return measure(contest)
    except DeviceError as error:
        return [Outcome(reason=str(error))] * len(contest.entrants)


def _fixed(program: Program, point: Mapping[str, int]) -> Program:
    """The program at one set of sizes, without choices."""
    flat = dataclasses.replace(program, steps=tuple(flat_steps(program.steps, point)), symbols=())
    fixed: Program = fix_sizes(flat, point)
    return fixed


def _entrant(program: Program, lowered: Lowered, packed: dict[Any, Array]) -> Entrant:
    weights = {name: made_weight(item, packed) for name, item in lowered.packed.items()}
    images = {name: image.tobytes() for name, image in lowered.images.items()}
    return Entrant(program, weights, images)
