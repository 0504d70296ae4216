"""Which tiles of window kernels are worth measuring, by a small model of a GPU.

The model: a thread issues its loads, conversions and multiply-adds; multiprocessors take blocks in
waves; memory, the second-level cache and issue slots each bound the time, and one thread's own
chain of instructions is paid once. Constants are for the class of GPUs from compute capability 8.0
on and only order candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.cuda.windows import Geometry, Tile
from engine.target import CudaTarget

__all__ = ["Problem", "bandwidth", "ranked_tiles"]

#: Registers that hold a thread's sums; more would leave too few threads.
_MOST_SUMS = 64
_CLOCK = 1.6e9
_LATENCY = 1.5e-6
_KEPT = 10


@dataclass(frozen=True, slots=True)
class Problem:
    """Sizes at the tuned point; ``weighted`` for filters, ``paired`` for 16-bit maxima."""

    geometry: Geometry
    images: int
    height: int
    width: int
    out_height: int
    out_width: int
    channels: int
    nbytes: int
    weighted: bool
    paired: bool = False
    #: Tensors of the output's size that the epilogue reads.
    extra: int = 0


def bandwidth(target: CudaTarget) -> float:
    """Bytes per second of device memory that kernels reach, about."""
    known = {(8, 0): 1.6e12, (8, 6): 0.5e12, (8, 9): 0.28e12, (9, 0): 4.3e12, (10, 0): 7e12}
    return known.get(target.capability, 1.5e12)


def ranked_tiles(problem: Problem, target: CudaTarget, widest: int) -> list[Tile]:
    """The most promising tiles with vectors up to ``widest`` channels, best first."""
    found = {tile: _seconds(problem, tile, target) for tile in _tiles(problem, widest)}
    best = sorted(found, key=lambda tile: (found[tile], tile.threads, str(tile)))
    return _varied(best)


def _varied(tiles: list[Tile]) -> list[Tile]:
    """The best, but only two for each share of a thread: blocks differ less than shares do."""
    kept: list[Tile] = []
    counts: dict[tuple[int, int, int], int] = {}
    for tile in tiles:
        share = (tile.vector, tile.columns, tile.rows)
        counts[share] = counts.get(share, 0) + 1
        if counts[share] <= 2:
            kept.append(tile)
        if len(kept) == _KEPT:
            break
    return kept


def _tiles(problem: Problem, widest: int) -> Iterator[Tile]:
    vector, whole = widest, problem.geometry.written_out
    while vector >= max(1, min(widest, 2)):
        for columns in (1, 2, 3, 4, 7, 8):
            for high in (1, 2, 4) if whole else (1,):
                if vector * columns * high > _MOST_SUMS:
                    continue
                if whole and columns > 1 and _fetched(problem, columns) > 16:
                    continue
                if columns > problem.out_width or high > problem.out_height:
                    continue
                yield from _blocks(problem, vector, columns, high)
        vector //= 2


def _fetched(problem: Problem, columns: int) -> int:
    """Input columns that a thread holds at once."""
    geometry = problem.geometry
    return (columns - 1) * geometry.strides[1] + geometry.spans[1]


def _blocks(problem: Problem, vector: int, columns: int, rows: int) -> Iterator[Tile]:
    vectors = -(-problem.channels // vector)
    across, down = -(-problem.out_width // columns), -(-problem.out_height // rows)
    for channel_lanes in _lanes(vectors, (1, 2, 4, 8, 16, 32)):
        if channel_lanes < min(vectors, 32 // (vector * problem.nbytes)):
            continue  # a sector of 32 bytes would be read in part
        for threads in (64, 128, 256):
            rest = threads // channel_lanes
            for column_lanes in _lanes(across, (1, 2, 4, 7, 8, 14, 16, 28, 32)):
                row_lanes = min(rest // column_lanes, down)
                if row_lanes < 1:
                    continue
                tile = Tile(vector, columns, rows, channel_lanes, column_lanes, row_lanes)
                if tile.threads >= 32 or tile.threads >= vectors * across * down:
                    yield tile


def _lanes(count: int, usual: tuple[int, ...]) -> list[int]:
    """Numbers of lanes that waste little: the usual ones, and the whole axis when it is short."""
    found = {item for item in usual if item <= count}
    if count <= 64:
        found.add(count)
    return sorted(item for item in found if -(-count // item) * item <= 1.34 * count)


def _seconds(problem: Problem, tile: Tile, target: CudaTarget) -> float:
    geometry = problem.geometry
    blocks = problem.images * int(
        _whole(tile.blocks(problem.out_height, problem.out_width, problem.channels))
    )
    issued = _instructions(problem, tile)
    warps = -(-tile.threads // 32)
    waves = -(-blocks // target.multiprocessors)
    issue = waves * warps * issued / 4 / _CLOCK
    pixels = problem.images * problem.channels * problem.nbytes
    written = pixels * problem.out_height * problem.out_width
    memory = (pixels * problem.height * problem.width + written * (1 + problem.extra)) / bandwidth(
        target
    )
    # Blocks read the borders of their input again, from the second-level cache.
    high, wide, _ = tile.block
    border = ((high - 1) * geometry.strides[0] + geometry.spans[0]) / (high * geometry.strides[0])
    border *= ((wide - 1) * geometry.strides[1] + geometry.spans[1]) / (wide * geometry.strides[1])
    cache = (pixels * problem.height * problem.width * border + written) / (1.4 * bandwidth(target))
    # Short runs of bytes cost memory more than their length.
    run = min(tile.channel_lanes * tile.vector, problem.channels) * problem.nbytes
    memory *= 1.15 if run < 64 else 1.05 if run < 128 else 1.0
    chain = 1.5 * issued / _CLOCK
    return _LATENCY + max(issue, memory, cache) + 0.15 * (issue + memory + cache) + chain


def _instructions(problem: Problem, tile: Tile) -> float:
    """What one thread issues."""
    geometry = problem.geometry
    taps = geometry.kernel[0] * geometry.kernel[1]
    lines = (tile.rows - 1) * geometry.strides[0] + geometry.spans[0]
    loads = lines * _fetched(problem, tile.columns)
    outputs = tile.rows * tile.columns
    narrow = problem.nbytes == 2
    if problem.paired:
        work = outputs * taps * tile.vector / 2
    else:
        work = outputs * taps * tile.vector + (loads * tile.vector if narrow else 0)
    if problem.weighted:
        work += taps * (3 + (tile.vector if narrow else 0))
    return 80 + 5 * loads + work + outputs * (12 + 4 * tile.vector)


def _whole(dim: object) -> int:
    assert isinstance(dim, int)
    return dim
