"""Building: from a model to a plan, one call per step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import OptionError
from engine.ir.graph import Graph
from engine.ir.weights import check_weights
from engine.plan.lanes import lane_of
from engine.plan.plan import Plan
from engine.plan.report import layer_steps
from engine.plan.structure import Program
from engine.profile import AxisSpec, Profile, parse_shapes, profile_symbols
from engine.target import CudaTarget, Target, describe, sources_of

if TYPE_CHECKING:
    from engine.lower.lowering import Compile
    from engine.tune.records import TimingRecord

__all__ = ["PRECISIONS", "BuildOptions", "assemble_plan", "build", "optimise", "read_model"]

#: Bumped whenever the same inputs give other plan bytes.
CODEGEN = 4
PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a caller may choose about a build; checked, normalised and hashable.

    No tactics given means every source of the target.
    """

    target: str = "cpu"
    precision: str = "fp32"
    level: int = 3
    tactics: tuple[str, ...] = ()
    reference: bool = True
    profile: Profile = field(default_factory=lambda: Profile({}, {}))
    #: Names of outputs to names of the inputs that they update in place.
    updates: Mapping[str, str] = field(default_factory=dict)
    #: Choices that win ties: signature of a layer to tactic and choice.
    lockfile: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            expected = ", ".join(PRECISIONS)
            raise OptionError(f"precision is {self.precision!r}, expected one of {expected}")
        if not 0 <= self.level <= 5:
            raise OptionError(f"level is {self.level}, expected 0 (no tuning) to 5 (exhaustive)")
        sources = sources_of(self.target)
        unknown = sorted(set(self.tactics) - set(sources))
        if unknown:
            raise OptionError(
                f"{self.target} has no tactic source {unknown[0]!r}; it has {', '.join(sources)}"
            )
        object.__setattr__(self, "tactics", self.tactics or sources)

    def to_json(self) -> dict[str, Any]:
        """The options in the form that enters a build key."""
        return {
            "target": self.target,
            "precision": self.precision,
            "level": self.level,
            "tactics": list(self.tactics),
            "reference": self.reference,
            "profile": self.profile.to_json(),
            **({"updates": dict(sorted(self.updates.items()))} if self.updates else {}),
        }


def build(
    model: Any,
    *,
    target: str = "cpu",
    precision: str = "fp32",
    shapes: Mapping[str, Sequence[AxisSpec]] | None = None,
    level: int = 3,
    tactics: Iterable[str] = (),
    reference: bool = True,
    records: Iterable[TimingRecord] = (),
    updates: Mapping[str, str] | None = None,
    report: Callable[[int, int, str], None] | None = None,
    keep: Callable[[Sequence[TimingRecord]], None] | None = None,
) -> Plan:
    """Build a plan from an ONNX model (a path, the bytes of a file, or a ModelProto).

    ``shapes`` gives inputs their profile, as ``{"x": ("batch=1..8..32", 3, 224, 224)}``; ``level``
    runs from 0 (first tactic that works) to 5 (exhaustive tuning); ``tactics`` are the allowed
    sources, all of the target's when none is given; ``reference`` allows operators without a
    meaning here to run in onnx's reference evaluator; ``records`` are timing records to reuse
    instead of measuring, of which those of another target or toolchain are left out; ``updates``
    maps names of outputs to names of inputs that they update in place (a cache, a state):
    ``{"present_key": "past_key"}``. While layers are tuned, ``report`` hears (done, all, what is
    done now) and ``keep`` the timing records as they are made, so that an interrupted build loses
    none. Raises ModelError for a model that cannot be built and OptionError for an option that
    means nothing.
    """
    from engine.tune.tuning import tune_graph, usable_records

    options = BuildOptions(
        target,
        precision,
        level,
        tuple(tactics),
        reference,
        parse_shapes(shapes),
        updates=dict(updates or {}),
    )
    graph = read_model(model, options)
    check_weights(graph)
    graph = optimise(graph, options.precision)
    known = usable_records(records, target)
    known += tune_graph(graph, options, known, report, keep)
    return assemble_plan(graph, options, known)


def read_model(model: Any, options: BuildOptions) -> Graph:
    """The graph of a model with the profile's shapes on its inputs."""
    try:
        from engine.onnx_io import read
    except ImportError as error:
        from engine.errors import MissingExtraError

        raise MissingExtraError("onnx", "build", "building from an ONNX model") from error
    return read(model, reference=options.reference, shapes=options.profile.shapes)


def optimise(graph: Graph, precision: str = "fp32", *, checked: bool = False) -> Graph:
    """The graph after all passes, changed in place."""
    from engine.passes import run_pipeline

    run_pipeline(graph, precision=precision, checked=checked)
    return graph


def device_compiler(target: Target) -> Compile | None:
    """What compiles kernels for a target; None for a processor, which compiles when it runs."""
    if not isinstance(target, CudaTarget):
        return None
    from engine.cuda.compile import compile_kernels

    return functools.partial(compile_kernels, capability=target.capability)


def assemble_plan(graph: Graph, options: BuildOptions, records: Iterable[TimingRecord]) -> Plan:
    """Choose a tactic for every layer from timing records alone, and lower to a plan.

    A candidate whose kernel does not compile makes room for the next best one.
    """
    from engine.tune.choosing import Memo
    from engine.tune.whole_programs import choose_program, lower_chosen

    symbols = profile_symbols(graph, options.profile)
    known = list(records)
    target = describe(options.target)
    memo: Memo = {}
    making = choose_program(graph, options, symbols, known, memo)
    compiler = device_compiler(target)
    lowered, failed = lower_chosen(graph, options, symbols, known, compiler, making, memo=memo)
    refused = [_refused(*attempt, reason) for attempt, reason in failed]
    beside = [_side_by_side(lowered.program)] if making.branches else []
    return Plan(
        program=lowered.program,
        weights=lowered.packed,
        images=lowered.images,
        target=target.to_json(),
        codegen=CODEGEN,
        decisions=(*(decision.to_json() for decision in graph.decisions), *refused, *beside),
    )


def _side_by_side(program: Program) -> dict[str, Any]:
    """The line of a report about layers on auxiliary streams."""
    steps = layer_steps(program)
    found = [layer for layer in sorted(steps) if any(lane_of(step) for step in steps[layer])]
    return {
        "rule": "branches",
        "nodes": [program.layers[layer].name for layer in found],
        "made": True,
        "reason": "the whole program is faster with these layers beside others, on other streams",
    }


def _refused(node: str, tactic: str, choice: str, reason: str) -> dict[str, Any]:
    """The line of a report about a candidate whose kernel does not compile."""
    return {
        "rule": f"{tactic} {choice}",
        "nodes": [node],
        "made": False,
        "reason": reason.splitlines()[0][:300] if reason else "it does not compile",
    }
