"""Transposes that move the last axis, by generated C with tiles in registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node
from engine.ir.sizes import Dim
from engine.kernels.transpose import Transpose, kernel_of
from engine.lower.builder import ProgramBuilder
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["CTranspose"]


class CTranspose:
    """Serves Transpose when the last axis does not stay last."""

    name = "c.transpose"
    kinds = ("Transpose",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate."""
        x = node.inputs[0]
        assert x is not None
        shape = x.tensor.dims
        perm = tuple(getattr(node.op, "perm", None) or tuple(range(len(shape)))[::-1])
        try:
            found = kernel_of(shape, perm, x.tensor.dtype)
        except ValueError as error:
            return Refusal(self.name, str(error))
        if found is None:
            return Refusal(self.name, "the last axis stays last, which is a copy of rows")
        kernel, sizes = found
        return [
            Candidate(self.name, {}, lambda b, n, layer: emit_transpose(b, n, layer, kernel, sizes))
        ]


def emit_transpose(
    builder: ProgramBuilder, node: Node, layer: int, kernel: Transpose, sizes: Sequence[Dim]
) -> None:
    """The one step of a transpose."""
    assert node.inputs[0] is not None
    operands: list[tuple[int, Dim]] = [
        (builder.slot(node.inputs[0]), 0),
        (builder.slot(node.outputs[0]), 0),
    ]
    builder.kernel(kernel, operands, list(sizes), layer)


register(CTranspose())
