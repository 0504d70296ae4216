"""Which tiles of Hopper's matrix product are worth measuring, the likeliest first.

A block's time is the sum over its tiles of their main loops (the greater of arithmetic and bytes
from the level-two cache) and of what the epilogue adds: in ping-pong, and with two blocks per
multiprocessor, two epilogues and one main loop run at the same time, otherwise they follow each
other. The whole never beats memory. Rates are those of an H200, memory scaled by multiprocessors;
where all multiply at once, their clock falls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from engine.cuda.hopper_gemm import HopperTail, HopperTile
from engine.ops.expression import order
from engine.target import CudaTarget

__all__ = ["HopperProblem", "predicted_ns", "ranked_hopper_tiles"]

#: Multiplications of products per multiprocessor and cycle.
_RATE = 2048.0
#: Bytes from the cache per multiprocessor and nanosecond: of blocks with one tile and with more.
_FLOW, _FLOW_LONG = 115.0, 92.0
#: Cycles per nanosecond when all multiprocessors multiply, and what one alone runs faster.
_CLOCK, _FREE = 1.4, 0.45
#: Bytes of memory per nanosecond on 132 multiprocessors.
_MEMORY, _MULTIPROCESSORS = 4300.0, 132
_FIXED_NS, _TILE_CYCLES = 3400.0, 150.0
#: Instructions of functions in their short forms (`engine.cuda.hopper_gemm_tail`).
_LONG = {"erf": 8.0, "exp": 2.0, "tanh": 4.0, "sigmoid": 5.0, "divide": 8.0, "power": 4.0}
_LEAST_STAGES, _MOST_STAGES = 3, 8
#: Tiles offered: of products that end within some nanoseconds, and of longer ones. Those that
#: should take that much longer than the best are not.
_SHORT_NS, _OFFERED_SHORT, _OFFERED, _SLACK, _NEAR = 7000.0, 3, 6, 1.5, 1.15
#: From here on blocks that share B are worth a try.
_CLUSTER_NS = 10_000.0


@dataclass(frozen=True, slots=True)
class HopperProblem:
    """A product as far as its speed depends on it: M, N, K, and what is done to the sums."""

    m: int
    n: int
    k: int
    tail: HopperTail

    @property
    def fulls(self) -> int:
        """Operands of the result's shape."""
        return self.tail.kinds.count("full")

    @property
    def instructions(self) -> float:
        """Of the epilogue, per element, without its store."""
        nodes = order(self.tail.epilogue)
        own = sum(
            _LONG.get(node.function, 1.0)
            for node in nodes
            if node.function not in ("load", "constant", "cast")
        )
        extra = {"boxes": 0.0, "rows": 5.0, "elements": 8.0}[self.tail.store]
        return own + extra + 2.5 * self.fulls


def ranked_hopper_tiles(
    problem: HopperProblem,
    target: CudaTarget,
    rows_of: Callable[[HopperTile], int] | None = None,
) -> list[HopperTile]:
    """Tiles that fit, by predicted time; the order depends on nothing but the arguments.

    ``rows_of`` gives the rows that a tile computes where they are more than M, 0 for a tile that
    cannot be used.
    """
    timed = []
    for place, tile in enumerate(_tiles(problem, target)):
        rows = problem.m if rows_of is None else rows_of(tile)
        if rows:
            timed.append((predicted_ns(replace(problem, m=rows), tile, target), place, tile))
    timed.sort(key=lambda item: item[:2])
    if not timed:
        return []
    best = timed[0][0]
    count = _OFFERED_SHORT if best < _SHORT_NS else _OFFERED
    found = [tile for taken, _, tile in timed[:count] if taken < _SLACK * best]
    # What is saved where one kernel begins before another ends is not in the prediction.
    halves = [tile for taken, _, tile in timed if tile.blocks == 2 and taken < _NEAR * best]
    if halves and halves[0] not in found[:_OFFERED_SHORT]:
        found = [tile for tile in found if tile != halves[0]]
        found.insert(2, halves[0])
    if best > _CLUSTER_NS:
        # What multicast saves depends on what else runs: one of the best two is tried with it.
        found[2:2] = _shared(problem, found[:2], target, rows_of)[:1]
    return found[:_OFFERED]


def _shared(
    problem: HopperProblem,
    tiles: list[HopperTile],
    target: CudaTarget,
    rows_of: Callable[[HopperTile], int] | None,
) -> list[HopperTile]:
    """The tiles in clusters, but where a block of many would have nothing to do."""
    found = []
    for tile in tiles:
        pair = _fitted(replace(tile, cluster=2), target)
        asked = replace(problem, m=problem.m if rows_of is None else rows_of(tile))
        if pair is None or asked.m <= tile.rows:
            continue
        if predicted_ns(asked, pair, target) < 1.05 * predicted_ns(asked, tile, target):
            found.append(pair)
    return found


