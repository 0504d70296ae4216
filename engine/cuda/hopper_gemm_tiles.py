"""Which tiles of Hopper's matrix product are worth measuring, the likeliest first.

A block's time is the sum over its tiles of their main loops (the greater of arithmetic and bytes
from the level-two cache) and of what the epilogue adds: in ping-pong two epilogues and one main
loop run at the same time, otherwise they follow each other. The whole never beats memory. Rates are
those of an H200 (790 TFLOP/s, 4.3 TB/s), scaled by multiprocessors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from engine.cuda.hopper_gemm import HopperTail, HopperTile
from engine.ops.expression import order
from engine.target import CudaTarget

__all__ = ["HopperProblem", "predicted_ns", "ranked_hopper_tiles"]

#: Per multiprocessor and nanosecond: floating-point operations of products, bytes from the cache,
#: instructions of an epilogue (of one element each).
_RATE, _FLOW, _ISSUE = 5985.0, 70.0, 150.0
#: Bytes of memory per nanosecond on 132 multiprocessors.
_MEMORY, _MULTIPROCESSORS = 4300.0, 132
_FIXED_NS, _FILL_NS, _TILE_NS = 2500.0, 900.0, 120.0
_LONG = {"erf": 15.0, "exp": 9.0, "tanh": 20.0, "sigmoid": 14.0, "divide": 8.0, "power": 30.0}
_OFFERED, _LEAST_STAGES, _MOST_STAGES = 8, 3, 8


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
        """Of the epilogue, per element."""
        nodes = order(self.tail.epilogue)
        own = sum(
            _LONG.get(node.function, 1.0)
            for node in nodes
            if node.function not in ("load", "constant", "cast")
        )
        return 3.0 + own + 2.0 * self.fulls + (3.0 if self.tail.store != "boxes" else 0.0)


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
    return [tile for _, _, tile in sorted(timed, key=lambda item: item[:2])[:_OFFERED]]


#: Rows, columns, ping-pong.
_SIZES = (
    (128, 128, True),
    (128, 192, True),
    (64, 256, True),
    (64, 192, True),
    (64, 128, True),
    (128, 64, True),
    (128, 256, False),
    (128, 192, False),
    (256, 128, False),
    (128, 128, False),
    (256, 192, False),
    (256, 64, False),
)


def _tiles(problem: HopperProblem, target: CudaTarget) -> Iterator[HopperTile]:
    for rows, columns, pingpong in _SIZES:
        if rows >= 2 * max(problem.m, 64) or columns >= problem.n + 128:
            continue
        tile = HopperTile(rows, columns, pingpong, _LEAST_STAGES, _buffers(problem))
        if problem.fulls and tile.sums > 128:
            continue  # operands beside so many sums would spill
        for cluster in (1, 2):
            if cluster == 2 and problem.m <= rows:
                continue
            fitting = [
                found
                for stages in range(_LEAST_STAGES, _MOST_STAGES + 1)
                if (found := replace(tile, cluster=cluster, stages=stages)).shared_nbytes
                <= target.shared_nbytes
            ]
            if fitting:
                yield fitting[-1]


def _buffers(problem: HopperProblem) -> int:
    """Buffers of a warp; an operand that is loaded ahead wants more where k is short."""
    if problem.tail.store != "boxes":
        return 1 if problem.tail.store == "rows" else 0
    if not problem.tail.staged:
        return 2
    return 4 if problem.k <= 512 else 3


def predicted_ns(problem: HopperProblem, tile: HopperTile, target: CudaTarget) -> float:
    """What a product should take."""
    units = -(-problem.m // (tile.rows * tile.cluster)) * -(-problem.n // tile.columns)
    share = -(-units // max(1, target.multiprocessors // tile.cluster))
    area = tile.rows * tile.columns
    arithmetic = 128.0 * area / (_RATE * (0.95 if tile.columns >= 128 else 0.8))
    flow = (tile.rows + tile.columns / tile.cluster) * 128.0 / _FLOW
    main = -(-problem.k // 64) * max(arithmetic, flow) + _TILE_NS
    stored = area * 2.0 * (1 + problem.fulls) / _FLOW
    own = max(area * problem.instructions / _ISSUE, stored)
    if tile.pingpong:
        own *= 1.3  # four warps hide less than eight
        work = main + (share - 1) * max(main, (main + own) / 2) + own
    else:
        work = share * (main + own)
    moved = 2.0 * (problem.k * (problem.m + problem.n) + problem.m * problem.n)
    moved += 2.0 * problem.m * problem.n * problem.fulls
    bound = moved / (_MEMORY * target.multiprocessors / _MULTIPROCESSORS)
    # Blocks of a cluster wait for each other: measured 1.2 to 1.6 times as long on an H200.
    work *= 1.0 + 0.45 * (tile.cluster - 1)
    return _FIXED_NS + _FILL_NS + max(work, bound) + 0.1 * min(work, bound)
