"""Attention by cuDNN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.cuda.cudnn_calls import AttentionCall, EngineChoice
from engine.cuda.cudnn_search import engines
from engine.errors import PlanCorruptError
from engine.ir.graph import Node
from engine.ir.types import DType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.plan.device import Operand
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["CudnnAttention"]

_DTYPES = (DType.FLOAT16, DType.BFLOAT16)
#: Elements of a 16-byte access.
_ALIGNED = 8


class CudnnAttention:
    """Serves FusedAttention in float16 and bfloat16: no mask, causal, or one value per pair.

    A mask of one value per key has no word in cuDNN, which masks keys by lengths. A choice is an
    engine of one version of the library for fixed sizes, so symbolic sizes are refused.
    """

    name = "cudnn.attention"
    kinds = ("FusedAttention",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """The library's own engines for the layer, its likeliest first."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "cuDNN needs an NVIDIA GPU")
        reason = _why_not(node, target)
        if reason:
            return Refusal(self.name, reason)
        found = engines(_call(node), _sizes(node), target)
        if isinstance(found, str):
            return Refusal(self.name, found)
        return [self._candidate(node, item) for item in found]

    def restore(self, node: Node, choice: Mapping[str, Any], target: Target) -> Candidate | None:
        """The candidate that a timing record names, made without a device.

        None when the record does not fit the layer.
        """
        if not isinstance(target, CudaTarget) or _why_not(node, target):
            return None
        try:
            chosen = EngineChoice.from_json(dict(choice))
        except PlanCorruptError:
            return None
        return self._candidate(node, chosen)

    def _candidate(self, node: Node, chosen: EngineChoice) -> Candidate:
        call = _call(node)
        return Candidate(
            self.name,
            chosen.to_json(),
            lambda builder, layer_node, layer: _emit(builder, layer_node, layer, call, chosen),
        )


def _why_not(node: Node, target: CudaTarget) -> str:
    """Why the library does not serve a layer; "" when it may."""
    op = node.op
    assert isinstance(op, FusedAttention)
    if op.position != "none":
        return "how far a query sees is read from a tensor"
    if op.causal and op.past != 0:
        return "the first query sees more than the first key"
    if op.guarded and op.mask != "none":
        return "a query that sees no key has to give zeros"
    values = [value for value in node.inputs[:3] if value is not None] + node.outputs
    dtypes = {value.tensor.dtype for value in values}
    if len(dtypes) != 1 or values[0].tensor.dtype not in _DTYPES:
        return "only float16 and bfloat16 are asked for"
    most = 256 if target.capability >= (9, 0) else 128
    if op.head_size % _ALIGNED or op.head_size > most:
        return f"heads of {op.head_size}, expected a multiple of {_ALIGNED} up to {most}"
    accesses = [op.query, op.key, op.value, op.out]
    numbers = [*op.sizes, *(dim for access in accesses for dim in access.dims())]
    masked = op.mask != "none"
    if masked:
        numbers += op.mask_access.dims()
    if not all(isinstance(dim, int) for dim in numbers):
        return "an engine holds for fixed sizes only, a size is symbolic"
    if any(int(dim) < 1 for dim in op.sizes):  # type: ignore[arg-type]
        return "a size is zero"
    steps = [int(dim) for access in accesses for dim in access.dims()]  # type: ignore[arg-type]
    if any(step % _ALIGNED for step in steps):
        return "an operand's rows do not begin on 16 bytes"
    if any(0 in access.dims()[1:] for access in accesses):
        return "heads or batches share their elements"
    if int(op.sizes[1]) % op.group:  # type: ignore[arg-type]
        return "the query heads are no multiple of the key heads"
    if not masked:
        return ""
    mask = node.inputs[3]
    assert mask is not None
    if op.mask != "full" or op.mask_access.row == 0:
        return "the mask has one value per key, cuDNN masks keys by lengths only"
    if mask.tensor.dtype not in (values[0].tensor.dtype, DType.FLOAT32):
        return f"a mask of {mask.tensor.dtype.value}"
    if op.causal:
        return "a mask besides the causal one"
    return ""


def _call(node: Node) -> AttentionCall:
    op, q = node.op, node.inputs[0]
    assert isinstance(op, FusedAttention) and q is not None and math.isfinite(op.scale)
    mask = node.inputs[3] if op.mask != "none" else None
    return AttentionCall(
        dtype=q.tensor.dtype.value,
        head_size=op.head_size,
        scale=op.scale,
        causal=op.causal,
        mask=mask.tensor.dtype.value if mask is not None else "",
    )


def _sizes(node: Node) -> dict[str, int]:
    op = node.op
    assert isinstance(op, FusedAttention)
    batch, heads, queries, keys = (int(dim) for dim in op.sizes)  # type: ignore[arg-type]
    mask = op.mask_access if op.mask != "none" else HeadAccess(0, 0, 0, 0)
    numbers = [batch, heads, heads // op.group, queries, keys]
    for access in (op.query, op.key, op.value, op.out, mask):
        numbers += [int(dim) for dim in access.dims()[1:]]  # type: ignore[arg-type]
    return dict(zip(AttentionCall.SIZES, numbers))


def _emit(
    builder: ProgramBuilder, node: Node, layer: int, call: AttentionCall, chosen: EngineChoice
) -> None:
    """The one step."""
    op = node.op
    assert isinstance(op, FusedAttention)
    accesses = [op.query, op.key, op.value, *([op.mask_access] if call.mask else [])]
    operands = []
    for value, access in zip(node.inputs, accesses):
        assert value is not None
        operands.append(Operand(builder.slot(value), access.offset))
    operands.append(Operand(builder.slot(node.outputs[0]), op.out.offset, writes=True))
    sizes = list(_sizes(node).values())
    builder.library(
        "cudnn",
        {**call.to_json(), "choice": chosen.to_json(), "sizes": sizes},
        operands,
        sizes,
        workspace_nbytes=chosen.workspace_nbytes,
        layer=layer,
    )


register(CudnnAttention())
