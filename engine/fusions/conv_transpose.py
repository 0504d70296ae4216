"""A transposed convolution whose windows do not overlap is a product of channels and a move."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import TensorType, is_bound
from engine.ops.fused import CONTRACTED
from engine.ops.operator import find

__all__ = ["conv_transpose"]


@fusion(
    "conv_transpose(x, w) of stride = kernel => depth_to_space(conv 1x1(x, w))", "ConvTranspose"
)
def conv_transpose(graph: Graph, node: Node) -> Match | Refused | None:
    """Each input pixel makes one block of output pixels, a column of the product for each."""
    x, w, bias = node.inputs[0], node.inputs[1], (*node.inputs, None)[2]
    assert x is not None and w is not None
    if x.tensor.dtype not in CONTRACTED or x.tensor.shape is None or x.tensor.rank != 4:
        return Refused("only images of float32, float16 and bfloat16 have fast convolutions here")
    if w.constant is None or (bias is not None and bias.constant is None):
        return Refused("its filters or its bias are not constant")
    reason = _overlap(node.op, w)
    if reason or not is_bound(x.type):
        return Refused(reason or "its sizes are known only when the model runs")
    block = int(w.constant.shape[2])
    channels = w.constant.shape[0]
    # Rows and columns of the block first: the order that depth_to_space takes.
    filters = w.constant.transpose(2, 3, 1, 0).reshape(-1, channels, 1, 1)
    operands: list[Value | None] = [x, graph.constant(w.name, np.ascontiguousarray(filters))]
    if bias is not None and bias.constant is not None:
        repeated = np.tile(bias.constant.reshape(-1), block * block)
        operands.append(graph.constant(bias.name, repeated))
    images, _, height, width = x.tensor.dims
    wide = TensorType(x.tensor.dtype, (images, filters.shape[0], height, width))
    result = Value(graph.fresh_name(f"{node.outputs[0].name}.blocks"), wide)
    conv = Node(
        find("", "Conv", 11).from_attributes({"kernel_shape": (1, 1)}),
        operands,
        [result],
        name=graph.fresh_name(node.name),
        sources=node.sources,
    )
    graph.insert_before(node, conv)
    infer_node(graph, conv)
    spread = find("", "DepthToSpace", 13).from_attributes({"blocksize": block, "mode": "DCR"})
    return Match(spread, [result], node.outputs[0], [node])


def _overlap(op: Any, w: Value) -> str:
    """Why windows are not side by side in squares, or nothing."""
    assert w.constant is not None
    high, wide = w.constant.shape[2:]
    if (op.group, high) != (1, wide):
        return "it has groups, or its kernel is no square"
    if tuple(op.strides or (1, 1)) != (high, wide) or tuple(op.dilations or (1, 1)) != (1, 1):
        return "its stride is not its kernel's size"
    if op.auto_pad not in ("", "NOTSET", "VALID") or op.output_shape:
        return "its padding follows from its sizes"
    if any(op.pads or ()) or any(op.output_padding or ()):
        return "its output is padded or cut"
    return ""
