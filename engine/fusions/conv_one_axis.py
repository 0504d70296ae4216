"""A convolution over one axis is one over two, of which the first has size 1."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import DType, TensorType, is_bound
from engine.ops.view import View

__all__ = ["conv_one_axis"]


@fusion("conv1d(x, w) => view(conv2d(view(x), view(w)))", "Conv")
def conv_one_axis(graph: Graph, node: Node) -> Match | Refused | None:
    """Float32 with constant filters."""
    x, w, output = node.inputs[0], node.inputs[1], node.outputs[0]
    assert x is not None and w is not None
    if x.tensor.shape is None or x.tensor.rank != 3:
        return None
    if x.tensor.dtype is not DType.FLOAT32 or w.constant is None or not is_bound(output.type):
        return Refused("only float32 with constant filters has a fast convolution here")
    op: Any = node.op
    if op.auto_pad != "NOTSET":
        return Refused("its padding follows from its sizes")
    images, channels, length = x.tensor.dims
    wide = _view(graph, node, x, (images, channels, 1, length))
    filters = graph.constant(w.name, w.constant[:, :, None, :])
    begin, end = op.pads or (0, 0)
    changed = dataclasses.replace(
        op,
        kernel_shape=None,
        strides=(1, *(op.strides or (1,))),
        dilations=(1, *(op.dilations or (1,))),
        pads=(0, begin, 0, end),
    )
    shape = output.tensor.dims
    kind = TensorType(DType.FLOAT32, (shape[0], shape[1], 1, shape[2]))
    result = Value(graph.fresh_name(f"{output.name}.wide"), kind)
    conv = Node(
        changed,
        [wide, filters, *node.inputs[2:]],
        [result],
        name=graph.fresh_name(node.name),
        sources=node.sources,
    )
    graph.insert_before(node, conv)
    infer_node(graph, conv)
    return Match(View(shape), [result], output, [node])


def _view(graph: Graph, anchor: Node, value: Value, shape: tuple[Any, ...]) -> Value:
    result = Value(graph.fresh_name(f"{value.name}.wide"), TensorType(value.tensor.dtype, shape))
    node = Node(View(shape), [value], [result], name=graph.fresh_name(f"{anchor.name}.view"))
    graph.insert_before(anchor, node)
    infer_node(graph, node)
    return result
