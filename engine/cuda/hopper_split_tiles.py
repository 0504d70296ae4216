"""Which tiles of a product split along k are worth measuring, the likeliest first.

A block's time is the greater of its bytes from the level-two cache and its arithmetic, then what
it sends to the other blocks of its cluster, then its results; the whole never beats memory. All of
a cluster's blocks lie in one part of the GPU (16 to 18 multiprocessors on an H200), which limits
how many clusters run at a time. Rates are those of an H200, scaled by multiprocessors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.cuda.hopper_split import SplitTail, SplitTile, SplitWindow
from engine.target import CudaTarget

__all__ = ["SplitProblem", "SplitTime", "predicted", "ranked_split_tiles"]

#: Clusters of that many blocks that run at a time on 132 multiprocessors, a block on each.
_CLUSTERS = {1: 132, 2: 66, 3: 42, 4: 32, 5: 24, 6: 18, 7: 16, 8: 16}
_MULTIPROCESSORS = 132
#: Bytes per nanosecond: of a multiprocessor from the level-two cache and to its cluster, of memory.
_FLOW, _SEND, _MEMORY = 85.0, 22.0, 4300.0
#: Bytes per nanosecond that the level-two cache gives to all 132 multiprocessors together.
_CACHE = 5800.0
_CLOCK = 1.7
_FIXED_NS, _LATENCY_NS = 1500.0, 800.0
#: What a cluster adds, what its exchange adds, and what a block adds beside which none fits.
_BEGIN_NS, _CLUSTER_NS, _ALONE_NS = 150.0, 300.0, 600.0
#: Of a multiprocessor; and what the system takes of shared memory for each block.
_SHARED, _SYSTEM, _REGISTERS, _THREADS = 228 << 10, 1 << 10, 65536, 2048
#: A product of more rows that fills the GPU more than once is for kernels without a split.
_FEW_ROWS = 64
_OFFERED = 8
_LEAST_STAGES, _RING_NS = 4, 250.0
_CLUSTERINGS = [
    (split, share) for share in (1, 2, 4, 8) for split in (1, 2, 3, 4, 6, 8) if split * share <= 8
]
_COLUMNS = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160, 192, 224, 256)


@dataclass(frozen=True, slots=True)
class SplitProblem:
    """A product as far as its speed depends on it.

    ``extent`` is images, height and width of the result, (1, 1, M) of a matrix; ``n`` features,
    ``k`` channels, ``window`` None for a matrix.
    """

    extent: tuple[int, int, int]
    n: int
    k: int
    tail: SplitTail
    window: SplitWindow | None = None

    @property
    def steps(self) -> int:
        """Slabs of 64 elements of k."""
        taps = self.window.taps[0] * self.window.taps[1] if self.window else 1
        return -(-self.k // 64) * taps

    @property
    def pixels(self) -> int:
        """Rows of the result."""
        return self.extent[0] * self.extent[1] * self.extent[2]

    def tiles(self, tile: SplitTile) -> int:
        """How many tiles there are."""
        found = -(-self.n // (tile.features * tile.share)) * tile.share
        for size, part in zip(self.extent, tile.box):
            found *= -(-size // part)
        return found


@dataclass(frozen=True, slots=True)
class SplitTime:
    """What a tile should take, and how often the GPU is filled with blocks."""

    ns: float
    waves: int


def predicted(problem: SplitProblem, tile: SplitTile, target: CudaTarget) -> SplitTime:
    """The time of a product cut that way."""
    scale = target.multiprocessors / _MULTIPROCESSORS
    shared = tile.shared_nbytes(problem.steps)
    threads = 128 * tile.groups
    registers = threads * (56 + tile.columns // 2)
    fitting = min(_SHARED // (shared + _SYSTEM), _REGISTERS // registers, _THREADS // threads)
    clusters = max(1, int(_CLUSTERS[tile.cluster] * scale))
    wanted = problem.tiles(tile) // tile.share
    held = max(1, min(fitting, -(-wanted // clusters)))
    waves = -(-wanted // (clusters * held))
    slabs = -(-problem.steps // tile.split)
    pixels = tile.box[0] * tile.box[1] * tile.box[2]
    load = held * slabs * (tile.features + pixels) * 128.0 / _FLOW
    asked = min(wanted, clusters * held) * tile.cluster * slabs * 128.0
    load = max(load, asked * (tile.features + pixels / tile.share) / (_CACHE * scale))
    product = max(tile.columns / 2, 16 + tile.columns / 4)
    arithmetic = held * slabs * 4 * tile.groups * product / _CLOCK
    area = tile.features * tile.pixels
    work = max(load, arithmetic) + 0.2 * min(load, arithmetic) + 150.0
    if tile.held(problem.steps) < slabs:
        work += _RING_NS  # stages wait for each other
    if tile.cluster > 1:
        work += _BEGIN_NS
    if tile.split > 1:
        work += _CLUSTER_NS + held * area * 4.0 * (1 - 1 / tile.split) / _SEND
    work += held * area / tile.split * (1 + len(problem.tail.kinds)) * 0.05
    if fitting < 2 and wanted * tile.cluster < 2 * target.multiprocessors:
        work += _ALONE_NS  # the next kernel's blocks find no room beside these
    moved = 2.0 * (problem.n * problem.k * problem.steps / -(-problem.k // 64))
    moved += 2.0 * problem.pixels * (problem.n + problem.k)
    bound = moved / (_MEMORY * scale)
    total = waves * work
    return SplitTime(_FIXED_NS + _LATENCY_NS + max(total, bound) + 0.2 * min(total, bound), waves)


def ranked_split_tiles(problem: SplitProblem, target: CudaTarget) -> list[SplitTile]:
    """Tiles that fit, by predicted time; the order depends on nothing but the arguments.

    None where the product has many rows and would fill the GPU more than once.
    """
    timed = []
    for place, tile in enumerate(_tiles(problem)):
        for form in _rings(tile, problem.steps, target.shared_nbytes):
            found = predicted(problem, form, target)
            if found.waves == 1 or problem.pixels <= _FEW_ROWS:
                timed.append((found.ns, place, form.stages, form))
    best: dict[tuple[object, ...], SplitTile] = {}
    for *_, tile in sorted(timed, key=lambda item: item[:3]):
        # Tiles that differ by their sizes alone differ too little to be told apart by measuring.
        key = (tile.swapped, tile.groups, tile.split, min(tile.share, 4), tile.stages > 0)
        best.setdefault(key, tile)
    ranked = list(best.values())
    alone = [tile for tile in ranked[_OFFERED:] if tile.cluster == 1][:1]
    # What needs no cluster is offered in any case: clusters cost what the model only guesses.
    if alone and all(tile.cluster > 1 for tile in ranked[:_OFFERED]):
        return [*ranked[: _OFFERED - 1], *alone]
    return ranked[:_OFFERED]


def _rings(tile: SplitTile, steps: int, most: int) -> Iterator[SplitTile]:
    """The tile with all of its part of k in shared memory, and with rings that need less.

    A ring leaves room for another block beside it, or fits where the whole does not.
    """
    slabs, whole = tile.held(steps), tile.shared_nbytes(steps)
    if whole <= most:
        yield tile
    slab = (tile.features + tile.pixels) * 128 + 16
    room = [_SHARED // 2 - _SYSTEM] if whole > _SHARED // 2 - _SYSTEM else []
    for allowed in [*room, *([most] if whole > most else [])]:
        stages = (allowed - whole + slabs * slab) // slab
        if _LEAST_STAGES <= stages < slabs:
            yield replace(tile, stages=stages)


def _tiles(problem: SplitProblem) -> Iterator[SplitTile]:
    """Every tile that the kernel has and that is not much larger than the problem."""
    for box in _boxes(problem):
        pixels = box[0] * box[1] * box[2]
        columns = -(-pixels // 8) * 8
        groups = next((count for count in (1, 2, 4) if pixels <= 64 * count), 0)
        for split, share in _CLUSTERINGS:
            if split > problem.steps:
                continue
            for count in (1, 2, 4):
                if columns <= (128 if count == 4 else 256) and 64 * (count // 2) < problem.n:
                    yield SplitTile(64 * count, columns, count, split, True, box, share)
            for features in _COLUMNS if groups and 3 * pixels >= 64 * groups else ():
                if features <= (128 if groups == 4 else 256) and features < problem.n + 8:
                    yield SplitTile(features, 64 * groups, groups, split, False, box, share)


def _boxes(problem: SplitProblem) -> list[tuple[int, int, int]]:
    """Blocks of images, rows and columns that waste few pixels."""
    images, height, width = problem.extent
    if problem.window is None:
        found = {-(-width // parts) for parts in range(1, 33)}
        sizes = {min(256, -(-size // 8) * 8) for size in found} | {64, 128, 256}
        return [(1, 1, size) for size in sorted(sizes) if size < max(2 * width, 65)]
    down, across = problem.window.strides
    best: dict[int, tuple[int, int, tuple[int, int, int]]] = {}
    for wide in {-(-width // parts) for parts in range(1, 9)}:
        for high in {-(-height // parts) for parts in range(1, height + 1)}:
            whole = (wide, high) == (width, height)
            for count in range(1, min(images, 8) + 1) if whole else (1,):
                box = (count, high, wide)
                pixels = count * high * wide
                if pixels > 256 or max(wide * across, high * down) > 256:
                    continue
                tiles = -(-images // count) * -(-height // high) * -(-width // wide)
                columns = -(-pixels // 8)
                # Of boxes that cost the same, the fewest; then those nearest to a square.
                order = (tiles, -min(high, wide), box)
                best[columns] = min(best.get(columns, order), order)
    return [box for _, _, box in sorted(best.values())]
