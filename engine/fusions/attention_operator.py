"""ONNX's own Attention operator => the fused attention, where it has no cache and no extras."""

from __future__ import annotations

import math

from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim
from engine.ir.strided import contiguous_strides
from engine.ir.types import DType
from engine.ops.fused_attention import FusedAttention, HeadAccess

__all__ = ["attention_operator"]

#: Attributes that the fused operator has a form for.
_KNOWN = {"is_causal", "kv_num_heads", "output_count", "q_num_heads", "scale"}


@fusion("Attention(q, k, v, mask) => attention(q, k, v, mask)", "Attention", stage="attention")
def attention_operator(graph: Graph, node: Node) -> Match | Refused | None:
    """Three or four axes, grouped heads, additive float masks, causal."""
    op = node.op
    inputs: list[Value | None] = [*node.inputs, *[None] * 7]
    q, k, v, mask = inputs[:4]
    assert q is not None and k is not None and v is not None
    others = sorted(set(op.attributes()) - _KNOWN)
    if others:
        return Refused(f"it has the attribute {others[0]}")
    if any(value is not None for value in inputs[4:7]) or not node.only_first_read:
        return Refused("it keeps a cache or gives its scores")
    if any(value.tensor.dtype is not DType.FLOAT32 for value in (q, k, v)):
        return Refused("only float32 has a fast attention here")
    if any(value.tensor.shape is None for value in (q, k, v)):
        return Refused("the rank of an operand is not known")
    heads = int(getattr(op, "q_num_heads", 0) or 0), int(getattr(op, "kv_num_heads", 0) or 0)
    query, key, value = _read(q, heads[0]), _read(k, heads[1]), _read(v, heads[1])
    shape, head_size = query[0], query[0][3]
    if not isinstance(head_size, int) or head_size > 256 or value[0][3] != head_size:
        return Refused("its heads have no kernel")
    if key[0][:3] != value[0][:3] or key[0][0] != shape[0]:
        return Refused("queries, keys and values are not known to agree in batch, heads or length")
    q_heads, kv_heads = query[0][1], key[0][1]
    if not isinstance(q_heads, int) or not isinstance(kv_heads, int) or q_heads % kv_heads:
        return Refused("the numbers of heads do not divide")
    if getattr(op, "is_causal", 0) and mask is not None:
        return Refused("it is causal and has a mask")
    kind, access = "none", HeadAccess(0, 0, 0, 0)
    if mask is not None:
        if mask.tensor.dtype is not DType.FLOAT32 or mask.tensor.shape is None:
            return Refused("only float32 masks are added here")
        full = (1,) * (4 - len(mask.tensor.shape)) + mask.tensor.shape
        if full[3] != key[0][2] or full[2] != query[0][2]:
            return Refused(f"the mask {mask.type} does not cover queries and keys")
        steps = [0 if n == 1 else s for n, s in zip(full, contiguous_strides(full))]
        kind, access = "full", HeadAccess(0, *steps[:3])
    scale = getattr(op, "scale", None)
    operands: list[Value | None] = [q, k, v]
    if mask is not None:
        operands.append(mask)
    fused = FusedAttention(
        head_size,
        float(scale) if scale is not None else 1.0 / math.sqrt(head_size),
        (shape[0], q_heads, shape[2], key[0][2]),
        query[1],
        key[1],
        value[1],
        _read(node.outputs[0], heads[0])[1],
        node.outputs[0].tensor.dims,
        tuple(item.tensor.dims for item in operands if item is not None),
        mask=kind,
        mask_access=access,
        causal=bool(getattr(op, "is_causal", 0)),
        group=q_heads // kv_heads,
    )
    return Match(fused, operands, node.outputs[0], [node])


def _read(value: Value, heads: int) -> tuple[tuple[Dim, ...], HeadAccess]:
    """An operand as [batch, heads, rows, head size], and how it is read."""
    shape = value.tensor.dims
    if len(shape) == 4:
        strides = contiguous_strides(shape)
        return shape, HeadAccess(0, *strides[:3])
    batch, rows, width = shape
    size = width // heads if heads else width
    return (batch, heads, rows, size), HeadAccess(0, rows * width, size, width)
