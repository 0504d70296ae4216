"""From a graph to a program: every node becomes the steps of its chosen tactic, or a host step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.errors import KernelError
from engine.ir.graph import Graph, Node, Value
from engine.ir.types import Array
from engine.lower.branches import Work, branch_lanes, on_lane, runs_on_host
from engine.lower.builder import PackedWeight, ProgramBuilder, stored_type
from engine.lower.quiet import hold_back
from engine.lower.slices import plan_slices
from engine.lower.updates import Updates, copy_order, plan_updates, viewed
from engine.ops.reference import Reference
from engine.plan.device import DeviceFunction
from engine.plan.operators import operator_to_json
from engine.plan.structure import ChooseStep, Guard, HostStep, Program, Slot, Step, Symbol
from engine.tactics import Candidate

__all__ = ["Attempt", "Case", "Compile", "Lowered", "UncompiledError", "lower"]


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program, how its weights are made, and the machine code of its device functions."""

    program: Program
    packed: Mapping[str, PackedWeight]
    images: Mapping[str, Array] = field(default_factory=dict)


#: Compiles kernels for one GPU, in order.
Compile = Callable[[Sequence[DeviceKernel]], Sequence[Compiled | Failure]]
#: Name of a node, tactic, choice as JSON that sorts.
Attempt = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Case:
    """A candidate for the sizes at which guards hold, with its time in nanoseconds.

    ``pinned`` is the node at fixed sizes for which the candidate was offered, if it was; ``usual``
    says that it serves the usual sizes, so that reports show it.
    """

    guards: tuple[Guard, ...]
    candidate: Candidate
    pinned: Node | None = None
    time_ns: int = 0
    usual: bool = False


class UncompiledError(KernelError):
    """Kernels of chosen candidates do not compile; ``attempts`` names whose."""

    def __init__(self, message: str, attempts: Sequence[Attempt]) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)


def lower(
    graph: Graph,
    symbols: Sequence[Symbol],
    choices: Mapping[str, tuple[Candidate, int]],
    compile: Compile | None = None,
    *,
    cases: Mapping[str, Sequence[Case]] | None = None,
    updates: Mapping[str, str] | None = None,
    early: bool = True,
    branches: bool = False,
) -> Lowered:
    """The program of a graph.

    ``choices`` maps node names to the chosen candidate and its measured time in nanoseconds; a
    node without one runs by its meaning. ``cases`` are tried before it, in order, where their
    guards hold. ``updates`` maps names of outputs to the inputs that they update in place.
    ``early`` lets kernels that can begin while the ones before them end, ``branches`` lets
    independent branches of the graph run side by side on a GPU. ``compile`` is needed when
    candidates launch device kernels; raises UncompiledError when one of them does not compile,
    OptionError for an update that cannot be.
    """
    cases = cases or {}
    planned = plan_updates(graph, updates or {})
    fixed = {name for name, found in cases.items() if not all(c.candidate.strided for c in found)}
    builder = ProgramBuilder(graph, symbols, placed=plan_slices(graph, choices, fixed))
    _place_inputs(builder, graph)
    pending = _place_outputs(builder, graph, planned)
    owners: dict[int, list[Attempt]] = {}
    ends: list[int] = []
    for node in graph.nodes:
        _lower_node(builder, node, choices, cases.get(node.name, ()), owners)
        ends.append(len(builder.steps))
    crossing = _part(builder, graph, ends) if branches else ()
    _copy_outputs(builder, pending)
    for made, replaced in hold_back(builder, crossing).items():
        owners.setdefault(made, owners.get(replaced, []))
    functions, images = _compiled(builder.device_kernels, compile, owners)
    if not early:
        functions = tuple(replace(item, waits=False) for item in functions)
    return Lowered(builder.build(functions), dict(builder.packed), images)


