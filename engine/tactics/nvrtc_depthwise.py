"""Depthwise convolutions on a GPU by generated CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.depthwise import Depthwise
from engine.cuda.window_tiles import Problem, ranked_tiles
from engine.cuda.windows import (
    FLOATS,
    Ending,
    Geometry,
    Sizes,
    Tile,
    narrowed,
    widest,
    widest_vector,
)
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, evaluate
from engine.ir.types import TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv
from engine.plan.device import Parameter, Pointer
from engine.plan.recipes import RecipeStep
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcDepthwise", "end_of", "ending_operands"]


def end_of(op: FusedConv, node: Node) -> Ending:
    """The epilogue of a convolution as kernels over windows print it."""
    dtypes = tuple(value.tensor.dtype for value in node.inputs[2:] if value is not None)
    return Ending(op.epilogue, op.kinds, dtypes, op.epilogue.dtype)


def ending_operands(
    builder: ProgramBuilder, node: Node, kinds: Sequence[str]
) -> tuple[list[Pointer], dict[str, Dim], list[Dim]]:
    """Pointers to an epilogue's operands, their pixel strides by name, and what must be aligned."""
    pointers: list[Pointer] = []
    pixels: dict[str, Dim] = {}
    aligned: list[Dim] = []
    for index, (kind, value) in enumerate(zip(kinds, node.inputs[2:]), 1):
        assert value is not None
        if kind == "full":
            slot, offset, pixel = builder.location(value)
            pixels[f"e{index}_pixel"] = pixel
            aligned += [offset, pixel]
            pointers.append(Pointer(slot, offset))
        else:
            pointers.append(Pointer(builder.slot(value)))
    return pointers, pixels, aligned


def refused(node: Node, target: Target, name: str) -> Refusal | None:
    """Why no kernel over windows serves a node here."""
    if not isinstance(target, CudaTarget):
        return Refusal(name, "the target is no NVIDIA GPU")
    values = [value for value in node.inputs if value is not None] + node.outputs
    other = next((v for v in values if v.tensor.dtype not in FLOATS), None)
    if other is not None:
        return Refusal(name, f"%{other.name} is {other.tensor.dtype.value}, expected a float")
    return None


class NvrtcDepthwise:
    """Serves FusedConv with one filter per channel over NHWC."""

    name = "nvrtc.depthwise"
    kinds = ("FusedConv",)
    specialised = True

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile worth measuring."""
        reason = refused(node, target, self.name)
        if reason is not None:
            return reason
        op, x, w = node.op, node.inputs[0], node.inputs[1]
        assert isinstance(op, FusedConv) and x is not None and w is not None
        assert isinstance(target, CudaTarget)
        outputs, inputs = w.tensor.dims[:2]
        if op.group != outputs or inputs != 1 or op.input_layout != "NHWC":
            return Refusal(self.name, "it is not one filter per channel over NHWC")
        if w.constant is None or w.tensor.dtype is not x.tensor.dtype:
            return Refusal(self.name, "the filters are not constant, or of another type")
        problem = _problem(op, x, node.outputs[0], point)
        most = widest(widest_vector(x.tensor.dtype), [problem.channels])
        return [_candidate(tile) for tile in ranked_tiles(problem, target, most)]


def geometry_of(op: FusedConv, w: Value) -> Geometry:
    """The windows of a convolution."""
    _, _, high, wide = (int(dim) for dim in w.tensor.dims)  # type: ignore[arg-type]
    down, across = op.strides
    top, left, bottom, right = op.pads
    return Geometry(
        (high, wide), (down, across), (op.dilations[0], op.dilations[1]), (top, left, bottom, right)
    )


def _problem(op: FusedConv, x: Value, output: Value, point: Mapping[str, int]) -> Problem:
    w_owner = output.producer
    assert w_owner is not None and w_owner.inputs[1] is not None
    images, height, width, channels = (evaluate(d, point) for d in op.image(x.tensor.dims))
    _, out_height, out_width, _ = (evaluate(d, point) for d in output.tensor.dims)
    return Problem(
        geometry_of(op, w_owner.inputs[1]),
        images,
        height,
        width,
        out_height,
        out_width,
        channels,
        x.tensor.dtype.nbytes,
        weighted=True,
        extra=op.kinds.count("full"),
    )


def _candidate(tile: Tile) -> Candidate:
    return Candidate(
        NvrtcDepthwise.name,
        tile.to_json(),
        lambda builder, node, layer: _emit(builder, node, layer, tile),
        strided=True,
    )


def _emit(builder: ProgramBuilder, node: Node, layer: int, tile: Tile) -> None:
    """The one launch; filters are stored tap by tap."""
    op, x, w = node.op, node.inputs[0], node.inputs[1]
    assert isinstance(op, FusedConv) and x is not None and w is not None
    channels, _, high, wide = (int(dim) for dim in w.tensor.dims)  # type: ignore[arg-type]
    recipe = [
        RecipeStep("reshape", (0,), {"shape": [channels, high * wide]}),
        RecipeStep("transpose", (1,), {"order": [1, 0]}),
    ]
    filters = builder.weight(w, recipe, TensorType(w.tensor.dtype, (high * wide, channels)))
    images, height, width, _ = op.image(x.tensor.dims)
    _, out_height, out_width, _ = node.outputs[0].tensor.dims
    slot, offset, pixel = builder.location(x)
    out_slot, out_offset, out_pixel = builder.location(node.outputs[0])
    pointers, pixels, aligned = ending_operands(builder, node, op.kinds)
    vector = widest(tile.vector, [channels, offset, pixel, out_offset, out_pixel, *aligned])
    tile = narrowed(tile, vector)
    sizes = Sizes()
    sizes.add(height=height, width=width, channels=channels)
    sizes.add(out_height=out_height, out_width=out_width, x_pixel=pixel, y_pixel=out_pixel)
    sizes.add(**pixels)
    kernel = Depthwise(x.tensor.dtype, geometry_of(op, w), tile, end_of(op, node)).kernel(sizes)
    parameters: list[Parameter] = [
        Pointer(slot, offset),
        Pointer(filters),
        *pointers,
        Pointer(out_slot, out_offset, writes=True),
        *sizes.scalars,
    ]
    grid = images * tile.blocks(out_height, out_width, channels)
    builder.launch(kernel, (grid,), parameters, layer)


register(NvrtcDepthwise())
