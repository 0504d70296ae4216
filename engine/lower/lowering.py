"""From a graph to a program: every node becomes the steps of its chosen tactic, or a host step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.errors import KernelError
from engine.ir.graph import Graph, Node, Value
from engine.ir.types import Array
from engine.lower.builder import PackedWeight, ProgramBuilder, stored_type
from engine.lower.slices import plan_slices
from engine.ops.reference import Reference
from engine.plan.device import DeviceFunction
from engine.plan.operators import operator_to_json
from engine.plan.structure import HostStep, Program, Slot, Symbol
from engine.tactics import Candidate

__all__ = ["Compile", "Lowered", "lower"]


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program, how its weights are made, and the machine code of its device functions."""

    program: Program
    packed: Mapping[str, PackedWeight]
    images: Mapping[str, Array] = field(default_factory=dict)


#: Compiles kernels for one GPU, in order.
Compile = Callable[[Sequence[DeviceKernel]], Sequence[Compiled | Failure]]


def lower(
    graph: Graph,
    symbols: Sequence[Symbol],
    choices: Mapping[str, tuple[Candidate, int]],
    compile: Compile | None = None,
) -> Lowered:
    """The program of a graph.

    ``choices`` maps node names to the chosen candidate and its measured time in nanoseconds; a
    node without one runs by its meaning. ``compile`` is needed when candidates launch device
    kernels; raises KernelError when one of them does not compile.
    """
    builder = ProgramBuilder(graph, symbols, placed=plan_slices(graph, choices))
    _place_inputs(builder, graph)
    pending = _place_outputs(builder, graph)
    for node in graph.nodes:
        _lower_node(builder, node, choices)
    _copy_outputs(builder, pending)
    functions, images = _compiled(builder.device_kernels, compile)
    return Lowered(builder.build(functions), dict(builder.packed), images)


def _compiled(
    kernels: Sequence[DeviceKernel], compile: Compile | None
) -> tuple[tuple[DeviceFunction, ...], dict[str, Array]]:
    """Functions in the order of the kernels, and the images that hold them."""
    if not kernels:
        return (), {}
    assert compile is not None, "device kernels need a compiler"
    functions, images = [], {}
    for index, (kernel, result) in enumerate(zip(kernels, compile(kernels), strict=True)):
        if isinstance(result, Failure):
            raise KernelError(f"the kernel {kernel.entry} does not compile: {result.reason}")
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
    return tuple(functions), images


def _place_inputs(builder: ProgramBuilder, graph: Graph) -> None:
    for value in graph.inputs:
        builder.set_slot(
            value, builder.add_slot(Slot(stored_type(value.type), "input", value.name))
        )


def _place_outputs(builder: ProgramBuilder, graph: Graph) -> list[tuple[Value, int]]:
    """Give outputs their slots, and let what they are views of be made there at once.

    Returns the outputs that must be copied at the end: inputs, constants and repeated values.
    """
    pending = []
    names = graph.output_names or [value.name for value in graph.outputs]
    for value, name in zip(graph.outputs, names):
        slot = builder.add_slot(Slot(stored_type(value.type), "output", name))
        if builder.has_slot(value) or value.constant is not None or _views_fixed(builder, value):
            pending.append((value, slot))
            continue
        builder.set_slot(value, slot)
        source = _viewed(value)
        while source is not None:
            alias = Slot(stored_type(source.type), "arena", alias=slot)
            builder.set_slot(source, builder.add_slot(alias))
            source = _viewed(source)
    return pending


def _viewed(value: Value) -> Value | None:
    """What a value is a view of."""
    if value.producer is None or value.producer.kind != "View":
        return None
    return value.producer.inputs[0]


def _views_fixed(builder: ProgramBuilder, value: Value) -> bool:
    """Whether a value is a view of something whose place is settled already."""
    source = _viewed(value)
    while source is not None:
        if builder.has_slot(source) or source.constant is not None:
            return True
        source = _viewed(source)
    return False


def _copy_outputs(builder: ProgramBuilder, pending: list[tuple[Value, int]]) -> None:
    for value, slot in pending:
        node = Node(_COPY, [], [], name=f"output {builder.slots[slot].name}")
        layer = builder.layer(node, "copy", {})
        builder.host(HostStep("copy", {}, (builder.slot(value),), (slot,), layer=layer))


_COPY = Reference(operator="Copy")  # only its name is used, in the report


def _lower_node(
    builder: ProgramBuilder, node: Node, choices: Mapping[str, tuple[Candidate, int]]
) -> None:
    if node.kind == "View":
        _lower_view(builder, node)
        return
    chosen = choices.get(node.name)
    if chosen is not None:
        candidate, time_ns = chosen
        layer = builder.layer(node, candidate.tactic, candidate.choice, time_ns)
        candidate.emit(builder, node, layer)
        return
    lower_on_host(builder, node, builder.layer(node, "numpy", {}))


def _lower_view(builder: ProgramBuilder, node: Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    if builder.has_slot(output):
        return  # an output, or a view of one: the source is made in place, or copied at the end
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
