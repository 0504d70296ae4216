"""One layer on its own: a graph with that node alone, at fixed sizes, with random data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import evaluate
from engine.ir.types import Array, DType, TensorType, Type
from engine.ops.cache_update import CachedAttention, CacheUpdate
from engine.ops.fixed_sizes import fix_sizes
from engine.ops.fused_attention import FusedAttention
from engine.ops.operator import Operator

__all__ = ["full_places", "isolate", "pin", "random_array"]

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


def pin(node: Node, point: Mapping[str, int]) -> Node:
    """The node at a shape point: values of its own with numbers for sizes, the same constants."""
    copies: dict[int, Value] = {}

    def pinned(value: Value) -> Value:
        if id(value) not in copies:
            copy = Value(value.name, _fixed_type(value.type, point))
            copy.constant, copy.origin = value.constant, value.origin
            copies[id(value)] = copy
        return copies[id(value)]

    inputs = [None if value is None else pinned(value) for value in node.inputs]
    outputs = [pinned(value) for value in node.outputs]
    return Node(fix_sizes(node.op, point), inputs, outputs, name=node.name, sources=node.sources)


def _places(op: Operator, count: int) -> dict[int, int]:
    """Operands that say how far a cache is filled, with the value that fills it.

    With such a value a layer does all the work that it may have to do.
    """
    found: dict[int, int] = {}
    update = op.key if isinstance(op, CachedAttention) else op
    if isinstance(update, CacheUpdate):
        rows = evaluate(update.length, {}) - evaluate(update.sizes[2], {})
        found[5 if isinstance(op, CachedAttention) else 2] = rows
    attention = op.attention if isinstance(op, CachedAttention) else op
    if isinstance(attention, FusedAttention) and attention.position != "none":
        past = evaluate(attention.past, {})
        found[count - 1] = max(evaluate(attention.sizes[3], {}) - 1 - past, 0)
    return found


def full_places(graph: Graph, point: Mapping[str, int]) -> dict[str, int]:
    """Inputs of a graph that say how far a cache is filled, with the value that fills it."""
    inputs = {id(value): value.name for value in graph.inputs}
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.kind not in ("CacheUpdate", "CachedAttention", "FusedAttention"):
            continue
        for place, number in _places(fix_sizes(node.op, point), len(node.inputs)).items():
            value = node.inputs[place]
            while (
                value is not None and value.producer is not None and value.producer.kind == "View"
            ):
                value = value.producer.inputs[0]
            if id(value) in inputs:
                name = inputs[id(value)]
                found[name] = min(number, found.get(name, number))
    return found


def isolate(node: Node, point: Mapping[str, int]) -> Graph:
    """A graph that holds a copy of one node at a shape point.

    Constants keep their shape but hold random data from a seed of the node's operator, so that
    timings do not depend on a model's weights. Caches are full: what says how far they are filled
    is a constant.
    """
    graph = Graph("layer")
    seed = int.from_bytes(hashlib.sha256(str(node.op.name).encode()).digest()[:4], "big")
    op = fix_sizes(node.op, point)
    places = _places(op, len(node.inputs))
    copies: dict[int, Value] = {}
    inputs: list[Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            inputs.append(None)
            continue
        if id(value) not in copies and index in places:
            kind = _fixed_type(value.type, point)
            assert isinstance(kind, TensorType)
            shape = tuple(int(dim) for dim in kind.dims)  # type: ignore[arg-type]
            array = np.full(shape, places[index], kind.dtype.numpy)
            copies[id(value)] = graph.constant(f"c{index}", array)
        elif id(value) not in copies:
            copies[id(value)] = _copy(graph, value, index, point, seed)
        inputs.append(copies[id(value)])
    outputs = [
        Value(graph.fresh_name(f"y{index}"), _fixed_type(value.type, point))
        for index, value in enumerate(node.outputs)
    ]
    copy = Node(op, inputs, outputs, name="layer", sources=node.sources)
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
