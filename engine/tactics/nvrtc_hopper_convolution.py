"""Convolutions on Hopper as implicit matrix products by generated CUDA C, with any epilogue.

A tile's rows are a box of output pixels. For every tap of the filters the box of input pixels that
it meets is one copy by the tensor memory accelerator, which writes zeros for what lies outside of
the image and skips the pixels that strides leave out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine.cuda.hopper_gemm import FACTORS, HopperTail, HopperTile, HopperWindow, hopper_kernel
from engine.cuda.hopper_gemm_tiles import HopperProblem, ranked_hopper_tiles
from engine.cuda.hopper_prelude import hopper_target
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, ceildiv, evaluate, minimum
from engine.ir.types import TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv
from engine.plan.device import Parameter, Pointer, Scalar, TensorMap
from engine.plan.recipes import RecipeStep
from engine.tactics.nvrtc_hopper_gemm import Place, emit_plain, tail_at
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target
from engine.templates.convolution_tiles import Extent, boxes

__all__ = ["NvrtcHopperConvolution"]

_DEPTH = 64
_Box = tuple[int, int, int]


class NvrtcHopperConvolution:
    """Serves FusedConv over NHWC in 16-bit floats on Hopper, but for plain 1x1 filters."""

    name = "nvrtc.hopper_convolution"
    kinds = ("FusedConv",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile worth measuring, with the box that wastes the fewest pixels."""
        hopper = hopper_target(target)
        if isinstance(hopper, str):
            return Refusal(self.name, hopper)
        reason = _reason(node)
        if reason:
            return Refusal(self.name, reason)
        images, height, width, outputs = (evaluate(d, point) for d in node.outputs[0].tensor.dims)
        if min(images, height, width) < 1:
            return Refusal(self.name, "the result is empty")
        tail = _packed(node, outputs)
        try:
            tail.function()
            tail.pointers()
        except ValueError as error:
            return Refusal(self.name, str(error))
        if tail.store != "boxes" or [kind for kind in tail.kinds if kind == "full"][1:]:
            return Refusal(self.name, "it stores 16 bits and reads one operand of that shape")
        if "full" in tail.kinds and not tail.staged:
            return Refusal(self.name, "the operand of the result's shape is not of 16 bits")
        extent = Extent(images, height, width)
        window = _window(node)
        found = {rows: _box(extent, rows, window) for rows in (64, 128, 256)}

        def rows_of(tile: HopperTile) -> int:
            box = found.get(tile.rows)  # boxes have a power of two of pixels
            return 0 if box is None else _count(extent, box) * tile.rows

        depth = window.taps[0] * window.taps[1] * -(-_channels(node) // _DEPTH) * _DEPTH
        problem = HopperProblem(extent.pixels, outputs, depth, tail)
        offered = []
        for tile in ranked_hopper_tiles(problem, hopper, rows_of):
            box = found[tile.rows]
            assert box is not None
            offered.append(self._candidate(tile, replace(window, box=box), hopper))
        return offered or Refusal(self.name, "no box of pixels fits the strides")

    def _candidate(self, tile: HopperTile, window: HopperWindow, target: CudaTarget) -> Candidate:
        return Candidate(
            self.name,
            {**tile.to_json(), "box": list(window.box)},
            lambda builder, node, layer: _emit(builder, node, layer, tile, window, target),
            strided=True,
        )


def _reason(node: Node) -> str:
    """Why the kernel cannot compute this convolution, or nothing."""
    op, source, filters = node.op, node.inputs[0], node.inputs[1]
    assert isinstance(op, FusedConv) and source is not None and filters is not None
    dtype = source.tensor.dtype
    if dtype not in FACTORS or filters.tensor.dtype is not dtype:
        return f"{dtype.value}: the products are of float16 or bfloat16"
    if op.input_layout != "NHWC" or op.group != 1:
        return "the input is not NHWC in one group"
    if filters.constant is None:
        return "the filters are not constant, so they cannot be packed beforehand"
    outputs, channels, high, wide = filters.constant.shape
    if source.tensor.dims[-1] != channels or channels % 8 or outputs % 8:
        return f"{channels} to {outputs} channels: rows are no multiples of 16 bytes"
    if (high, wide) == (1, 1) and op.strides == (1, 1) and not any(op.pads):
        return "a 1x1 convolution is a matrix product"
    if max(op.strides) > 8:
        return "no tensor map has strides above 8"
    if "row" in op.kinds:
        return "it reads no operand with a value per row"
    return ""


def _channels(node: Node) -> int:
    filters = node.inputs[1]
    assert filters is not None and filters.constant is not None
    return int(filters.constant.shape[1])


def _window(node: Node) -> HopperWindow:
    """The window of a node; its box is for the caller to choose."""
    op, filters = node.op, node.inputs[1]
    assert isinstance(op, FusedConv) and filters is not None and filters.constant is not None
    high, wide = filters.constant.shape[2:]
    return HopperWindow(
        (int(high), int(wide)),
        (op.strides[0], op.strides[1]),
        (op.dilations[0], op.dilations[1]),
        (op.pads[0], op.pads[1]),
        (1, 1, 1),
    )


def _box(extent: Extent, rows: int, window: HopperWindow) -> _Box | None:
    """The box of that many pixels that wastes the fewest and that a tensor map can have."""
    for box in boxes(extent, rows):
        if max(box[1] * window.strides[0], box[2] * window.strides[1], box[0]) <= 256:
            return box
    return None


def _count(extent: Extent, box: _Box) -> int:
    sizes = (extent.images, extent.height, extent.width)
    images, high, wide = (-(-size // part) for size, part in zip(sizes, box))
    return images * high * wide


def _kinds(node: Node, outputs: int) -> tuple[str, ...]:
    """The kinds of operands; a column of one element is a scalar."""
    op = node.op
    assert isinstance(op, FusedConv)
    found = []
    for kind, value in zip(op.kinds, node.inputs[2:]):
        assert value is not None
        dims = value.tensor.dims
        single = kind == "column" and outputs != 1 and all(dim == 1 for dim in dims)
        found.append("scalar" if single else kind)
    return tuple(found)


def _packed(node: Node, outputs: int) -> HopperTail:
    """The epilogue when every tensor is packed in memory of its own."""
    fulls = {
        place: Place(0, 0, outputs, value.tensor.dtype)
        for place, (kind, value) in enumerate(zip(_kinds(node, outputs), node.inputs[2:]), 1)
        if kind == "full" and value is not None
    }
    y = Place(0, 0, outputs, node.outputs[0].tensor.dtype)
    return tail_at(node, _kinds(node, outputs), y, fulls)


def _place(builder: ProgramBuilder, value: Value | None) -> Place:
    assert value is not None
    return Place(*builder.location(value), value.tensor.dtype)


def _map(
    place: Place,
    dims: Sequence[Dim],
    form: int,
    *,
    strides: tuple[int, int] = (1, 1),
    writes: bool = False,
) -> TensorMap:
    """Images, rows, columns and channels that lie in a place."""
    images, height, width, channels = dims
    row = width * place.pitch
    return TensorMap(
        place.slot,
        place.offset,
        (images, height, width, channels),
        (height * row, row, place.pitch, 1),
        form,
        (1, *strides, 1),
        writes,
    )


def _filters(builder: ProgramBuilder, value: Value) -> tuple[int, int, int]:
    """The slot of the filters as [outputs, taps * channels], and these sizes."""
    assert value.constant is not None
    outputs, channels, high, wide = (int(size) for size in value.constant.shape)
    length = channels * high * wide
    steps = [RecipeStep("transpose", (0,), {"order": [0, 2, 3, 1]})]
    steps.append(RecipeStep("reshape", (1,), {"shape": [outputs, length]}))
    slot = builder.weight(value, steps, TensorType(value.tensor.dtype, (outputs, length)))
    return slot, outputs, length


def _emit(
    builder: ProgramBuilder,
    node: Node,
    layer: int,
    tile: HopperTile,
    window: HopperWindow,
    target: CudaTarget,
) -> None:
    """One launch; of the plain kernel where a tensor lies where no tensor map describes it."""
    source, filters, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert source is not None and filters is not None
    dims = result.tensor.dims
    kinds = _kinds(node, int(dims[-1]))  # type: ignore[arg-type]
    x, y = _place(builder, source), _place(builder, result)
    fulls = {
        place: _place(builder, value)
        for place, (kind, value) in enumerate(zip(kinds, node.inputs[2:]), 1)
        if kind == "full"
    }
    if not all(where.boxable for where in (x, y, *fulls.values())):
        emit_plain(builder, node, layer, target)
        return
    tail = tail_at(node, kinds, y, fulls)
    kernel = hopper_kernel(source.tensor.dtype, tail, tile, constant=True, window=window)
    slot, outputs, length = _filters(builder, filters)
    parameters: list[Parameter] = [
        _map(x, source.tensor.dims, 0, strides=window.strides),
        Place(slot, 0, length, filters.tensor.dtype).map(outputs, length, 1),
        _map(y, dims, 2, writes=True),
    ]
    if tail.staged:
        parameters.append(_map(fulls[tail.staged], dims, 3))
    for place, value in enumerate(node.inputs[2:], 1):
        if place not in fulls:
            assert value is not None
            parameters.append(Pointer(builder.slot(value)))
    high, wide = (ceildiv(size, part) for size, part in zip(dims[1:3], window.box[1:]))
    tiles = ceildiv(dims[0], window.box[0]) * high * wide
    sizes = (tiles, high, wide, outputs, _channels(node))
    parameters += [Scalar("i32", size) for size in sizes]
    units = ceildiv(tiles, tile.cluster) * -(-outputs // tile.columns)
    programs = tile.blocks * target.multiprocessors // tile.cluster
    builder.launch(kernel, (minimum(units, programs) * tile.cluster,), parameters, layer)


register(NvrtcHopperConvolution())
