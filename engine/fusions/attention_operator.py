"""ONNX's own Attention operator => the fused attention, where it keeps no cache of its own."""

from __future__ import annotations

import math

from engine.fusions.attention import WIDEST_HEAD, written_by
from engine.fusions.attention_mask import (
    CombinedMask,
    MaskReading,
    combine,
    read_condition,
    read_mask,
)
from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim
from engine.ir.strided import Strided, contiguous_strides, trace
from engine.ir.types import DType
from engine.ops.fused_attention import DTYPES, FusedAttention, HeadAccess

__all__ = ["attention_operator"]

#: Attributes that the fused operator has a form for.
_KNOWN = {"is_causal", "kv_num_heads", "output_count", "q_num_heads", "scale"}
#: A tensor as [batch, heads, rows, head size], what holds it, how it is read, and its factor.
_Read = tuple[tuple[Dim, ...], Value, HeadAccess, float]


@fusion("Attention(q, k, v, mask) => attention(q, k, v, mask)", "Attention", stage="attention")
def attention_operator(graph: Graph, node: Node) -> Match | Refused | None:
    """Three or four axes, grouped heads, masks of numbers or conditions, causal, lengths."""
    op = node.op
    inputs: list[Value | None] = [*node.inputs, *[None] * 7]
    q, k, v, mask = inputs[:4]
    assert q is not None and k is not None and v is not None
    others = sorted(set(op.attributes()) - _KNOWN)
    if others:
        return Refused(f"it has the attribute {others[0]}")
    if any(value is not None for value in inputs[4:6]) or not node.only_first_read:
        return Refused("it keeps a cache or gives its scores")
    dtypes = {value.tensor.dtype for value in (q, k, v)}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        return Refused("only floats of one type with 16 or 32 bits have a fast attention here")
    if any(value.tensor.shape is None for value in (q, k, v)):
        return Refused("the rank of an operand is not known")
    heads = int(getattr(op, "q_num_heads", 0) or 0), int(getattr(op, "kv_num_heads", 0) or 0)
    query, key, value = _read(q, heads[0]), _read(k, heads[1]), _read(v, heads[1])
    shape, head_size = query[0], query[0][3]
    if not isinstance(head_size, int) or head_size > WIDEST_HEAD or value[0][3] != head_size:
        return Refused("its heads have no kernel")
    if key[0][:3] != value[0][:3] or key[0][0] != shape[0]:
        return Refused("queries, keys and values are not known to agree in batch, heads or length")
    q_heads, kv_heads = query[0][1], key[0][1]
    if not isinstance(q_heads, int) or not isinstance(kv_heads, int) or q_heads % kv_heads:
        return Refused("the numbers of heads do not divide")
    if value[3] != 1.0:
        return Refused("the values are scaled")
    target = (shape[0], q_heads, shape[2], key[0][2])
    combined = _mask(graph, node, mask, inputs[6], target)
    if isinstance(combined, Refused):
        return combined
    output, out, after = _written(graph, node, heads[0])
    scale = getattr(op, "scale", None)
    operands: list[Value | None] = [query[1], key[1], value[1], *combined.inputs]
    fused = FusedAttention(
        head_size,
        (float(scale) if scale is not None else 1.0 / math.sqrt(head_size)) * query[3] * key[3],
        target,
        query[2],
        key[2],
        value[2],
        out,
        output.tensor.dims,
        tuple(item.tensor.dims for item in operands if item is not None),
        mask=combined.kind,
        mask_access=combined.access,
        causal=combined.causal,
        group=q_heads // kv_heads,
        dtype=output.tensor.dtype,
        past=combined.past,
        position=combined.position,
        guarded=True,
    )
    return Match(fused, operands, output, [node, *after])


def _mask(
    graph: Graph, node: Node, mask: Value | None, lengths: Value | None, target: tuple[Dim, ...]
) -> CombinedMask | Refused:
    """The mask's operand, the attribute for a triangle, and lengths of samples, in one."""
    readings: list[MaskReading] = []
    if mask is not None:
        if mask.tensor.shape is None:
            return Refused("the rank of the mask is not known")
        if mask.tensor.dtype is DType.BOOL:
            readings.append(read_condition(graph, mask, target, float("-inf")))
        else:
            readings.append(read_mask(graph, mask, target))
    causal = bool(getattr(node.op, "is_causal", 0))
    if lengths is not None:
        # Of n keys the last query sees all when causal, else every query does.
        past = -target[2] if causal else -1
        readings.append(MaskReading(causal=causal, past=past, position=lengths))
    elif causal:
        readings.append(MaskReading(causal=True))
    return combine(graph, node, readings, target)


def _written(graph: Graph, node: Node, heads: int) -> tuple[Value, HeadAccess, list[Node]]:
    """What is written and how; three axes hold the heads merged."""
    result = node.outputs[0]
    if result.tensor.rank == 4:
        return written_by(graph, node)
    _, rows, width = result.tensor.dims
    return result, HeadAccess(0, rows * width, width // heads, width), []


def _read(value: Value, heads: int) -> _Read:
    """An operand as [batch, heads, rows, head size], and how it is read."""
    shape = value.tensor.dims
    found = trace(value)
    if found.strides[-1] != 1 or found.root.tensor.dtype != value.tensor.dtype:
        found = Strided(value, 0, shape, contiguous_strides(shape))
    if len(shape) == 4:
        access = HeadAccess(found.offset, *found.strides[:3])
        return shape, found.root, access, found.factor
    batch, rows, width = shape
    size = width // heads if heads else width
    access = HeadAccess(found.offset, found.strides[0], size, found.strides[1])
    return (batch, heads, rows, size), found.root, access, found.factor
