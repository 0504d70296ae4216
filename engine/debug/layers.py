"""Every layer of an engine by itself: what it makes of its inputs against what its node means.

The program is run with a buffer of its own for every value, so that nothing is overwritten. Each
node's meaning is then computed from the values that the engine itself gave the node: an error
belongs to the layer that made it, and does not add up along the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.debug.compare import Difference, difference
from engine.debug.interpret import run_node
from engine.errors import OptionError
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim, evaluate
from engine.ir.types import Array, TensorType
from engine.kernels.runner import Runner
from engine.lower.placement import is_joining
from engine.plan.accesses import step_accesses, touched_slots
from engine.plan.arena import Request, plan_arena
from engine.plan.slots import is_fixed, root_of
from engine.plan.structure import FlatStep, HostStep, KernelStep, Program
from engine.runtime.binding import BoundProgram, Buffers, arena_requests
from engine.runtime.engine import Engine
from engine.runtime.feeds import bind_symbols, check_feeds

if TYPE_CHECKING:
    from engine.runtime.cuda_engine import CudaEngine

__all__ = ["Captured", "LayerDifference", "captured_values", "compare_layers"]


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How far one layer is from its node's meaning, given the same inputs."""

    layer: str
    kind: str
    tactic: str
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        """The difference as JSON."""
        head = {"layer": self.layer, "kind": self.kind, "tactic": self.tactic}
        return {**head, **self.difference.to_json()}


@dataclass(frozen=True, slots=True)
class Captured:
    """What a layer wrote into a slot; ``shared`` when other layers wrote other parts of it."""

    layer: int
    slot: int
    array: Array
    shared: bool = False


def compare_layers(
    engine: Engine | CudaEngine, graph: Graph, feeds: Mapping[str, Any]
) -> Iterator[LayerDifference]:
    """Compare every layer with its node in the optimised graph, in the order in which they run.

    Values that no layer of the engine holds (views, what Python owns) are computed by their
    meaning. Raises OptionError when the engine is not built from this graph.
    """
    layers = {layer.name: index for index, layer in enumerate(engine.program.layers)}
    _check_same(graph, layers)
    held: dict[int, list[Captured]] = {}
    for item in captured_values(engine, feeds):
        held.setdefault(item.layer, []).append(item)
    values: dict[int, Any] = {id(value): feeds.get(value.name) for value in graph.inputs}
    last = _last_uses(graph)
    for position, node in enumerate(graph.nodes):
        expected = run_node(node, values, graph, feeds)
        index = layers.get(node.name, -1)
        found = _matched(node, held.pop(index, []), expected)
        for output, (value, wanted) in enumerate(zip(node.outputs, expected)):
            values[id(value)] = found.get(output, wanted)
        if found:
            tactic = engine.program.layers[index].tactic
            yield LayerDifference(node.name, node.kind, tactic, _worst(node, found, expected))
        for source in node.inputs:
            if source is not None and last.get(id(source)) == position:
                values.pop(id(source), None)


def _check_same(graph: Graph, layers: Mapping[str, int]) -> None:
    for node in graph.nodes:
        if node.kind != "View" and node.name not in layers:
            raise OptionError(
                f"the engine has no layer {node.name!r}: it was built from another model, with "
                "other options or by another version; build it again with the options given here"
            )


def _last_uses(graph: Graph) -> dict[int, int]:
    last: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        last.update({id(value): index for value in node.inputs if value is not None})
    return last


def _matched(node: Node, items: Sequence[Captured], expected: Sequence[Any]) -> dict[int, Array]:
    """Which array is which output: in order, by dtype and number of elements, else as a slice."""
    left = list(items)
    found = {}
    for output, wanted in enumerate(expected):
        if not isinstance(wanted, np.ndarray):
            continue
        slices = [(value.tensor.dims[-1], offset) for value, offset in _joins(node.outputs[output])]
        for item in left:
            array = _whole(node, item, wanted)
            if array is None:
                array = _slice(item.array, wanted, slices)
            if array is not None:
                left = [other for other in left if other is not item]
                found[output] = array.reshape(wanted.shape)
                break
    return found


def _whole(node: Node, item: Captured, wanted: Array) -> Array | None:
    if item.array.dtype != wanted.dtype or item.array.size != wanted.size:
        return None
    return None if item.shared and not is_joining(node) else item.array


def _joins(value: Value) -> Iterator[tuple[Value, int]]:
    """The tensors beside others of which a value may be made in place, and where it begins."""
    offset: Dim = 0
    while True:
        join = next((user for user, _ in value.uses if is_joining(user)), None)
        if join is None:
            return
        for other in join.inputs:
            if other is value:
                break
            assert other is not None
            offset = offset + other.tensor.dims[-1]
        value = join.outputs[0]
        if not isinstance(offset, int):
            return
        yield value, offset


