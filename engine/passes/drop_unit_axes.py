"""A softmax over more or other than the last axis runs over the last axis of a view, if one fits.

That is so when all axes behind its own have size 1, and always before opset 13, where a softmax
runs over its axis and all that follow as one.
"""

from __future__ import annotations

import dataclasses

from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import product
from engine.ir.types import TensorType, is_bound
from engine.ops.softmax import LogSoftmax, LogSoftmax1, Softmax, Softmax1
from engine.ops.view import View

__all__ = ["drop_unit_axes"]


def drop_unit_axes(graph: Graph) -> bool:
    """Rewrite each such softmax as view, softmax over the last axis, view."""
    changed = False
    for node in list(graph.nodes):
        if isinstance(node.op, (Softmax, LogSoftmax)):
            changed |= _rewrite(graph, node, node.op, merges=False)
        elif isinstance(node.op, (Softmax1, LogSoftmax1)):
            over = Softmax if isinstance(node.op, Softmax1) else LogSoftmax
            changed |= _rewrite(graph, node, over(node.op.axis), merges=True)
    return changed


def _rewrite(graph: Graph, node: Node, op: Softmax | LogSoftmax, *, merges: bool) -> bool:
    """``merges`` says that the axes behind the softmax's own belong to it."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or not is_bound(source.type) or source.tensor.rank < 1:
        return False
    shape = source.tensor.dims
    axis = op.axis % len(shape)
    last = axis == len(shape) - 1
    if not merges and (last or any(dim != 1 for dim in shape[axis + 1 :])):
        return False
    short = TensorType(source.tensor.dtype, (*shape[:axis], product(shape[axis:])))
    seen = graph.value(source.name, short)
    result = graph.value(output.name, short)
    back = graph.value(output.name, output.type)
    steps: list[tuple[View | Softmax | LogSoftmax, Value, Value]] = [
        (View(short.dims), source, seen),
        (dataclasses.replace(op, axis=-1), seen, result),
        (View(shape), result, back),
    ]
    for made, before, after in steps:
        step = Node(made, [before], [after], name=graph.fresh_name(node.name), sources=node.sources)
        graph.insert_before(node, step)
        infer_node(graph, step)
    graph.replace_value(output, back)
    graph.remove(node)
    return True
