"""Attention by generated C, without a matrix of scores in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node
from engine.ir.sizes import Dim, evaluate
from engine.ir.types import DType
from engine.kernels.attention import Attention, candidates
from engine.lower.builder import ProgramBuilder
from engine.ops.fused_attention import FusedAttention
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["CAttention"]


class CAttention:
    """Serves FusedAttention in float32."""

    name = "c.attention"
    kinds = ("FusedAttention",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per block size worth measuring."""
        op = node.op
        assert isinstance(op, FusedAttention)
        if op.position != "none":
            return Refusal(self.name, "a position from a tensor has no kernel")
        values = [*node.inputs, *node.outputs]
        if any(v is not None and v.tensor.dtype is not DType.FLOAT32 for v in values):
            return Refusal(self.name, "only float32 is generated")
        kernels = candidates(
            head_size=op.head_size,
            scale=op.scale,
            mask=op.mask,
            causal=op.causal,
            keys=evaluate(op.sizes[3], point),
            guarded=op.guarded,
        )
        return [self._candidate(kernel) for kernel in kernels]

    def _candidate(self, kernel: Attention) -> Candidate:
        choice = {"query_block": kernel.query_block, "key_block": kernel.key_block}
        return Candidate(
            self.name, choice, lambda b, node, layer: emit_attention(b, node, layer, kernel)
        )


def emit_attention(builder: ProgramBuilder, node: Node, layer: int, kernel: Attention) -> None:
    """The one step: operands at their offsets, sizes, then strides of q, k, v, output and mask."""
    op = node.op
    assert isinstance(op, FusedAttention)
    accesses = [op.query, op.key, op.value]
    if op.mask != "none":
        accesses.append(op.mask_access)
    operands: list[tuple[int, Dim]] = [
        (builder.slot(value), access.offset)
        for value, access in zip(node.inputs, accesses)
        if value is not None
    ]
    operands.append((builder.slot(node.outputs[0]), op.out.offset))
    batch, heads, queries, keys = op.sizes
    sizes: list[Dim] = [batch, heads, op.group, queries, keys, op.past if op.causal else 0]
    for access in (op.query, op.key, op.value, op.out, op.mask_access):
        sizes += [access.batch, access.head, access.row]
    builder.kernel(kernel, operands, sizes, layer)


register(CAttention())