def _slice(array: Array, wanted: Array, slices: Sequence[tuple[Dim, int]]) -> Array | None:
    """The part of a wider tensor that a layer writes, its pixels further apart."""
    if not wanted.ndim or not array.ndim or array.dtype != wanted.dtype or not wanted.size:
        return None
    width, channels = array.shape[-1], wanted.shape[-1]
    begin = next((offset for size, offset in slices if size == width), None)
    if begin is None or array.size // width != wanted.size // channels:
        return None
    return array.reshape(-1, width)[:, begin : begin + channels]


def _worst(node: Node, found: Mapping[int, Array], expected: Sequence[Any]) -> Difference:
    return max(
        (difference(node.outputs[i].name, array, expected[i]) for i, array in found.items()),
        key=lambda item: item.error,
    )


def captured_values(engine: Engine | CudaEngine, feeds: Mapping[str, Any]) -> list[Captured]:
    """What each layer writes for others to read, in the order in which layers write it.

    Workspace is left out, and so is what Python owns.
    """
    if not isinstance(engine, Engine):
        return _captured_on_device(engine, feeds)
    program = engine.program
    given = check_feeds(program, feeds)
    bound = BoundProgram(program, bind_symbols(program, given), engine.weights, engine.calls)
    ends = len(bound.steps)
    bound.arena = plan_arena(
        [
            Request(request.id, request.nbytes, 0, ends)
            for request in arena_requests(program, bound.steps, bound.sizes)
        ]
    )
    memory = np.zeros(bound.arena.nbytes + 256, np.uint8)
    memory = memory[-memory.ctypes.data % 256 :]
    addresses = engine.kernels.addresses
    runner = Runner(engine.threads) if addresses else None
    bound.prepare(memory, runner, addresses)
    buffers = _buffers(bound, given)
    bound.run(buffers, runner, None)
    return [
        Captured(layer, slot, np.array(bound.view(slot, buffers)), shared)
        for layer, slot, shared in _results(program, bound.steps)
        if is_fixed(program.slots[slot])
    ]


def _captured_on_device(engine: CudaEngine, feeds: Mapping[str, Any]) -> list[Captured]:
    from engine.debug.device_layers import DeviceCapture

    capture, program = DeviceCapture(engine, feeds), engine.program
    try:
        return [
            Captured(layer, slot, capture.view(slot), shared)
            for layer, slot, shared in _results(program, capture.steps)
            if is_fixed(program.slots[slot])
        ]
    finally:
        capture.close()


def _buffers(bound: BoundProgram, feeds: Sequence[Any]) -> Buffers:
    """Memory for one run: the feeds as they are, new arrays for the outputs."""
    program, buffers = bound.program, Buffers()
    for index, value in zip(program.inputs, feeds):
        is_host = program.slots[index].place == "host" or not isinstance(value, np.ndarray)
        if is_host or value.dtype == object:
            buffers.values[index] = value
        else:
            buffers.inputs[index] = value
    for index in program.outputs:
        kind = program.slots[index].type
        if is_fixed(program.slots[index]) and isinstance(kind, TensorType):
            shape = [evaluate(dim, bound.sizes) for dim in kind.dims]
            buffers.outputs[index] = np.empty(shape, kind.dtype.numpy)
    return buffers


def _results(program: Program, steps: Sequence[FlatStep]) -> list[tuple[int, int, bool]]:
    """Layers and the slots that they write for others, and whether other layers write there."""
    writers: dict[int, set[int]] = {}
    readers: dict[int, set[int]] = {}
    written: dict[tuple[int, int], None] = {}
    for step in steps:
        slots = _written(program, step)
        for slot in touched_slots(step):
            kind = writers if slot in slots else readers
            kind.setdefault(root_of(program, slot), set()).add(step.layer)
        written.update({(step.layer, slot): None for slot in slots})
    found = []
    for layer, slot in written:
        root = root_of(program, slot)
        read = readers.get(root, set()) - {layer}
        if read or program.slots[slot].place == "output" or program.slots[root].place == "output":
            found.append((layer, slot, writers[root] != {layer}))
    return found


def _written(program: Program, step: FlatStep) -> Sequence[int]:
    """The slots that a step writes."""
    if isinstance(step, HostStep):
        return step.outputs
    if not isinstance(step, KernelStep):
        return [slot for slot, _, writes in step_accesses(step) if writes]
    kernel = program.kernels[step.kernel]
    return [slot for slot, _ in step.operands[-kernel.output_count :]]
