"""Which tiles of a convolution are worth compiling, by a small model of time.

Boxes of pixels are powers of two and maps are not, so boxes are chosen by how many pixels they
waste. A tile's time is its steps, each as long as the slower of arithmetic and loads, plus filling
the pipeline and storing; tiles run in waves over the multiprocessors. Nothing is offered that
cannot fit into shared memory or registers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from engine.target import CudaTarget
from engine.templates.convolution import Method, Tile, Window

__all__ = ["Extent", "boxes", "microseconds", "resident_blocks", "shared_nbytes", "tiles"]

_ELEMENT_NBYTES = 2
_SPLITS = (2, 3, 4, 6, 8, 12, 16)
#: Of one multiprocessor, per microsecond, by major compute capability: floating-point operations of
#: 16-bit products at good tiles, bytes from the level-two cache; and bytes of memory of the device.
_SPEEDS = {8: (2.5e6, 4.0e4, 1.7e6), 9: (5.98e6, 7.5e4, 4.3e6), 10: (1.1e7, 9.0e4, 7.0e6)}
#: Sums per thread. Before 9.0 operands need registers as well, from 10.0 on sums come all at once.
_MOST_SUMS = {8: 64, 10: 64}
_LAUNCH, _FILL, _LATENCY, _ARRIVAL = 1.0, 0.8, 0.7, 0.8


@dataclass(frozen=True, slots=True)
class Extent:
    """Output pixels at one point of the profile: images, rows, columns; full extra operands."""

    images: int
    height: int
    width: int
    full_operands: int = 0

    @property
    def pixels(self) -> int:
        """All output pixels."""
        return self.images * self.height * self.width


def boxes(extent: Extent, rows: int) -> list[tuple[int, int, int]]:
    """Boxes of ``rows`` pixels (images, rows, columns), the least wasteful first."""
    powers = [1 << shift for shift in range(rows.bit_length())]
    found = []
    for high, wide in itertools.product(powers, powers):
        if high * wide > rows or high >= 2 * extent.height or wide >= 2 * extent.width:
            continue
        images = rows // (high * wide)
        if images < 2 * extent.images:
            box = (images, high, wide)
            found.append((_boxed(extent, box), -min(high, wide), box))
    return [box for _, _, box in sorted(found)]


def _boxed(extent: Extent, box: tuple[int, int, int]) -> int:
    """How many boxes cover the output."""
    images, height, width = box
    return -(-extent.images // images) * -(-extent.height // height) * -(-extent.width // width)


def _row_tiles(extent: Extent, tile: Tile) -> int:
    if tile.method == "boxes":
        return _boxed(extent, tile.box)
    return -(-extent.pixels // tile.rows)


def shared_nbytes(tile: Tile, full_operands: int) -> int:
    """Shared memory of a block: buffers of every stage, for persistent tiles also the result."""
    step = (tile.rows + tile.columns) * tile.depth * _ELEMENT_NBYTES
    result = tile.rows * tile.columns * _ELEMENT_NBYTES
    found = max(tile.stages * step, result)
    if tile.persistent:
        found = tile.stages * step + (1 + full_operands) * result
    return found + 512


def resident_blocks(tile: Tile, full_operands: int, target: CudaTarget) -> int:
    """Blocks that one multiprocessor holds at once, by shared memory and registers."""
    registers = 48 + tile.rows * tile.columns // (32 * tile.warps)
    by_registers = 65536 // (32 * tile.warps * registers)
    by_shared = (target.shared_nbytes + 1024) // (shared_nbytes(tile, full_operands) + 1024)
    return max(1, min(by_registers, by_shared, 64 // tile.warps))


def microseconds(window: Window, extent: Extent, tile: Tile, target: CudaTarget) -> float:
    """The modelled time of one launch."""
    operations, cache, memory = _SPEEDS.get(target.capability[0], _SPEEDS[9])
    columns = window.groups * -(-window.outputs // tile.columns)
    blocks = _row_tiles(extent, tile) * columns * tile.splits
    resident = resident_blocks(tile, extent.full_operands, target)
    held = min(resident, -(-blocks // target.multiprocessors))
    narrow = min(tile.rows, tile.columns) / 128
    rate = operations * (0.9 if narrow >= 1 else 0.55 + 0.35 * narrow)
    if tile.method == "boxes" and not tile.swapped:
        rate *= 0.75
    multiply = 2 * tile.rows * tile.columns * tile.depth / rate
    load = (tile.rows + tile.columns) * tile.depth * _ELEMENT_NBYTES / cache
    if tile.method != "boxes":
        load *= 1.25
    step = max(held * max(multiply, load), _LATENCY / (tile.stages - 1))
    step *= 1 + 0.12 / (tile.stages - 1)
    steps = -(-window.steps(tile) // tile.splits)
    written = tile.rows * tile.columns * _ELEMENT_NBYTES * (1 + extent.full_operands)
    store = written * target.multiprocessors / memory
    tail = _FILL + held * store
    if tile.persistent or held > 1:
        tail *= 0.5
    if tile.splits > 1:
        tail += _ARRIVAL + tile.splits * tile.rows * tile.columns * 4 / cache
    waves = -(-blocks // (target.multiprocessors * held))
    input_pixels = extent.pixels * window.strides[0] * window.strides[1]
    nbytes = input_pixels * window.channels * window.groups
    nbytes += extent.pixels * window.outputs * window.groups * (1 + extent.full_operands)
    floor = nbytes * _ELEMENT_NBYTES / memory
    return _LAUNCH + max(waves * (steps * step + tail), floor)


def tiles(
    window: Window,
    extent: Extent,
    methods: Sequence[Method],
    target: CudaTarget,
    *,
    may_split: bool,
    limit: int = 12,
) -> list[Tile]:
    """The likeliest tiles, best first; a few of every method are among them."""
    chosen: list[Tile] = []
    for index, method in enumerate(methods):
        ranked = sorted(
            _fitting(window, extent, method, target, may_split),
            key=lambda tile: (microseconds(window, extent, tile, target), str(tile)),
        )
        count = limit if index == 0 else max(2, limit // 4)
        chosen += _diverse(ranked, count, extent.full_operands, target)
    return sorted(chosen, key=lambda tile: microseconds(window, extent, tile, target))


def _diverse(
    ranked: Sequence[Tile], limit: int, full_operands: int, target: CudaTarget
) -> list[Tile]:
    """The first tiles, at most two of one size and one number of blocks held at once."""
    seen: dict[tuple[object, ...], int] = {}
    found: list[Tile] = []
    for tile in ranked:
        held = resident_blocks(tile, full_operands, target)
        key = (tile.rows, tile.columns, tile.splits, tile.persistent, min(held, 2))
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= 2:
            found.append(tile)
        if len(found) == limit:
            break
    return found


def _fitting(
    window: Window, extent: Extent, method: Method, target: CudaTarget, may_split: bool
) -> Iterator[Tile]:
    most = _MOST_SUMS.get(target.capability[0], 128)
    for tile in _shapes(window, extent, method, most):
        whole = replace(tile, persistent=True)
        blocks = _row_tiles(extent, tile) * window.groups * -(-window.outputs // tile.columns)
        offered = [tile]
        held = target.multiprocessors * resident_blocks(whole, extent.full_operands, target)
        if method == "boxes" and blocks > held:
            offered.append(whole)
        if may_split and blocks < target.multiprocessors:
            steps = window.steps(tile)
            offered += [
                replace(tile, splits=splits)
                for splits in _SPLITS
                if steps // splits >= 2 and blocks * splits <= 3 * target.multiprocessors
            ]
        full = extent.full_operands
        yield from (one for one in offered if shared_nbytes(one, full) <= target.shared_nbytes)


def _shapes(window: Window, extent: Extent, method: Method, most: int) -> Iterator[Tile]:
    """Tiles without splits, with at most ``most`` sums per thread."""
    length = window.channels * (window.taps[0] * window.taps[1] if method == "flat" else 1)
    for rows, columns, depth in itertools.product(
        (16, 32, 64, 128, 256), (32, 64, 128, 256), (16, 32, 64, 128)
    ):
        if columns >= 2 * max(window.outputs, 32) or depth >= 2 * max(length, 16):
            continue
        if depth < _least_depth(length):
            continue
        if rows >= 2 * max(extent.pixels, 64) or rows * columns > 256 * 128:
            continue
        # The matrix units take 64 rows at least, which are the channels of a swapped tile.
        swapped = method == "boxes" and columns >= 64
        if not swapped and rows < 64:
            continue
        if method == "boxes" and not _addressable(window, columns, depth):
            continue
        places = boxes(extent, rows)[:2] if method == "boxes" else [(1, 1, rows)]
        for box, warps, stages in itertools.product(places, (4, 8), (2, 3, 4, 5)):
            sums = rows * columns // (32 * warps)
            # Addresses of gathered pixels take the registers that sums of four warps would need.
            if sums > (64 if method != "boxes" and warps == 4 else most) or (
                warps == 8 and sums < 32
            ):
                continue
            yield Tile(method, box, columns, depth, warps, stages, swapped=swapped)


def _least_depth(length: int) -> int:
    """Shorter steps than this only cost more of them."""
    natural = min(64, 1 << (length - 1).bit_length())
    divisor = length & -length
    return natural if length % natural == 0 else min(natural // 2, max(16, divisor))


def _addressable(window: Window, columns: int, depth: int) -> bool:
    """Whether boxes of channels do not reach into another group or another pixel."""
    whole = window.channels % depth == 0
    if window.strides[1] > 1 and window.taps[1] > 1 and not whole:
        return False
    return window.groups == 1 or (whole and window.outputs % columns == 0)
