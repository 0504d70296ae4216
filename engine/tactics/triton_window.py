"""Launching a convolution made by Triton: where its tensors lie, which kernel, its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.cuda.kernel import DeviceKernel
from engine.ir.graph import Node
from engine.ir.sizes import Dim, Size, ceildiv, evaluate, minimum, modulo
from engine.ir.types import DType
from engine.lower.builder import ProgramBuilder
from engine.ops.expression import loads
from engine.ops.fused import FusedConv
from engine.plan.device import Pointer, TensorMap
from engine.tactics.triton_launch import Argument, parameters
from engine.target import CudaTarget
from engine.templates.convolution import Operand, Tile, Window, convolution_kernel
from engine.templates.convolution_tiles import resident_blocks

__all__ = ["Filters", "Source", "launch_convolution", "strides_fit"]

#: Tensor maps take addresses, and strides but the last, in multiples of this.
_MAP_NBYTES = 16
#: Of a tile whose channels lie anywhere: 32 for each thread of eight warps.
_MOST_SUMS = 32 * 256


@dataclass(frozen=True, slots=True)
class Source:
    """The input of a convolution: where it lies, its sizes, elements between its pixels.

    ``pitch`` is the number of pixels from one row to the next where that is more than ``width``;
    pixels may overlap. For "flat" kernels ``strides`` are elements between images, rows, columns
    and channels.
    """

    slot: int
    offset: Dim
    images: Dim
    height: Dim
    width: Dim
    pixel: int
    strides: tuple[Dim, Dim, int, Dim] = (0, 0, 0, 0)
    pitch: Dim | None = None

    @property
    def row(self) -> Dim:
        """Pixels from one row to the next."""
        return self.width if self.pitch is None else self.pitch


@dataclass(frozen=True, slots=True)
class Filters:
    """The packed filters: [taps * outputs, channels], or [outputs, length] for "flat"."""

    slot: int
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a result or a full operand lies; ``boxed`` when tensor maps can address it."""

    slot: int
    offset: Dim
    pixel: int
    boxed: bool


def strides_fit(window: Window, height: Dim, width: Dim) -> bool:
    """Whether a tensor map with an axis per remainder never shows what lies outside the image.

    A tap whose remainder by the stride is q meets row q of the last group of rows, which must
    exist.
    """
    for axis, size in enumerate((height, width)):
        stride, found = window.strides[axis], _remainder(window, axis)
        if found == 0 or modulo(size, stride) == 0:
            continue
        if not isinstance(size, int) or found > (size - 1) % stride:
            return False
    return True


def _remainder(window: Window, axis: int) -> int:
    """The greatest remainder of a tap's place by the stride."""
    stride = window.strides[axis]
    taps = range(window.taps[axis])
    return max((tap * window.dilations[axis] - window.pads[axis]) % stride for tap in taps)


def _is_mapped(offset: Dim, pixel: int, dtype: DType) -> bool:
    nbytes = dtype.nbytes
    return modulo(offset * nbytes, _MAP_NBYTES) == 0 and pixel * nbytes % _MAP_NBYTES == 0


