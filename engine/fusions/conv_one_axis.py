"""Convolutions and poolings over one axis are ones over two, of which the first has size 1."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import TensorType, is_bound
from engine.ops.fused import CONTRACTED
from engine.ops.view import View

__all__ = ["conv_one_axis", "conv_transpose_one_axis", "pool_one_axis"]


@fusion("conv1d(x, w) => view(conv2d(view(x), view(w)))", "Conv")
def conv_one_axis(graph: Graph, node: Node) -> Match | Refused | None:
    """Of the types that have fast convolutions, with constant filters."""
    return _convolution(graph, node, {})


@fusion("conv_transpose1d(x, w) => view(conv_transpose2d(view(x), view(w)))", "ConvTranspose")
def conv_transpose_one_axis(graph: Graph, node: Node) -> Match | Refused | None:
    """Of the types that have fast convolutions, with constant filters."""
    op: Any = node.op
    given: dict[str, Any] = {}
    if op.output_padding:
        given["output_padding"] = (0, *op.output_padding)
    if op.output_shape:
        given["output_shape"] = (1, op.output_shape[-1])
    return _convolution(graph, node, given)


def _convolution(graph: Graph, node: Node, given: dict[str, Any]) -> Match | Refused | None:
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    if x.tensor.shape is None or x.tensor.rank != 3:
        return None
    if x.tensor.dtype not in CONTRACTED or w.constant is None or not is_bound(node.outputs[0].type):
        return Refused(
            "only 16-bit floats and float32 with constant filters have fast convolutions"
        )
    filters = graph.constant(w.name, w.constant[:, :, None, :])
    wide = _widened(node, kernel_shape=None, **given)
    return _over_images(graph, node, wide, [filters, *node.inputs[2:]])


@fusion("pool1d(x) => view(pool2d(view(x)))", "MaxPool", "AveragePool")
def pool_one_axis(graph: Graph, node: Node) -> Match | Refused | None:
    """Where the places of the greatest elements are not asked for."""
    x, op = node.inputs[0], node.op
    kernel = getattr(op, "kernel_shape", ())
    if x is None or x.tensor.shape is None or x.tensor.rank != 3 or len(kernel) != 1:
        return None
    if x.tensor.dtype not in CONTRACTED or not is_bound(node.outputs[0].type):
        return Refused("only 16-bit floats and float32 have fast poolings")
    if not node.only_first_read:
        return Refused("the places of the greatest elements are read")
    wide = _widened(node, kernel_shape=(1, *kernel))
    return _over_images(graph, node, wide, [])


def _widened(node: Node, **changes: Any) -> Any:
    """The operator with an axis of size 1 before its own."""
    op: Any = node.op
    if op.strides:
        changes["strides"] = (1, *op.strides)
    if getattr(op, "dilations", None):
        changes["dilations"] = (1, *op.dilations)
    if op.pads:
        begin, end = op.pads
        changes["pads"] = (0, begin, 0, end)
    return dataclasses.replace(op, **changes)


def _over_images(graph: Graph, node: Node, op: Any, others: list[Value | None]) -> Match:
    """The operator over the input as an image, whose result is seen with one axis again."""
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    images, channels, length = x.tensor.dims
    wide = _view(graph, node, x, (images, channels, 1, length))
    shape = output.tensor.dims
    kind = TensorType(output.tensor.dtype, (shape[0], shape[1], 1, shape[2]))
    results = [Value(graph.fresh_name(f"{output.name}.wide"), kind)]
    results += [
        Value(graph.fresh_name(f"{item.name}.wide"), TensorType(item.tensor.dtype, kind.shape))
        for item in node.outputs[1:]
    ]
    made = Node(
        op, [wide, *others], results, name=graph.fresh_name(node.name), sources=node.sources
    )
    graph.insert_before(node, made)
    infer_node(graph, made)
    return Match(View(shape), [results[0]], output, [node])


def _view(graph: Graph, anchor: Node, value: Value, shape: tuple[Any, ...]) -> Value:
    result = Value(graph.fresh_name(f"{value.name}.wide"), TensorType(value.tensor.dtype, shape))
    node = Node(View(shape), [value], [result], name=graph.fresh_name(f"{anchor.name}.view"))
    graph.insert_before(anchor, node)
    infer_node(graph, node)
    return result