#: Rows and columns of tiles of which a multiprocessor computes two at once.
_HALVES = ((64, 128), (128, 64), (128, 128), (64, 192), (64, 96), (64, 64))
#: Rows, columns, ping-pong.
_SIZES = (
    (128, 128, True),
    (128, 192, True),
    (128, 160, True),
    (64, 256, True),
    (64, 192, True),
    (64, 128, True),
    (128, 64, True),
    (128, 96, True),
    (128, 256, False),
    (128, 192, False),
    (192, 192, False),
    (256, 128, False),
    (192, 128, False),
    (128, 128, False),
    (256, 192, False),
    (128, 224, False),
    (256, 160, False),
    (256, 64, False),
    (128, 96, False),
    (192, 160, False),
    (256, 32, False),
    (128, 32, True),
)


def _tiles(problem: HopperProblem, target: CudaTarget) -> Iterator[HopperTile]:
    wholes = [HopperTile(*size, _LEAST_STAGES) for size in _SIZES]
    halves = [HopperTile(*size, False, _LEAST_STAGES, blocks=2) for size in _HALVES]
    for tile in (*wholes, *halves):
        if tile.rows >= 2 * max(problem.m, 64) or tile.columns >= problem.n + 128:
            continue
        if problem.tail.store == "rows" and tile.part != 64:
            continue
        if problem.fulls and tile.sums > 128:
            continue  # operands beside so many sums would spill
        fitted = _fitted(replace(tile, buffers=_buffers(problem, tile)), target)
        if fitted is not None:
            yield fitted


def _fitted(tile: HopperTile, target: CudaTarget) -> HopperTile | None:
    """The tile with as many stages as its share of shared memory holds."""
    # Beside what a block asks for the device keeps 1 KiB.
    room = (target.shared_nbytes + 1024) // tile.blocks - 1024
    for stages in range(_MOST_STAGES, _LEAST_STAGES - 1, -1):
        found = replace(tile, stages=stages)
        if found.shared_nbytes <= room:
            return found
    return None


def _buffers(problem: HopperProblem, tile: HopperTile) -> int:
    """Buffers of a warp; an operand that is loaded ahead wants more where k is short."""
    if problem.tail.store != "boxes":
        return 1 if problem.tail.store == "rows" else 0
    if not problem.tail.staged:
        return 2
    if tile.groups == 3 and tile.part == 64:
        return 2  # of twelve warps
    return 4 if problem.k <= 512 or tile.part == 32 else 3


def _efficiency(columns: int) -> float:
    """The part of its rate that the hardware reaches: narrow products read A too often."""
    return 0.97 if columns >= 128 else 0.9 if columns >= 64 else 0.6


def predicted_ns(problem: HopperProblem, tile: HopperTile, target: CudaTarget) -> float:
    """What a product should take."""
    units = -(-problem.m // (tile.rows * tile.cluster)) * -(-problem.n // tile.columns)
    programs = max(1, target.multiprocessors // tile.cluster)
    share = -(-units // programs)
    both = tile.pingpong or tile.blocks == 2
    area = tile.rows * tile.columns
    flow = (tile.rows + tile.columns / tile.cluster) * 128.0
    flow /= _FLOW if share == 1 else _FLOW_LONG
    cycles = area * 64.0 / (_RATE * _efficiency(tile.columns))
    busy = units / (share * programs) * min(1.0, cycles / _CLOCK / flow)
    clock = _CLOCK + _FREE * (1.0 - busy)
    main = -(-problem.k // 64) * max(cycles / clock, flow) + _TILE_CYCLES / clock
    # A warp alone waits for its own results; more than one share the issue of instructions.
    alone = tile.sums * (6.0 + 2.0 * problem.instructions + 4.0 * problem.fulls) / clock
    if both:
        work = main + (share - 1) * max(main, (main + alone) / 2) + alone
    else:
        own = max(alone, tile.groups * tile.sums * (2.5 + problem.instructions) / clock)
        work = share * (main + own)
    moved = 2.0 * (problem.k * (problem.m + problem.n) + problem.m * problem.n)
    moved += 2.0 * problem.m * problem.n * problem.fulls
    bound = moved / (_MEMORY * target.multiprocessors / _MULTIPROCESSORS)
    return _FIXED_NS + max(work, bound) + 0.1 * min(work, bound)
