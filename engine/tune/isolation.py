"""One layer on its own: a graph with that node alone, at fixed sizes, with random data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import evaluate
from engine.ir.types import Array, DType, TensorType, Type
from engine.ops.fixed_sizes import fix_sizes

__all__ = ["isolate", "random_array"]

#: Random numbers are drawn so often at most; larger tensors repeat them.
_DISTINCT = (1 << 20) + 7


def _fixed_type(kind: Type, point: Mapping[str, int]) -> Type:
    if not isinstance(kind, TensorType) or kind.shape is None:
        return kind
    return TensorType(kind.dtype, tuple(evaluate(dim, point) for dim in kind.shape))


def random_array(kind: TensorType, seed: int) -> Array:
    """Random data of a type with fixed sizes; integers are 0 or 1, so that they index safely."""
    generator = np.random.default_rng(seed)
    shape = tuple(int(dim) for dim in kind.dims)  # type: ignore[arg-type]
    if kind.dtype is DType.STRING:
        return np.full(shape, "a", object)
    if kind.dtype.is_float or kind.dtype.is_complex:
        data = generator.standard_normal(min(math.prod(shape), _DISTINCT), np.float32)
        data *= np.float32(0.5)
        return np.resize(data, shape).astype(kind.dtype.numpy, copy=False)
    return generator.integers(0, 2, shape).astype(kind.dtype.numpy)


def isolate(node: Node, point: Mapping[str, int]) -> Graph:
    """A graph that holds a copy of one node at a shape point.

    Constants keep their shape but hold random data from a seed of the node's operator, so that
    timings do not depend on a model's weights.
    """
    graph = Graph("layer")
    seed = int.from_bytes(hashlib.sha256(str(node.op.name).encode()).digest()[:4], "big")
    copies: dict[int, Value] = {}
    inputs: list[Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            inputs.append(None)
            continue
        if id(value) not in copies:
            copies[id(value)] = _copy(graph, value, index, point, seed)
        inputs.append(copies[id(value)])
    outputs = [
        Value(graph.fresh_name(f"y{index}"), _fixed_type(value.type, point))
        for index, value in enumerate(node.outputs)
    ]
    copy = Node(fix_sizes(node.op, point), inputs, outputs, name="layer", sources=node.sources)
    graph.append(copy)
    graph.outputs = list(outputs)
    graph.output_names = [value.name for value in outputs]
    return graph


def _copy(graph: Graph, value: Value, index: int, point: Mapping[str, int], seed: int) -> Value:
    kind = _fixed_type(value.type, point)
    if value.constant is not None:
        array = value.constant
        if isinstance(kind, TensorType) and kind.dtype.is_float and array.size > 1:
            array = _scaled(random_array(kind, seed + index))
        return graph.constant(f"c{index}", array)
    copy = Value(graph.fresh_name(f"x{index}"), kind)
    graph.inputs.append(copy)
    return copy


def _scaled(array: Array) -> Array:
    """Weights small enough that sums stay near one."""
    fan = max(1, array.size // max(array.shape[-1], array.shape[0], 1))
    scaled: Array = array.astype(np.float32, copy=False) * (1 / np.sqrt(np.float32(fan)))
    return scaled.astype(array.dtype, copy=False)
