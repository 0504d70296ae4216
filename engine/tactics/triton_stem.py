"""First convolutions, of few channels: pixels to channels, then boxes over pixels that overlap.

With a block of the stride's size per pixel, a 7x7 convolution with stride 2 over 3 channels is a
4x4 one with stride 1 over 12 channels, padded to 16. The 4 taps of a row then lie side by side in
memory: a tensor whose pixels are 16 elements apart and 64 long holds all of them, and 4 steps of
depth 64 remain. Patches (stride = filter) become a plain matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node
from engine.ir.sizes import Dim, ceildiv
from engine.ir.types import TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv
from engine.ops.pad import Pad2
from engine.plan.device import Pointer
from engine.plan.operators import operator_to_json
from engine.plan.recipes import RecipeStep
from engine.tactics.tactic import Candidate, Refusal, register
from engine.tactics.triton_convolution import extent_of, refusal_of
from engine.tactics.triton_launch import parameters
from engine.tactics.triton_window import Filters, Source, launch_convolution
from engine.target import CudaTarget, Target
from engine.templates.convolution import Method, Tile, Window
from engine.templates.convolution_tiles import tiles
from engine.templates.repack import Repack, repack_kernel

__all__ = ["TritonStem"]

_FEW_CHANNELS = 16
_GRANULE = 8


class TritonStem:
    """Serves FusedConv of few channels in 16-bit floats by two launches."""

    name = "triton.stem"
    kinds = ("FusedConv",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """The likeliest tiles of the convolution over the repacked image."""
        refused = refusal_of(node, self.name, target)
        if refused is not None:
            return refused
        op, source, filters = node.op, node.inputs[0], node.inputs[1]
        assert isinstance(op, FusedConv) and source is not None and filters is not None
        assert isinstance(target, CudaTarget)
        outputs, channels, high, wide = (_number(dim) for dim in filters.tensor.dims)
        if op.group != 1 or op.dilations != (1, 1):
            return Refusal(self.name, "groups or dilation")
        if channels >= _FEW_CHANNELS:
            return Refusal(self.name, f"{channels} channels need no repacking")
        if (high, wide) == (1, 1) and op.strides == (1, 1):
            return Refusal(self.name, "a 1x1 convolution is a matrix product")
        down, across = op.strides
        depth = -(-channels * down * across // _GRANULE) * _GRANULE
        pads = (op.pads[0], op.pads[1])
        repack = Repack((down, across), channels, pads, depth, op.input_layout == "NCHW")
        taps = (-(-high // down), -(-wide // across))
        window = Window(taps[1] * depth, outputs, 1, (taps[0], 1), (1, 1), (1, 1), (0, 0), False)
        methods: list[Method] = ["boxes", "gather"] if target.has_tensor_maps else ["gather"]
        offered = tiles(window, extent_of(node, point), methods, target, may_split=True, limit=8)
        if not offered:
            return Refusal(self.name, "no tile fits into shared memory")
        return [self._candidate(repack, taps, window, tile, target) for tile in offered]

    def _candidate(
        self,
        repack: Repack,
        taps: tuple[int, int],
        window: Window,
        tile: Tile,
        target: CudaTarget,
    ) -> Candidate:
        return Candidate(
            self.name,
            {**tile.to_json(), "block": list(repack.block)},
            lambda b, node, layer: _emit(b, node, layer, repack, taps, window, tile, target),
            strided=not repack.channels_first,
        )


def _emit(
    builder: ProgramBuilder,
    node: Node,
    layer: int,
    repack: Repack,
    taps: tuple[int, int],
    window: Window,
    tile: Tile,
    target: CudaTarget,
) -> None:
    """The repacking and the convolution."""
    op, value = node.op, node.inputs[0]
    assert isinstance(op, FusedConv) and value is not None
    images, height, width, channels = op.image(value.tensor.dims)
    _, out_height, out_width, _ = node.outputs[0].tensor.dims
    high, wide = out_height + (taps[0] - 1), out_width + (taps[1] - 1)
    offset: Dim = 0
    strides: tuple[Dim, Dim, Dim, Dim]
    if repack.channels_first:
        slot, plane = builder.slot(value), height * width
        strides = (channels * plane, width, 1, plane)
    else:
        slot, offset, pixel = builder.location(value)
        strides = (height * width * pixel, width * pixel, pixel, 1)
    dtype = value.tensor.dtype
    packed = builder.workspace(dtype, images * high * wide * repack.depth)
    kernel = repack_kernel(repack, dtype, waits=target.has_tensor_maps)
    sizes = dict(zip(("images", "high", "wide", "height", "width"), (images, high, wide)))
    sizes |= {"height": height, "width": width}
    names = ("image_stride", "row_stride", "column_stride", "channel_stride")
    arguments = {
        "x": Pointer(slot, offset),
        "y": Pointer(packed, writes=True),
        **sizes,
        **dict(zip(names, strides)),
    }
    grid = (ceildiv(images * high * wide, repack.pixels), -(-repack.depth // repack.lanes))
    builder.launch(kernel, grid, parameters(kernel, arguments), layer)
    source = Source(packed, 0, images, high, out_width, repack.depth, pitch=wide)
    filters = _filters(builder, node, repack, taps)
    launch_convolution(builder, node, layer, window, tile, source, filters, target)


def _filters(builder: ProgramBuilder, node: Node, repack: Repack, taps: tuple[int, int]) -> Filters:
    """The filters [K, C, R, S] as [rows of taps * K, taps of a row * depth]."""
    value = node.inputs[1]
    assert value is not None
    outputs, channels, high, wide = (_number(dim) for dim in value.tensor.dims)
    down, across = repack.block
    ends = (0, 0, 0, 0, 0, 0, taps[0] * down - high, taps[1] * across - wide)
    order = [2, 0, 4, 1, 3, 5] if repack.channels_first else [2, 0, 4, 3, 5, 1]
    block = channels * down * across
    rows, length = taps[0] * outputs, taps[1] * repack.depth
    widen = Pad2((0, 0, 0, repack.depth - block))
    recipe = [
        RecipeStep("meaning", (0,), {"operator": operator_to_json(Pad2(ends))}),
        RecipeStep("reshape", (1,), {"shape": [outputs, channels, taps[0], down, taps[1], across]}),
        RecipeStep("transpose", (2,), {"order": order}),
        RecipeStep("reshape", (3,), {"shape": [rows * taps[1], block]}),
        RecipeStep("meaning", (4,), {"operator": operator_to_json(widen)}),
        RecipeStep("reshape", (5,), {"shape": [rows, length]}),
    ]
    kind = TensorType(value.tensor.dtype, (rows, length))
    return Filters(builder.weight(value, recipe, kind), rows, length)


def _number(dim: Dim) -> int:
    assert isinstance(dim, int), "the channels and filters of a convolution are known"
    return dim


register(TritonStem())
