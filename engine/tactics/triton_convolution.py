"""Convolutions as implicit matrix products by Triton: boxes, gathered pixels, flat filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.triton_expression import check_epilogue
from engine.ir.graph import Node
from engine.ir.sizes import Dim, evaluate
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv
from engine.ops.pad import Pad2
from engine.plan.operators import operator_to_json
from engine.plan.recipes import RecipeStep
from engine.tactics.tactic import Candidate, Refusal, register
from engine.tactics.triton_window import Filters, Source, launch_convolution, strides_fit
from engine.target import CudaTarget, Target
from engine.templates.convolution import Method, Tile, Window
from engine.templates.convolution_tiles import Extent, tiles

__all__ = ["TritonConvolution", "extent_of", "refusal_of"]

_LEAST_GROUP = 16
_GRANULE = 8


def refusal_of(node: Node, name: str, target: Target) -> Refusal | None:
    """Why no convolution of Triton's serves a layer, whatever the kernel."""
    op, source, filters = node.op, node.inputs[0], node.inputs[1]
    assert isinstance(op, FusedConv) and source is not None and filters is not None
    if not isinstance(target, CudaTarget):
        return Refusal(name, "the target is no NVIDIA GPU")
    dtype, result = source.tensor.dtype, node.outputs[0].tensor.dtype
    if dtype not in (DType.FLOAT16, DType.BFLOAT16) or filters.tensor.dtype is not dtype:
        return Refusal(name, f"{dtype.value}: the products are of float16 or bfloat16")
    if result not in (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32):
        return Refusal(name, f"results of {result.value} are not stored")
    if filters.constant is None:
        return Refusal(name, "the filters are not constant, so they cannot be packed beforehand")
    if not isinstance(op.image(source.tensor.dims)[3], int):
        return Refusal(name, "the number of channels is not known")
    reason = check_epilogue(op.epilogue, op.kinds)
    return Refusal(name, reason) if reason else None


def extent_of(node: Node, point: Mapping[str, int]) -> Extent:
    """The output's pixels at one point."""
    op = node.op
    assert isinstance(op, FusedConv)
    images, height, width, _ = (evaluate(dim, point) for dim in node.outputs[0].tensor.dims)
    return Extent(images, height, width, sum(kind == "full" for kind in op.kinds))


class TritonConvolution:
    """Serves FusedConv of 16-bit floats with any stride, dilation and padding."""

    name = "triton.convolution"
    kinds = ("FusedConv",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """The likeliest tiles of every method that can read the input."""
        refused = refusal_of(node, self.name, target)
        if refused is not None:
            return refused
        op, source, filters = node.op, node.inputs[0], node.inputs[1]
        assert isinstance(op, FusedConv) and source is not None and filters is not None
        assert isinstance(target, CudaTarget)
        outputs, channels, high, wide = (_number(dim) for dim in filters.tensor.dims)
        window = Window(
            channels,
            outputs // op.group,
            op.group,
            (high, wide),
            _pair(op.strides),
            _pair(op.dilations),
            _pair(op.pads[:2]),
            any(op.pads),
        )
        if op.group > 1 and min(channels, window.outputs) < _LEAST_GROUP:
            return Refusal(self.name, f"groups of {channels} channels leave matrix units idle")
        if op.input_layout == "NHWC" and (high, wide) == (1, 1) and not window.is_strided:
            if not window.padded and op.group == 1:
                return Refusal(self.name, "a 1x1 convolution is a matrix product")
        methods = _methods(op, window, source.tensor.dims, target)
        offered = tiles(window, extent_of(node, point), methods, target, may_split=True)
        if not offered:
            return Refusal(self.name, "no tile fits into shared memory")
        strided = op.input_layout == "NHWC"
        return [self._candidate(window, tile, target, strided) for tile in offered]

    def _candidate(
        self, window: Window, tile: Tile, target: CudaTarget, strided: bool
    ) -> Candidate:
        return Candidate(
            self.name,
            tile.to_json(),
            lambda b, node, layer: _emit(b, node, layer, window, tile, target),
            strided=strided,
        )


def _methods(
    op: FusedConv, window: Window, dims: Sequence[Dim], target: CudaTarget
) -> list[Method]:
    """The ways of reading the input, the likeliest first."""
    _, height, width, _ = op.image(dims)
    if op.input_layout == "NCHW" or window.channels * window.groups < _LEAST_GROUP:
        return ["flat"]
    whole = window.channels % _GRANULE == 0
    if target.has_tensor_maps and whole and strides_fit(window, height, width):
        return ["boxes", "gather"]
    return ["gather"]


def _emit(
    builder: ProgramBuilder,
    node: Node,
    layer: int,
    window: Window,
    tile: Tile,
    target: CudaTarget,
) -> None:
    """The one launch."""
    source = _source(builder, node, window)
    pack = _flat_filters if tile.method == "flat" else _tap_filters
    launch_convolution(
        builder, node, layer, window, tile, source, pack(builder, node, window), target
    )


def _source(builder: ProgramBuilder, node: Node, window: Window) -> Source:
    """Where the input lies; NCHW has no pixels, only strides."""
    op, value = node.op, node.inputs[0]
    assert isinstance(op, FusedConv) and value is not None
    images, height, width, channels = op.image(value.tensor.dims)
    if op.input_layout == "NCHW":
        slot, plane = builder.slot(value), height * width
        strides = (channels * plane, width, 1, plane)
        return Source(slot, 0, images, height, width, 1, strides)
    slot, offset, pixel = builder.location(value)
    step = _number(pixel)
    strides = (height * width * step, width * step, step, 1)
    return Source(slot, offset, images, height, width, step, strides)


def _tap_filters(builder: ProgramBuilder, node: Node, window: Window) -> Filters:
    """The filters as [R * S * K, C]."""
    filters = node.inputs[1]
    assert filters is not None
    rows = window.taps[0] * window.taps[1] * window.outputs * window.groups
    shape = [rows, window.channels]
    recipe = [
        RecipeStep("transpose", (0,), {"order": [2, 3, 0, 1]}),
        RecipeStep("reshape", (1,), {"shape": shape}),
    ]
    kind = TensorType(filters.tensor.dtype, tuple(shape))
    return Filters(builder.weight(filters, recipe, kind), rows, window.channels)


def _flat_filters(builder: ProgramBuilder, node: Node, window: Window) -> Filters:
    """The filters as [K, C * R * S], each padded with zeros to a multiple of 16 bytes."""
    filters = node.inputs[1]
    assert filters is not None
    rows = window.outputs * window.groups
    length = window.channels * window.taps[0] * window.taps[1]
    padded = -(-length // _GRANULE) * _GRANULE
    pad = operator_to_json(Pad2((0, 0, 0, padded - length)))
    recipe = [
        RecipeStep("reshape", (0,), {"shape": [rows, length]}),
        RecipeStep("meaning", (1,), {"operator": pad}),
    ]
    kind = TensorType(filters.tensor.dtype, (rows, padded))
    return Filters(builder.weight(filters, recipe, kind), rows, padded)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    first, second = numbers
    return first, second


def _number(dim: Dim) -> int:
    assert isinstance(dim, int), "the channels and filters of a convolution are known"
    return dim


register(TritonConvolution())
