"""Seeded weights for a graph that has none, at the scales of trained networks.

A weight's kind follows from the operator that reads it. Kernels are He-normal (He et al., 2015:
variance ``gain / fan_in``), scales lie around one, shifts around zero, embeddings have deviation
0.02. Each tensor has a generator of its own, seeded by its name, so the order does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

# (operator, input) -> kind. Rank decides between an added bias and an added embedding.
KINDS = {
    ("Conv", 1): "kernel",
    ("Conv", 2): "shift",
    ("MatMul", 1): "kernel",
    ("Gemm", 1): "kernel",
    ("Gemm", 2): "shift",
    ("LayerNormalization", 1): "scale",
    ("LayerNormalization", 2): "shift",
    ("BatchNormalization", 1): "scale",
    ("BatchNormalization", 2): "shift",
    ("BatchNormalization", 3): "mean",
    ("BatchNormalization", 4): "variance",
    ("Mul", 0): "scale",
    ("Mul", 1): "scale",
    ("Add", 0): "shift",
    ("Add", 1): "shift",
    ("Gather", 0): "embedding",
    ("Expand", 0): "embedding",
}
# Operators between a weight and the one that gives it its meaning.
TRANSPARENT = ("Unsqueeze", "Reshape", "Identity")


def weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The float initialisers that hold no values, in graph order."""
    return [
        tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and not tensor.raw_data
        and not tensor.float_data
    ]


def readers(graph: onnx.GraphProto) -> dict[str, tuple[onnx.NodeProto, int]]:
    """The first operator that reads each value, and as which input."""
    found: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            found.setdefault(name, (node, position))
    return found


def values(
    tensor: onnx.TensorProto,
    *,
    seed: str,
    gain: float,
    reads: Mapping[str, tuple[onnx.NodeProto, int]],
    statistics: Mapping[str, Float32],
) -> Float32:
    """Values for one weight: float32 of the tensor's shape, finite, the same on every call.

    `statistics` holds the batch-norm means and variances by name; one that is missing is refused.
    """
    shape = tuple(tensor.dims)
    kind, reader = kind_of(tensor, reads)
    if kind in ("mean", "variance"):
        return statistics[tensor.name].astype(np.float32).reshape(shape)
    noise = generator(f"{seed}/{tensor.name}").standard_normal(shape, dtype=np.float32)
    if kind == "kernel":
        noise *= np.float32(np.sqrt(gain / fan_in(shape, reader)))
    elif kind == "scale":
        noise *= np.float32(0.1)
        noise += np.float32(1)
    elif kind == "shift":
        noise *= np.float32(0.05)
    else:
        noise *= np.float32(0.02)
    return noise


def kind_of(
    tensor: onnx.TensorProto, reads: Mapping[str, tuple[onnx.NodeProto, int]]
) -> tuple[str, onnx.NodeProto]:
    """What a weight is for, and the operator that says so."""
    node, position = reads[tensor.name]
    while node.op_type in TRANSPARENT:
        node, position = reads[node.output[0]]
    try:
        kind = KINDS[node.op_type, position]
    except KeyError:
        raise ValueError(
            f"weight {tensor.name} is input {position} of {node.op_type}, for which no scale is "
            f"known; add it to KINDS in {__name__}"
        ) from None
    if node.op_type == "Add" and len(tensor.dims) > 1:
        kind = "embedding"
    return kind, node


def fan_in(shape: tuple[int, ...], reader: onnx.NodeProto) -> int:
    """How many products each output element of this kernel sums."""
    if reader.op_type == "Conv":
        return int(np.prod(shape[1:]))
    transposed = any(a.name == "transB" and a.i for a in reader.attribute)
    return shape[-1] if transposed else shape[-2]


def generator(text: str) -> np.random.Generator:
    """A random generator seeded by a text."""
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
