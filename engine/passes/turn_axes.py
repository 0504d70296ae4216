"""Operators that name axes, as they are over a tensor whose axes lie in another order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from engine.ir.graph import Graph, Node, Value
from engine.ops.operator import Operator
from engine.ops.pad import Pad2, Pad11

__all__ = ["TURNED_KINDS", "turned_axes"]

Perm = tuple[int, ...]
#: What cuts or pads along axes that it names.
TURNED_KINDS = ("Split", "Slice", "Pad")


def turned_axes(graph: Graph, node: Node, perm: Perm) -> tuple[Operator, list[Value | None]] | None:
    """The operator and its further inputs before a transpose by ``perm`` instead of behind it.

    None where the axes are known only when the model runs.
    """
    if node.kind == "Split":
        axis = int(getattr(node.op, "axis", 0)) % len(perm)
        return dataclasses.replace(node.op, axis=perm[axis]), node.inputs[1:]  # type: ignore[call-arg]
    return _slice(graph, node, perm) if node.kind == "Slice" else _pad(graph, node, perm)


def _given(node: Node, place: int) -> Value | None:
    return node.inputs[place] if len(node.inputs) > place else None


def _axes(node: Node, place: int, count: int) -> Sequence[int] | None:
    """Axes that an input names, the first ones where it is absent."""
    value = _given(node, place)
    if value is None:
        return range(count)
    return None if value.constant is None else [int(item) for item in value.constant.reshape(-1)]


def _constant(graph: Graph, node: Node, name: str, numbers: Sequence[int]) -> Value:
    return graph.constant(f"{node.name}.{name}", np.array(numbers, np.int64))


def _slice(graph: Graph, node: Node, perm: Perm) -> tuple[Operator, list[Value | None]] | None:
    starts = _given(node, 1)
    if starts is None or starts.tensor.rank != 1 or not isinstance(starts.tensor.dims[0], int):
        return None  # before opset 10 its axes are an attribute
    axes = _axes(node, 3, starts.tensor.dims[0])
    if axes is None:
        return None
    named = _constant(graph, node, "axes", [perm[axis % len(perm)] for axis in axes])
    return node.op, [starts, _given(node, 2), named, _given(node, 4)]


def _pad(graph: Graph, node: Node, perm: Perm) -> tuple[Operator, list[Value | None]] | None:
    op, rank = node.op, len(perm)
    if isinstance(op, Pad2):
        axes: Sequence[int] | None = range(rank)
        pads: Sequence[int] | None = op.pads
    else:
        axes = _axes(node, 3, rank)
        found = _given(node, 1)
        known = found is not None and found.constant is not None
        pads = found.constant.reshape(-1).tolist() if known else None  # type: ignore[union-attr]
    if axes is None or pads is None or len(pads) != 2 * len(axes):
        return None
    around = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        to = perm[axis % rank]
        around[to], around[rank + to] = pads[place], pads[len(axes) + place]
    if isinstance(op, Pad2):
        return dataclasses.replace(op, pads=tuple(around)), []
    assert isinstance(op, Pad11)
    return op, [_constant(graph, node, "pads", around), _given(node, 2), None]