def _part(builder: ProgramBuilder, graph: Graph, ends: Sequence[int]) -> list[int]:
    """Put branches on lanes; the steps that other lanes may wait for, by position.

    ``ends`` are how many steps there were after each node.
    """
    works: dict[str, Work] = {}
    spans: dict[str, tuple[int, int]] = {}
    for node, begin, end in zip(graph.nodes, (0, *ends), ends):
        steps = builder.steps[begin:end]
        if steps:
            time_ns = sum(builder.layers[layer].time_ns for layer in _layers(steps))
            works[node.name] = Work(time_ns, runs_on_host(steps))
            spans[node.name] = begin, end
    lanes, crossing = branch_lanes(graph, works)
    for name, lane in lanes.items():
        for position in range(*spans[name]):
            builder.steps[position] = on_lane(builder.steps[position], lane)
    return sorted(position for name in crossing for position in range(*spans[name]))


def _layers(steps: Sequence[Step]) -> set[int]:
    """The layers of steps."""
    found: set[int] = set()
    for step in steps:
        if isinstance(step, ChooseStep):
            found |= set().union(*(_layers(chosen) for _, chosen in step.cases))
        else:
            found.add(step.layer)
    return found


def _compiled(
    kernels: Sequence[DeviceKernel],
    compile: Compile | None,
    owners: Mapping[int, Sequence[Attempt]],
) -> tuple[tuple[DeviceFunction, ...], dict[str, Array]]:
    """Functions in the order of the kernels, and the images that hold them."""
    if not kernels:
        return (), {}
    assert compile is not None, "device kernels need a compiler"
    functions, images = [], {}
    attempts: list[Attempt] = []
    reasons: list[str] = []
    for index, (kernel, result) in enumerate(zip(kernels, compile(kernels), strict=True)):
        if isinstance(result, Failure):
            reasons.append(f"the kernel {kernel.entry} does not compile: {result.reason}")
            attempts += owners.get(index, ())
            continue
        name = f"image{index}"
        images[name] = np.frombuffer(result.image, np.uint8)
        functions.append(
            DeviceFunction(
                name,
                result.entry,
                result.threads,
                result.shared_nbytes,
                result.cluster,
                result.maps,
                result.waits,
            )
        )
    if reasons:
        raise UncompiledError("; ".join(reasons[:3]), attempts)
    return tuple(functions), images


def _place_inputs(builder: ProgramBuilder, graph: Graph) -> None:
    for value in graph.inputs:
        builder.set_slot(
            value, builder.add_slot(Slot(stored_type(value.type), "input", value.name))
        )


def _place_outputs(
    builder: ProgramBuilder, graph: Graph, updates: Updates | None = None
) -> list[tuple[Value, int]]:
    """Give outputs their slots, and let what they are views of be made there at once.

    Returns the outputs that must be copied at the end: inputs, constants and repeated values, and
    updates of inputs that cannot be made in their memory.
    """
    updates = updates or Updates()
    pending = []
    names = graph.output_names or [value.name for value in graph.outputs]
    for position, (value, name) in enumerate(zip(graph.outputs, names)):
        old = updates.inputs.get(position)
        into = None if old is None else builder.slot(old)
        slot = builder.add_slot(Slot(stored_type(value.type), "output", name, alias=into))
        elsewhere = position in updates.copied or builder.has_slot(value)
        if elsewhere or value.constant is not None or _views_fixed(builder, value):
            pending.append((value, slot))
            continue
        builder.set_slot(value, slot)
        source = viewed(value)
        while source is not None:
            alias = Slot(stored_type(source.type), "arena", alias=slot)
            builder.set_slot(source, builder.add_slot(alias))
            source = viewed(source)
    return pending


def _views_fixed(builder: ProgramBuilder, value: Value) -> bool:
    """Whether a value is a view of something whose place is settled already."""
    source = viewed(value)
    while source is not None:
        if builder.has_slot(source) or source.constant is not None:
            return True
        source = viewed(source)
    return False


