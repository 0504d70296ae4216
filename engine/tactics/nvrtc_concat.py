"""Concatenation on a GPU: inputs that were made in their slices cost nothing, others are copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.c_expression import printable
from engine.cuda.region import RegionChoice
from engine.ir.graph import Node
from engine.ir.sizes import Dim, product
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import Placement, agrees, copy_region, is_joining
from engine.ops.expression import load
from engine.ops.region import Load, Region, Store
from engine.tactics.nvrtc_region import launch_region
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcConcat"]

#: Bytes of the vectors that copies move, unless strides ask for narrower ones.
ACCESS = 16


class NvrtcConcat:
    """Serves Concat of tensors of known size."""

    name = "nvrtc.concat"
    kinds = ("Concat",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate: a copy for every input that is not in place, two vectors to a thread."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "the target is no GPU")
        if not printable(node.outputs[0].tensor.dtype):
            return Refusal(self.name, "the element type has no C form")
        if not agrees(node):
            return Refusal(self.name, "sizes on other axes are not known to agree")
        return [Candidate(self.name, {"count": 2}, _emit, strided=True)]


def _emit(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """Inputs that lie in their slices already are left out."""
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
        if builder.placed.get(id(value)) != target and value.tensor.dims[-1] != 0:
            source_slot, source_offset, source_pixel = builder.location(value)
            region = copy_region(value, target, Placement(value, source_offset, source_pixel))
            _copy(builder, region, source_slot, slot, layer)
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
        if outer != 0 and block != 0:
            _copy(builder, region, builder.slot(value), builder.slot(output), layer)
        before = before + block


def _copy(builder: ProgramBuilder, region: Region, source: int, target: int, layer: int) -> None:
    width = ACCESS // region.loads[0].dtype.nbytes
    choice = RegionChoice("flat", 256, width, 2)
    launch_region(builder, region, choice, [source], [target], layer)


register(NvrtcConcat())
