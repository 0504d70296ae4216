"""Which ways of cutting a matrix product are worth measuring, the likeliest first.

A small model ranks some hundred tiles: every multiprocessor works through its share of the tiles,
each costs its products at the rate of its shape or its bytes from L2, whichever is more, and blocks
that share a multiprocessor hide each other's latency; the whole never beats memory. Rates are
measured on an H200 (790 TFLOP/s, 4.3 TB/s) and scaled by class elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.target import CudaTarget
from engine.templates.gemm import Tile

__all__ = ["Problem", "predicted_ns", "ranked_tiles", "shared_nbytes"]

#: Products and sums per nanosecond and multiprocessor at 16 bits, by major compute capability.
_RATES = {8: 2300.0, 9: 5985.0, 10: 10800.0}
#: Bytes per nanosecond: of memory, and of L2 for one multiprocessor.
_MEMORY = {8: 1600.0, 9: 4300.0, 10: 7000.0}
_L2 = {8: 45.0, 9: 70.0, 10: 90.0}
_FIXED_NS = 1500.0
_LATENCY_NS = 900.0
_LOAD_NS = 700.0
_MOST_PER_SIZE = 3
_MOST_AHEAD = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """A product as far as its speed depends on it.

    ``boxes`` says that tensor maps deliver both factors, ``box_store`` that one takes the result;
    ``fulls`` counts operands of the result's shape, ``splits`` allows ranges of K, ``ahead`` says
    that B is a constant which a launch may bring into L2 while the kernels before still run.
    """

    m: int
    n: int
    k: int
    nbytes: int
    boxes: bool
    box_store: bool
    fulls: int = 0
    batches: int = 1
    splits: bool = True
    ahead: bool = False


def shared_nbytes(problem: Problem, tile: Tile) -> int:
    """The shared memory that a tile's kernel takes at most."""
    stages = tile.stages * (tile.rows + tile.columns) * tile.depth * problem.nbytes
    result = tile.rows * tile.columns * problem.nbytes // (2 if tile.halves else 1)
    if tile.style != "persistent":
        return max(stages, result * (1 + problem.fulls)) + 256
    staged = result * (1 + problem.fulls) if problem.box_store else result
    return stages + max(staged, 1 << 15) + 1024


def ranked_tiles(problem: Problem, target: CudaTarget, limit: int = 32) -> list[Tile]:
    """Tiles that fit the device, by predicted time; few of each size, so that a search sees many.

    The order depends on nothing but the arguments.
    """
    fitting = [
        tile
        for tile in _tiles(problem, target)
        if shared_nbytes(problem, tile) <= target.shared_nbytes
    ]
    timed = [
        (predicted_ns(problem, tile, target), -tile.stages, place)
        for place, tile in enumerate(fitting)
    ]
    first: list[Tile] = []
    rest: list[Tile] = []
    seen: dict[tuple[object, ...], int] = {}
    for _, _, place in sorted(timed):
        tile = fitting[place]
        size = (tile.rows, tile.columns, tile.split, tile.style)
        seen[size] = seen.get(size, 0) + 1
        (first if seen[size] <= _MOST_PER_SIZE else rest).append(tile)
    return _with_ahead(problem, target, [*first, *rest])[:limit]


