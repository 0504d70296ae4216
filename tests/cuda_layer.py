"""One layer on the host: the steps that a candidate writes, run by the shim on NumPy arrays.

    graph, node = layer(FusedMatMul(...), [feed((SYMBOL, 64), array), constant(weights)])
    (y,) = run_candidate(node, candidate, {"M": 5})

Kernels of generated CUDA C only. Everything that a launch reads or writes is checked against what
its parameters say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim, evaluate
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import Placement
from engine.ops.operator import Operator
from engine.plan import recipes
from engine.plan.device import ClearStep, LaunchStep, Null, Pointer, Scalar
from engine.plan.structure import Slot
from engine.tactics.tactic import Candidate
from tests.cuda_shim import POISON, run_kernel

__all__ = ["Feed", "constant", "emitted", "feed", "filled", "layer", "meaning", "run_candidate"]


@dataclass(frozen=True)
class Feed:
    """An input of a layer: its sizes, perhaps symbolic, and its data."""

    dims: tuple[Dim, ...]
    array: np.ndarray
    constant: bool = False


def feed(array: np.ndarray, dims: Sequence[Dim] | None = None) -> Feed:
    """An input that changes from run to run."""
    return Feed(tuple(array.shape if dims is None else dims), np.ascontiguousarray(array))


def constant(array: np.ndarray) -> Feed:
    """A weight."""
    return Feed(tuple(array.shape), np.ascontiguousarray(array), constant=True)


def layer(operator: Operator, inputs: Sequence[Feed | None]) -> tuple[Graph, Node]:
    """A graph of one node; the data of its inputs are kept with their values."""
    graph = Graph("layer")
    values: list[Value | None] = []
    for place, item in enumerate(inputs):
        if item is None:
            values.append(None)
        elif item.constant:
            values.append(graph.constant(f"w{place}", item.array))
        else:
            value = graph.value(f"x{place}", TensorType(DType.of(item.array.dtype), item.dims))
            value.content = item.array
            graph.inputs.append(value)
            values.append(value)
    operands = [None if value is None else value.operand() for value in values]
    outputs = [graph.value("y", kind) for kind in operator.infer(*operands)]
    node = graph.append(Node(operator, values, outputs))
    graph.outputs.extend(outputs)
    return graph, node


def _data(value: Value) -> np.ndarray:
    array = value.content if value.constant is None else value.constant
    assert array is not None
    return array


def meaning(node: Node) -> list[np.ndarray]:
    """What a layer means, by its operator."""
    arrays = [None if value is None else _data(value) for value in node.inputs]
    found = node.op.meaning(*arrays)  # type: ignore[arg-type]
    return list(found) if isinstance(found, (tuple, list)) else [found]


def emitted(
    graph: Graph, node: Node, candidate: Candidate, placed: Mapping[int, Placement] | None = None
) -> ProgramBuilder:
    """The steps that a candidate writes, in a program of its own."""
    builder = ProgramBuilder(graph, placed=dict(placed or {}))
    roots = {id(item.root): item.root for item in builder.placed.values()}
    values = [value for value in node.inputs if value is not None] + node.outputs
    for value in [*values, *roots.values()]:
        if value.constant is None and id(value) not in builder.placed:
            if not builder.has_slot(value):
                builder.set_slot(value, builder.add_slot(Slot(value.type, "arena")))
    candidate.emit(builder, node, builder.layer(node, candidate.tactic, candidate.choice))
    return builder


def run_candidate(
    graph: Graph,
    node: Node,
    candidate: Candidate,
    point: Mapping[str, int] | None = None,
    *,
    placed: Mapping[int, Placement] | None = None,
    deterministic: bool = True,
) -> list[np.ndarray]:
    """The outputs of a layer as a candidate computes them; slices per ``placed``."""
    point = point or {}
    builder = emitted(graph, node, candidate, placed)
    arrays = filled(builder, node, point)
    for step in builder.steps:
        if isinstance(step, ClearStep):
            arrays[step.slot].view(np.uint8)[:] = 0
        else:
            assert isinstance(step, LaunchStep), f"the shim runs no {type(step).__name__}"
            _launch(builder, arrays, step, point, deterministic)
    for slot, array in zip(builder.slots, arrays):
        assert slot.place != "zeros" or not array.any(), "counters are not zero when the layer ends"
    return [_view(builder, arrays, value, point).copy() for value in node.outputs]


def filled(builder: ProgramBuilder, node: Node, point: Mapping[str, int]) -> list[np.ndarray]:
    """Flat memory for every slot: inputs and weights with data, counters zero, else poison."""
    arrays = [_memory(builder, slot, point) for slot in builder.slots]
    for value in node.inputs:
        if value is not None and value.constant is None:
            _view(builder, arrays, value, point)[...] = _data(value)
    return arrays


def _memory(builder: ProgramBuilder, slot: Slot, point: Mapping[str, int]) -> np.ndarray:
    """A flat array for a slot; what nobody has written yet is poison."""
    kind = slot.type
    assert isinstance(kind, TensorType)
    if slot.place == "weight":
        packed = (builder.top or builder).packed[slot.name]
        array = recipes.apply(packed.recipe, [_data(item) for item in packed.sources])
        assert array.shape == tuple(evaluate(dim, point) for dim in kind.dims), "a weight's shape"
        assert DType.of(array.dtype) is kind.dtype, "a weight's type"
        return array.reshape(-1).copy()
    elements = int(np.prod([evaluate(dim, point) for dim in kind.dims], dtype=np.int64))
    fill = 0 if slot.place == "zeros" else POISON
    return np.full(elements * kind.dtype.numpy.itemsize, fill, np.uint8).view(kind.dtype.numpy)


def _view(
    builder: ProgramBuilder,
    arrays: Sequence[np.ndarray],
    value: Value,
    point: Mapping[str, int],
) -> np.ndarray:
    """A value's elements in the memory of its slot."""
    slot, offset, pixel = builder.location(value)
    shape = [evaluate(dim, point) for dim in value.tensor.dims]
    array = arrays[slot][evaluate(offset, point) :]
    if id(value) not in builder.placed:
        return array[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
    steps, reach = [1], evaluate(pixel, point)
    for size in reversed(shape[1:]):
        steps.insert(0, reach if len(steps) == 1 else steps[0] * size)
    return np.lib.stride_tricks.as_strided(array, shape, [n * array.itemsize for n in steps])


def _launch(
    builder: ProgramBuilder,
    arrays: Sequence[np.ndarray],
    step: LaunchStep,
    point: Mapping[str, int],
    deterministic: bool,
) -> None:
    kernel = builder.device_kernels[step.function]
    arguments: list[Any] = []
    written: set[int] = set()
    for parameter in step.parameters:
        if isinstance(parameter, Pointer):
            arguments.append(arrays[parameter.slot][evaluate(parameter.offset, point) :])
            if parameter.writes:
                written.add(parameter.slot)
        elif isinstance(parameter, Scalar):
            value = parameter.value
            number = value if isinstance(value, float) else evaluate(value, point)
            arguments.append((parameter.kind, number))
        else:
            assert isinstance(parameter, Null), "the shim passes no tensor maps"
            arguments.append(None)
    before = [array.tobytes() for array in arrays]
    grid = [evaluate(dim, point) for dim in step.grid]
    if 0 in grid:
        return
    run_kernel(kernel, grid, arguments, deterministic=deterministic)
    for slot, (array, held) in enumerate(zip(arrays, before)):
        said = slot in written or array.tobytes() == held
        assert said, f"slot {slot} is written, but no parameter of {kernel.entry} says so"
