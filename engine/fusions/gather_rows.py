"""Gathers that take every row of a batch as it is => a view.

PyTorch's exporters write masks as ``mask[arange(batch)[:, None], arange(keys)]``: a GatherND over
pairs of indices, or a Gather over flat ones. Where the second index is a range over the whole axis
nothing moves at all.
"""

from __future__ import annotations

import numpy as np

from engine.fusions.fusion import Match, Refused, constant_number, fusion
from engine.fusions.uniform import constant_like, range_axis, unit_axes
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim
from engine.ops.view import View

__all__ = ["gather_pairs", "gather_flat"]


@fusion("GatherND(x, (range(batch), range(n))) => view(x)", "GatherND", stage="attention")
def gather_pairs(graph: Graph, node: Node) -> Match | Refused | None:
    """The two indices of each tuple are the position in the batch and the position in the row."""
    data, tuples = node.inputs
    if data is None or tuples is None or int(getattr(node.op, "batch_dims", 0)) != 0:
        return None
    above = tuples.producer
    if above is None or above.kind != "Concat" or len(above.inputs) != 2:
        return None
    rank = tuples.tensor.rank
    if int(getattr(above.op, "axis", 0)) % rank != rank - 1:
        return None
    first, second = above.inputs
    shape = data.tensor.dims
    if first is None or second is None or data.tensor.rank != 2:
        return Refused("only gathers of single elements of a matrix are looked at")
    axis = range_axis(first)
    if axis is None or first.tensor.dims[axis] != shape[0]:
        return Refused("the first index is not the position in the batch")
    return _view(node, data, axis, constant_like(second), shape[1])


@fusion("Gather(flat x, range(batch) * n + range(n)) => view(x)", "Gather", stage="attention")
def gather_flat(graph: Graph, node: Node) -> Match | Refused | None:
    """An index into the flattened matrix, made of the position in the batch and in the row."""
    flat, index = node.inputs
    if flat is None or index is None or int(getattr(node.op, "axis", 0)) != 0:
        return None
    view, total = flat.producer, index.producer
    if view is None or view.kind != "View" or total is None or total.kind != "Add":
        return None
    data = view.inputs[0]
    if data is None or data.tensor.rank != 2 or flat.tensor.dims[0] != data.tensor.elements:
        return None
    for first, second in (total.inputs, total.inputs[::-1]):
        columns = constant_like(second)
        scaled = first.producer if first is not None else None
        if columns is None or scaled is None or scaled.kind != "Mul":
            continue
        for position, width in (scaled.inputs, scaled.inputs[::-1]):
            axis = None if position is None else range_axis(position)
            if axis is None or constant_number(width) != data.tensor.dims[1]:
                continue
            assert position is not None
            if position.tensor.dims[axis] != data.tensor.dims[0]:
                continue
            axis += index.tensor.rank - position.tensor.rank
            return _view(node, data, axis, columns, data.tensor.dims[1])
    return Refused("the index is not the position in the batch and in the row")


def _view(
    node: Node, data: Value, axis: int, columns: np.ndarray | None, width: Dim
) -> Match | Refused:
    """The view, if the batch comes first and the columns are all of a row in order."""
    if columns is None or not isinstance(width, int):
        return Refused("the second index is not constant")
    output = node.outputs[0]
    wanted = output.tensor.dims
    straight = columns.reshape(-1).tolist() == list(range(width))
    if not straight or axis != 0 or unit_axes((data.tensor.dims[0], width), wanted) is None:
        return Refused("the rows are not taken as they are")
    if columns.ndim and columns.shape[0] != 1:
        return Refused("the rows are not taken as they are")
    return Match(View(wanted), [data], output, [node])