def _with_ahead(problem: Problem, target: CudaTarget, tiles: list[Tile]) -> list[Tile]:
    """The best few also with B brought ahead, where few blocks leave the device waiting for it."""
    found: list[Tile] = []
    for tile in tiles:
        blocks = -(-problem.m // tile.rows) * -(-problem.n // tile.columns) * tile.split
        lines = problem.k * problem.nbytes // (128 * tile.split) * tile.columns
        few = blocks <= 2 * target.multiprocessors and lines <= 32 * 32 * tile.warps
        if problem.ahead and few and tile.style != "persistent" and len(found) < _MOST_AHEAD:
            found.append(replace(tile, ahead=True))
        found.append(tile)
    return found


def _tiles(problem: Problem, target: CudaTarget) -> Iterator[Tile]:
    for rows, columns, warps in _SIZES:
        if (rows > 16 and rows >= 2 * _power(problem.m)) or columns >= 2 * max(
            _power(problem.n), 32
        ):
            continue
        if problem.nbytes == 4 and rows * columns > 64 * 128:
            continue
        for depth in (32, 64, 128):
            if target.capability[0] == 8 and depth == 128 and rows * columns >= 64 * 64:
                continue  # fragments of such a step do not fit the registers
            if depth * problem.nbytes > 256 or depth > max(_power(problem.k), 32):
                continue
            for stages in (2, 3, 4, 5):
                if (stages - 1) * depth >= max(problem.k, depth * 2):
                    continue
                for split in _splits(problem, target, rows, columns, depth):
                    yield from _styles(
                        problem, target, Tile("boxes", rows, columns, depth, warps, stages, split)
                    )


#: Rows, columns and warps; at most 128 sums in a thread.
_SIZES = (
    (16, 32, 4),
    (16, 64, 4),
    (16, 128, 4),
    (32, 32, 4),
    (32, 64, 4),
    (32, 128, 4),
    (64, 32, 4),
    (64, 64, 4),
    (64, 128, 4),
    (64, 256, 4),
    (64, 256, 8),
    (128, 32, 4),
    (128, 64, 4),
    (128, 128, 4),
    (128, 128, 8),
    (128, 256, 8),
    (256, 64, 4),
    (256, 64, 8),
    (256, 128, 8),
)


def _styles(problem: Problem, target: CudaTarget, tile: Tile) -> Iterator[Tile]:
    """The ways to run one size."""
    rows, columns, depth, warps = tile.rows, tile.columns, tile.depth, tile.warps
    stages, split = tile.stages, tile.split
    wide = problem.boxes and rows >= 64
    # Rows that begin anywhere are stored element by element, by as many addresses.
    if problem.n % 8 and (rows == 256 or (rows * columns > 128 * 128 and not wide)):
        return
    if not wide or stages == 3:
        yield Tile("pointers", rows, columns, depth, warps, stages, split)
    if rows <= 32 and columns >= 64:
        yield Tile("pointers", rows, columns, depth, warps, stages, split, swapped=True)
    if not wide:
        return
    yield tile
    tiles = -(-problem.m // rows) * -(-problem.n // columns)
    programs = target.multiprocessors
    if split > 1 or tiles <= programs or rows * columns < 128 * 128:
        return
    yield Tile("persistent", rows, columns, depth, warps, stages, programs=programs)
    if problem.box_store:
        yield Tile(
            "persistent", rows, columns, depth, warps, stages, halves=True, programs=programs
        )


def _splits(
    problem: Problem, target: CudaTarget, rows: int, columns: int, depth: int
) -> Iterator[int]:
    """Ranges of K that give idle multiprocessors work and leave each range a few steps."""
    yield 1
    if rows * columns > 64 * 128:  # their sums fill the registers, and are too much to write
        return
    tiles = -(-problem.m // rows) * -(-problem.n // columns)
    if not problem.splits or problem.batches > 1 or tiles > target.multiprocessors // 2:
        return
    for split in (2, 3, 4, 6, 8, 12, 16):
        steps = -(-problem.k // depth)
        if steps < 3 * split or tiles * split > 2 * target.multiprocessors:
            break
        yield split


def predicted_ns(problem: Problem, tile: Tile, target: CudaTarget) -> float:
    """What a product should take."""
    major = max(8, min(10, target.capability[0]))
    rate = _RATES[major] * _efficiency(tile, major) * (2 / problem.nbytes) ** 2
    per_matrix = -(-problem.m // tile.rows) * -(-problem.n // tile.columns)
    blocks = per_matrix * problem.batches * tile.split
    steps = -(-problem.k // (tile.depth * tile.split))
    area = tile.rows * tile.columns
    share = -(-blocks // target.multiprocessors)
    together = min(_resident(problem, tile, target), share)
    rounds = -(-share // together)
    step_nbytes = (tile.rows + tile.columns) * tile.depth * problem.nbytes
    products = 2.0 * area * tile.depth / rate
    # Loads in flight, over the time that one takes, bound what a multiprocessor receives; one
    # stage is being read, and half the time another still is.
    flow = min(_L2[major], together * (tile.stages - 1.5) * step_nbytes / _LOAD_NS)
    overhead = (45.0 if tile.style != "pointers" else 60.0) / together
    step = max(products, step_nbytes / flow) * (1.08 if tile.stages == 2 else 1.0) + overhead
    stores = area * problem.nbytes * (1 + problem.fulls) / _L2[major]
    latency = _LATENCY_NS + stores
    if tile.style == "persistent":
        latency *= 0.35 + 0.65 / rounds
    work = share * (steps * step + 0.5 * stores) + rounds * latency
    moved = (
        problem.nbytes
        * problem.batches
        * (
            problem.m * problem.k
            + problem.n * problem.k
            + problem.m * problem.n * (1 + problem.fulls)
        )
    )
    collected = 0.0
    if tile.split > 1:
        collected = 1500.0 + 4.0 * area * tile.split / _L2[major]
    bound = moved / _MEMORY[major]
    return _FIXED_NS + max(work, bound) + 0.1 * min(work, bound) + collected


def _resident(problem: Problem, tile: Tile, target: CudaTarget) -> int:
    """Blocks that share a multiprocessor."""
    threads = tile.warps * 32
    registers = min(255, 40 + tile.rows * tile.columns // (tile.warps * 32) * 5 // 4)
    if tile.style == "persistent":
        return 1
    fits = (
        target.shared_nbytes // (shared_nbytes(problem, tile) + 1024),
        65536 // (threads * registers),
        2048 // threads,
    )
    return max(1, min(fits))


def _efficiency(tile: Tile, major: int) -> float:
    """The share of the peak that the inner loop of a tile reaches."""
    area = tile.rows * tile.columns
    if area >= 128 * 256:
        share = 0.92
    elif area >= 128 * 128:
        share = 0.85
    elif area >= 64 * 128:
        share = 0.7
    elif area >= 64 * 64:
        share = 0.55
    else:
        share = 0.3
    if major >= 9 and tile.style == "pointers":
        share *= 0.8 if tile.rows >= 64 else 0.6
    if tile.depth < 64:
        share *= 0.85
    return share


def _power(size: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(size - 1, 0).bit_length()
