"""A transposed convolution is a convolution to blocks of pixels, which are then spread and cut.

With stride s the pixels of the result that lie s apart are a plain convolution of x with every s-th
tap, so that one convolution with s * s times the channels gives them all (the sub-pixel form of
Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import Array, Dim, TensorType, is_bound
from engine.ops.conv_transpose import ConvTranspose
from engine.ops.fused import CONTRACTED
from engine.ops.operator import Operator, find
from engine.ops.pad import Pad2
from engine.ops.view import View

__all__ = ["conv_transpose"]


@dataclass(frozen=True, slots=True)
class _Form:
    """Filters and pads of the convolution, and what is added to or cut from its spread result."""

    filters: Array
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    around: tuple[int, int, int, int]


@fusion("conv_transpose(x, w) => depth_to_space(conv(x, w))", "ConvTranspose")
def conv_transpose(graph: Graph, node: Node) -> Match | Refused | None:
    """Each input pixel makes one block of output pixels, a column of the product for each."""
    x, w, bias = node.inputs[0], node.inputs[1], (*node.inputs, None)[2]
    assert x is not None and w is not None and isinstance(node.op, ConvTranspose)
    if x.tensor.shape is not None and x.tensor.rank == 3:
        return None  # a rule of its own makes an image of it first
    if x.tensor.dtype not in CONTRACTED or x.tensor.shape is None or x.tensor.rank != 4:
        return Refused("only images of float32, float16 and bfloat16 have fast convolutions here")
    if w.constant is None or (bias is not None and bias.constant is None):
        return Refused("its filters or its bias are not constant")
    if not is_bound(x.type) or not is_bound(node.outputs[0].type):
        return Refused("its sizes are known only when the model runs")
    form = _form(node.op, x, w.constant)
    if isinstance(form, Refused):
        return form
    group = node.op.group
    operands: list[Value | None] = [x, graph.constant(w.name, form.filters)]
    if bias is not None and bias.constant is not None:
        repeated = _per_block(bias.constant.reshape(-1), form.strides, group)
        operands.append(graph.constant(bias.name, repeated))
    details = {"kernel_shape": form.filters.shape[2:], "pads": form.pads, "group": group}
    conv = _before(graph, node, find("", "Conv", 11).from_attributes(details), operands, "blocks")
    channels = form.filters.shape[0] // (form.strides[0] * form.strides[1])
    spread = _spread(graph, node, conv, form.strides, channels, group)
    if not any(form.around):
        producer = spread.producer
        assert producer is not None
        op, inputs = producer.op, list(producer.inputs)
        match = Match(op, inputs, node.outputs[0], [node])
        graph.remove(producer)
        return match
    top, left, bottom, right = form.around
    pad = Pad2(pads=(0, 0, top, left, 0, 0, bottom, right))
    return Match(pad, [spread], node.outputs[0], [node])


def _form(op: ConvTranspose, x: Value, w: Array) -> _Form | Refused:
    """How the convolution is, or why there is none."""
    if any(item != 1 for item in op.dilations or ()):
        return Refused("its kernel is dilated")
    height, width = x.tensor.dims[2:]
    kernel = (w.shape[2], w.shape[3])
    strides = ((op.strides or (1, 1))[0], (op.strides or (1, 1))[1])
    sizes, cuts = op._sizes((height, width), kernel)
    taps = [-(-k // s) for k, s in zip(kernel, strides)]
    ends: list[Dim] = []
    for size, cut, image, count, s in zip(sizes, cuts, (height, width), taps, strides):
        ends.append(size + cut - (image + (count - 1)) * s)
    if not all(isinstance(item, int) for item in (*cuts, *ends)):
        return Refused("its padding follows from its sizes")
    begins, afters = [-int(str(item)) for item in cuts], [int(str(item)) for item in ends]
    if max(*begins, *afters) > 0:
        return Refused("its output is wider than what its kernel reaches")
    pads = (taps[0] - 1, taps[1] - 1) * 2
    return _Form(_filters(w, strides, op.group), strides, pads, (*begins, *afters))  # type: ignore[arg-type]


def _filters(w: Array, strides: tuple[int, int], group: int) -> Array:
    """Filters [blocks * M, C / group, taps, taps]: those of one place in the block together.

    Rows and columns of the block come first, in the order that depth_to_space takes; with groups
    they come behind the channel, so that the channels of a group stay together.
    """
    channels, outputs, *kernel = w.shape
    taps = [-(-k // s) for k, s in zip(kernel, strides)]
    whole = np.zeros((channels, outputs, taps[0] * strides[0], taps[1] * strides[1]), w.dtype)
    whole[:, :, : kernel[0], : kernel[1]] = w
    parts = whole.reshape(
        group, channels // group, outputs, taps[0], strides[0], taps[1], strides[1]
    )
    parts = parts[:, :, :, ::-1, :, ::-1]  # a convolution reads backwards what is spread forwards
    order = (4, 6, 0, 2, 1, 3, 5) if group == 1 else (0, 2, 4, 6, 1, 3, 5)
    filters = parts.transpose(order).reshape(-1, channels // group, *taps)
    return np.ascontiguousarray(filters)


def _per_block(bias: Array, strides: tuple[int, int], group: int) -> Array:
    block = strides[0] * strides[1]
    return np.tile(bias, block) if group == 1 else np.repeat(bias, block)


def _spread(
    graph: Graph, node: Node, conv: Value, strides: tuple[int, int], channels: int, group: int
) -> Value:
    """Blocks of channels as pixels."""
    high, wide = strides
    if high == wide:
        mode = "DCR" if group == 1 else "CRD"
        op = find("", "DepthToSpace", 13).from_attributes({"blocksize": high, "mode": mode})
        return _before(graph, node, op, [conv], "spread")
    images, _, height, width = conv.tensor.dims
    if group == 1 and high == 1:  # with the channels last, blocks of a line follow each other
        last = find("", "Transpose", 13).from_attributes({"perm": (0, 2, 3, 1)})
        pixels = _before(graph, node, last, [conv], "pixels")
        view = View((images, height, width * wide, channels))
        line = _before(graph, node, view, [pixels], "line")
        first = find("", "Transpose", 13).from_attributes({"perm": (0, 3, 1, 2)})
        return _before(graph, node, first, [line], "spread")
    if group == 1:
        shape: tuple[Dim, ...] = (images, high, wide, channels, height, width)
        order = (0, 3, 4, 1, 5, 2)
    else:
        shape = (images, channels, high, wide, height, width)
        order = (0, 1, 4, 2, 5, 3)
    parts = _before(graph, node, View(shape), [conv], "parts")
    turn = find("", "Transpose", 13).from_attributes({"perm": order})
    turned = _before(graph, node, turn, [parts], "turned")
    out = View((images, channels, height * high, width * wide))
    return _before(graph, node, out, [turned], "spread")


def _before(
    graph: Graph, node: Node, op: Operator, inputs: list[Value | None] | list[Value], name: str
) -> Value:
    """The result of a new operator in front of a node."""
    source: Any = inputs[0]
    result = Value(
        graph.fresh_name(f"{node.outputs[0].name}.{name}"),
        TensorType(source.tensor.dtype, None),
    )
    made = Node(op, list(inputs), [result], name=graph.fresh_name(node.name), sources=node.sources)
    graph.insert_before(node, made)
    infer_node(graph, made)
    return result