def _settled(tile: Tile, window: Window, source: Source, dtype: DType, most: int | None) -> Tile:
    """The tile that a place allows.

    An input in a slice that only single elements can address is gathered by smaller blocks, whose
    addresses fit into registers; a tile count without a bound leaves no counters for splits.
    """
    whole = window.channels * dtype.nbytes % _MAP_NBYTES == 0
    if whole and tile.method != "flat" and not _is_mapped(source.offset, source.pixel, dtype):
        rows, depth = min(max(tile.rows, 64), 128), min(tile.depth, 32)
        columns = min(tile.columns, _MOST_SUMS // rows)
        tile = Tile("gather", (1, 1, rows), columns, depth, 8, 2, tile.splits)
    return replace(tile, splits=1) if most is None and tile.splits > 1 else tile


def _bound(builder: ProgramBuilder, count: Dim) -> int | None:
    """The greatest value of a count that grows with every size, None when there is none."""
    greatest = {item.name: item.greatest for item in builder.symbols}
    try:
        return evaluate(count, {k: v for k, v in greatest.items() if isinstance(v, int)})
    except KeyError:
        return None


def launch_convolution(
    builder: ProgramBuilder,
    node: Node,
    layer: int,
    window: Window,
    tile: Tile,
    source: Source,
    filters: Filters,
    target: CudaTarget,
) -> None:
    """Write the one launch of a convolution with the epilogue of a `FusedConv`."""
    op, given = node.op, node.inputs[0]
    assert isinstance(op, FusedConv) and given is not None
    images, height, width, _ = node.outputs[0].tensor.dims
    dtype = given.tensor.dtype
    tile = _settled(tile, window, source, dtype, _bound(builder, images * height * width))
    row_tiles = _row_tiles(tile, images, height, width)
    columns = window.groups * -(-window.outputs // tile.columns)
    result = _place(builder, node, len(node.inputs), tile, window)
    arguments, boxed, pixels = _operands(builder, node, tile, window)
    operands = [
        Operand(kind, value.tensor.dtype, index in boxed)
        for index, (kind, value) in enumerate(zip(op.kinds, node.inputs[2:]), 1)
        if value is not None
    ]
    element = node.outputs[0].tensor.dtype
    arguments["y"] = replace(_argument(result, node, window), writes=True)
    if not result.boxed:
        pixels["Y_PIXEL"] = result.pixel
    arguments |= _source_arguments(source, filters, window, tile, dtype, pixels)
    arguments |= {"images": images, "out_height": height, "out_width": width}
    arguments |= {"tiles_h": ceildiv(height, tile.box[1]), "tiles_w": ceildiv(width, tile.box[2])}
    arguments["tiles"] = row_tiles
    if tile.splits > 1:
        most = _bound(builder, row_tiles)
        assert most is not None
        sums = row_tiles * (columns * tile.splits * tile.rows * tile.columns)
        arguments["partial"] = Pointer(builder.workspace(DType.FLOAT32, sums), writes=True)
        arguments["counters"] = Pointer(builder.zeros(most * columns), writes=True)
    kernel = convolution_kernel(
        window,
        tile,
        op.epilogue,
        operands,
        (dtype, element),
        boxed=result.boxed,
        pixels=pixels,
        aligned=_aligned(arguments, dtype),
        waits=target.has_tensor_maps,
    )
    blocks: Dim = row_tiles * columns
    if tile.persistent:
        full = sum(kind == "full" for kind in op.kinds)
        held = target.multiprocessors * resident_blocks(tile, full, target)
        blocks = minimum(blocks, held)
    _launch(builder, kernel, (blocks, tile.splits), arguments, layer)


def _launch(
    builder: ProgramBuilder,
    kernel: DeviceKernel,
    grid: Sequence[Dim],
    arguments: dict[str, Argument],
    layer: int,
) -> None:
    wanted = {name: arguments[name] for name, _ in kernel.signature}
    builder.launch(kernel, grid, parameters(kernel, wanted), layer)


def _row_tiles(tile: Tile, images: Dim, height: Dim, width: Dim) -> Dim:
    if tile.method != "boxes":
        return ceildiv(images * height * width, tile.rows)
    high, wide = ceildiv(height, tile.box[1]), ceildiv(width, tile.box[2])
    return ceildiv(images, tile.box[0]) * high * wide


def _place(
    builder: ProgramBuilder, node: Node, position: int, tile: Tile, window: Window
) -> _Place:
    """Where an input lies, or the output for a position after the inputs."""
    value = node.inputs[position] if position < len(node.inputs) else node.outputs[0]
    assert value is not None
    slot, offset, pixel = builder.location(value)
    assert isinstance(pixel, int), "the channels of a convolution are known"
    dtype = value.tensor.dtype
    floats = dtype in (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
    whole = window.groups == 1 or window.outputs % tile.columns == 0
    boxed = tile.method == "boxes" and floats and whole and _is_mapped(offset, pixel, dtype)
    return _Place(slot, offset, pixel, boxed)


def _argument(place: _Place, node: Node, window: Window) -> Pointer | TensorMap:
    """A tensor of the output's shape as a map or a pointer."""
    images, height, width, _ = node.outputs[0].tensor.dims
    if not place.boxed:
        return Pointer(place.slot, place.offset)
    return TensorMap(
        place.slot,
        place.offset,
        (images, height, width, window.outputs * window.groups),
        (height * width * place.pixel, width * place.pixel, place.pixel, 1),
        0,
    )


def _operands(
    builder: ProgramBuilder, node: Node, tile: Tile, window: Window
) -> tuple[dict[str, Argument], set[int], dict[str, int]]:
    """Arguments of the extra operands, which of them are boxed, and pixel strides of the others."""
    op = node.op
    assert isinstance(op, FusedConv)
    arguments: dict[str, Argument] = {}
    boxed: set[int] = set()
    pixels: dict[str, int] = {}
    read = loads(op.epilogue)
    for index, (kind, value) in enumerate(zip(op.kinds, node.inputs[2:]), 1):
        assert value is not None
        if kind != "full":
            arguments[f"p{index}"] = Pointer(builder.slot(value))
            continue
        place = _place(builder, node, index + 1, tile, window)
        place = replace(place, boxed=place.boxed and index in read)
        arguments[f"p{index}"] = _argument(place, node, window)
        if place.boxed:
            boxed.add(index)
        elif index in read:
            pixels[f"PIXEL{index}"] = place.pixel
    return arguments, boxed, pixels


def _source_arguments(
    source: Source,
    filters: Filters,
    window: Window,
    tile: Tile,
    dtype: DType,
    pixels: dict[str, int],
) -> dict[str, Argument]:
    """Input and filters; adds the strides that the kernel is compiled for to ``pixels``."""
    if tile.method == "boxes":
        pixels["PIXEL"] = source.pixel
        w = TensorMap(filters.slot, 0, (filters.rows, filters.length), (filters.length, 1), 0)
        return {"x": _source_map(source, window), "w": w}
    found: dict[str, Argument] = {
        "x": Pointer(source.slot, source.offset),
        "w": Pointer(filters.slot),
        "height": source.height,
        "width": source.row,
    }
    if tile.method == "flat":
        image, row, column, channel = source.strides
        pixels |= {"COLUMN": column, "LENGTH": filters.length}
        found["width"] = source.width
        return found | {"image_stride": image, "row_stride": row, "channel_stride": channel}
    pixels["PIXEL"] = source.pixel
    return found


def _source_map(source: Source, window: Window) -> TensorMap:
    """The input as images, rows, columns, channels; with strides, rows also by their remainder."""
    channels = window.channels * window.groups
    pixel, row = source.pixel, source.row * source.pixel
    image = source.height * row
    if not window.is_strided:
        sizes: tuple[Dim, ...] = (source.images, source.height, source.width, channels)
        return TensorMap(source.slot, source.offset, sizes, (image, row, pixel, 1), 0)
    down, across = window.strides
    sizes = (
        source.images,
        ceildiv(source.height, down),
        _remainder(window, 0) + 1,
        ceildiv(source.width, across),
        _remainder(window, 1) * pixel + channels,
    )
    steps = (image, row * down, row, pixel * across, 1)
    return TensorMap(source.slot, source.offset, sizes, steps, 0)


def _aligned(arguments: dict[str, Argument], dtype: DType) -> list[str]:
    """Pointers at 16 bytes and sizes that are multiples of 16, whatever the symbols are."""
    found = []
    for name, argument in arguments.items():
        if isinstance(argument, Pointer):
            if modulo(argument.offset * dtype.nbytes, 16) == 0:
                found.append(name)
        elif isinstance(argument, (int, Size)) and name.endswith("_stride"):
            if modulo(argument, 16) == 0:
                found.append(name)
    return found