def _copy_outputs(builder: ProgramBuilder, pending: list[tuple[Value, int]]) -> None:
    """The copies at the end, none of which reads what another one has written."""
    copies = []
    for value, slot in pending:
        source = builder.slot(value)
        if builder.root(source) != builder.root(slot):
            copies.append((source, slot))
    places = [(builder.root(source), builder.root(slot)) for source, slot in copies]
    try:
        ordered = [copies[places.index(place)] for place in copy_order(places)]
    except ValueError:  # inputs change places: their values are kept aside first
        updating = [item for item in copies if builder.slots[item[1]].alias is not None]
        ordered = [item for item in copies if item not in updating]
        for source, _ in updating:
            kept = builder.add_slot(Slot(builder.slots[source].type, "arena"))
            ordered.append((source, kept))
        ordered += [
            (kept, slot) for (_, kept), (_, slot) in zip(ordered[-len(updating) :], updating)
        ]
    for source, slot in ordered:
        node = Node(_COPY, [], [], name=f"output {builder.slots[slot].name}".rstrip())
        layer = builder.layer(node, "copy", {})
        builder.host(HostStep("copy", {}, (source,), (slot,), layer=layer))


_COPY = Reference(operator="Copy")  # only its name is used, in the report


def _lower_node(
    builder: ProgramBuilder,
    node: Node,
    choices: Mapping[str, tuple[Candidate, int]],
    cases: Sequence[Case],
    owners: dict[int, list[Attempt]],
) -> None:
    if node.kind == "View":
        _lower_view(builder, node)
        return
    chosen = choices.get(node.name)
    if chosen is None:
        lower_on_host(builder, node, builder.layer(node, "numpy", {}))
        return
    last = Case((), chosen[0], time_ns=chosen[1])
    shown = next((case for case in cases if case.usual), last)
    layer = builder.layer(node, shown.candidate.tactic, shown.candidate.choice, shown.time_ns)
    branches = []
    for case in (*cases, last):
        builder.launched.clear()
        with builder.branch() as steps:
            case.candidate.emit(builder, _placed(builder, node, case.pinned), layer)
        branches.append((case.guards, tuple(steps)))
        choice = json.dumps(dict(case.candidate.choice), sort_keys=True)
        for kernel in sorted(builder.launched):
            owners.setdefault(kernel, []).append((node.name, case.candidate.tactic, choice))
    if cases:
        builder.steps.append(ChooseStep(tuple(branches)))
    else:
        builder.steps.extend(branches[0][1])


def _placed(builder: ProgramBuilder, node: Node, pinned: Node | None) -> Node:
    """The node that a candidate is for; one at fixed sizes lies where the node itself does."""
    if pinned is None:
        return node
    for own, other in zip((*node.inputs, *node.outputs), (*pinned.inputs, *pinned.outputs)):
        if own is not None and other is not None:
            builder.same_place(own, other)
    return pinned


def _lower_view(builder: ProgramBuilder, node: Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    if builder.has_slot(output):
        return  # an output, or a view of one: the source is made in place, or copied at the end
    if builder.slots[builder.slot(source)].place == "host":  # Python owns what has no known size
        lower_on_host(builder, node, builder.layer(node, "numpy", {}))
        return
    alias = Slot(stored_type(output.type), "arena", alias=builder.slot(source))
    builder.set_slot(output, builder.add_slot(alias))


def lower_on_host(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """A step that runs the node's operator in Python."""
    function = "reference" if isinstance(node.op, Reference) else "meaning"
    builder.host(
        HostStep(
            function,  # type: ignore[arg-type]
            operator_to_json(node.op),
            tuple(None if value is None else builder.slot(value) for value in node.inputs),
            tuple(builder.slot(value) for value in node.outputs),
            bodies=tuple(_lower_body(builder, body) for body in node.bodies),
            layer=layer,
        )
    )


def _lower_body(owner: ProgramBuilder, graph: Graph) -> Program:
    """A body: all values live in Python, weights belong to the outermost program."""
    builder = ProgramBuilder(graph, top=owner.top or owner)
    _place_inputs(builder, graph)
    pending = []
    for index, value in enumerate(graph.outputs):
        slot = builder.add_slot(Slot(stored_type(value.type), "output", f"output{index}"))
        if builder.has_slot(value) or value.constant is not None:
            pending.append((value, slot))
        else:
            builder.set_slot(value, slot)
    for node in graph.nodes:
        lower_on_host(builder, node, builder.layer(node, "numpy", {}))
    _copy_outputs(builder, pending)
    return builder.build()
