"""Regions by generated C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node
from engine.ir.sizes import Dim
from engine.kernels.region_lowering import kernel_of
from engine.lower.builder import ProgramBuilder
from engine.ops.region import Region
from engine.tactics.tactic import Candidate, Refusal, register

__all__ = ["CRegion"]


class CRegion:
    """Serves every region whose element types C knows."""

    name = "c.region"
    kinds = ("Region",)

    def offers(self, node: Node, point: Mapping[str, int]) -> Sequence[Candidate] | Refusal:
        """One candidate: the region's own kernel."""
        assert isinstance(node.op, Region)
        try:
            kernel_of(node.op)
        except ValueError as error:
            return Refusal(self.name, str(error))
        return [Candidate(self.name, {}, emit_region)]


def emit_region(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """The one step of a region: its inputs, then its outputs."""
    assert isinstance(node.op, Region)
    kernel, sizes = kernel_of(node.op)
    values = [*node.inputs, *node.outputs]
    operands: list[tuple[int, Dim]] = [
        (builder.slot(value), 0) for value in values if value is not None
    ]
    builder.kernel(kernel, operands, sizes, layer)


register(CRegion())
