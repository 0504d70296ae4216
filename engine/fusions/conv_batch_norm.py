"""conv(x, w)·s + t  =>  conv(x, w·s) + t: a batch norm after a convolution joins its filters."""

from __future__ import annotations

import numpy as np

from engine.fusions.fusion import Match, Refused, fusion, only_user
from engine.ir.graph import Graph, Node
from engine.ir.types import Array

__all__ = ["conv_batch_norm"]


def scale_and_shift(node: Node) -> tuple[Array, Array] | None:
    """What an inference batch norm multiplies and adds per channel, in float64."""
    arrays = [value.constant if value is not None else None for value in node.inputs[1:5]]
    if len(arrays) != 4 or any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    scale = gamma / np.sqrt(variance + getattr(node.op, "epsilon", 1e-5))
    return scale, beta - mean * scale


@fusion("batch_norm(conv(x, w) + b) => conv(x, w * s) + t", "BatchNormalization")
def conv_batch_norm(graph: Graph, node: Node) -> Match | Refused | None:
    """Fold scale and shift into constant filters and bias."""
    source = node.inputs[0]
    conv = source.producer if source is not None else None
    if conv is None or conv.kind != "Conv":
        return None
    assert source is not None
    if only_user(graph, source) is not node:
        return Refused("something else reads the convolution's result")
    if not node.only_first_read or getattr(node.op, "training_mode", False):
        return Refused("the batch norm is in training mode")
    found = scale_and_shift(node)
    weight = conv.inputs[1]
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if found is None or weight is None or weight.constant is None:
        return Refused("filters or statistics are not constant")
    if bias is not None and bias.constant is None:
        return Refused("the bias is not constant")
    scale, shift = found
    array = weight.constant
    wide = scale.reshape(-1, *(1,) * (array.ndim - 1))
    filters = graph.constant(weight.name, (array.astype(np.float64) * wide).astype(array.dtype))
    old = 0.0 if bias is None or bias.constant is None else bias.constant.astype(np.float64)
    offset = graph.constant(f"{weight.name}.bias", (old * scale + shift).astype(array.dtype))
    return Match(conv.op, [conv.inputs[0], filters, offset], node.outputs[0], [conv, node])
