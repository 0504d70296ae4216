"""Concatenation: inputs that were made in their slices cost nothing, others are copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node
from engine.ir.sizes import Dim, product
from engine.kernels.region_lowering import kernel_of
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import Placement, agrees, copy_region, is_joining
from engine.ops.expression import load
from engine.ops.region import Load, Region, Store
from engine.passes.rows import REGION_DTYPES
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["CConcat"]


class CConcat:
    """Serves Concat of tensors of known size."""

    name = "c.concat"
    kinds = ("Concat",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate."""
        if node.outputs[0].tensor.dtype not in REGION_DTYPES:
            return Refusal(self.name, "the element type has no C form")
        if not agrees(node):
            return Refusal(self.name, "sizes on other axes are not known to agree")
        return [Candidate(self.name, {}, emit_concat, strided=True)]


def emit_concat(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """A copy for every input that does not lie in its slice already."""
    output = node.outputs[0]
    if not is_joining(node):
        _copy_blocks(builder, node, layer)
        return
    slot, offset, pixel = builder.location(output)
    root = builder.placed[id(output)].root if id(output) in builder.placed else output
    before: Dim = 0
    for value in node.inputs:
        assert value is not None
        target = Placement(root, offset + before, pixel)
        if builder.placed.get(id(value)) != target:
            source_slot, source_offset, source_pixel = builder.location(value)
            region = copy_region(value, target, Placement(value, source_offset, source_pixel))
            kernel, sizes = kernel_of(region)
            builder.kernel(kernel, [(source_slot, 0), (slot, 0)], sizes, layer)
        before = before + value.tensor.dims[-1]


def _copy_blocks(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """Along another axis every input is, per outer index, one block of the output."""
    output = node.outputs[0]
    shape = output.tensor.dims
    axis = int(getattr(node.op, "axis", 0)) % len(shape)
    outer, width = product(shape[:axis]), product(shape[axis:])
    before: Dim = 0
    for value in node.inputs:
        assert value is not None
        kind = value.tensor
        block = product(kind.dims[axis:])
        read = Load(0, kind.dtype, 0, (block, 1))
        store = Store(load(0, kind.dtype), 0, shape, before, (width, 1))
        region = Region((outer, block), (read,), (store,), (kind.dims,))
        kernel, sizes = kernel_of(region)
        operands: list[tuple[int, Dim]] = [(builder.slot(value), 0), (builder.slot(output), 0)]
        builder.kernel(kernel, operands, sizes, layer)
        before = before + block


register(CConcat())
