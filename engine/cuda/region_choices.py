"""Choices worth measuring for a region, the likeliest first, by a small model of a GPU.

A kernel takes the longer of moving its bytes and issuing its instructions, plus the latency of one
thread: loads, exchanges of reductions, its own instructions. Constants are of an H200, scaled by
the number of multiprocessors for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.cuda.region import RegionChoice, is_vector
from engine.cuda.size_text import divides
from engine.ir.sizes import Dim, evaluate, product
from engine.ops.expression import order
from engine.ops.functions import REDUCTIONS
from engine.ops.region import Load, Region, Store
from engine.target import CudaTarget

__all__ = ["choices"]

MOST = 4
#: Seconds: a kernel that does nothing, one trip to memory, one exchange in a warp, in a block.
FIXED, TRIP, WARP_EXCHANGE, BLOCK_EXCHANGE = 0.9e-6, 0.6e-6, 0.09e-6, 0.06e-6
CLOCK = 1.7e9
#: Bytes per second and multiprocessor, from memory and from the first-level cache.
BANDWIDTH, CACHE = 4.3e12 / 132, 96 * CLOCK
#: Blocks begin one after another, and so do their warps: seconds each (measured on an H200).
BLOCK, STARTED_WARP = 1.28e-9, 0.31e-9
#: Elements of a row that a thread keeps, over all arrays it keeps them in.
MOST_KEPT = 96
WARP = 32
#: Rows for each multiprocessor from which on threads may take several at once.
PLENTY = 8


def choices(region: Region, point: Mapping[str, int], target: CudaTarget) -> list[RegionChoice]:
    """At most four choices for a region at a shape point; at least one."""
    nodes = order(*(store.value for store in region.stores))
    if not any(node.function in REDUCTIONS for node in nodes):
        return _flat(region, point, target)
    found: dict[RegionChoice, float] = {}
    rows = _at(product(region.space[:-1]), point)
    if _prefers_columns(region):
        return _columns(region, point, target)
    for width in _widths(region)[:2]:
        for choice in _rows(region, width, _at(region.space[-1], point)):
            if choice.rows == 1 or rows >= PLENTY * target.multiprocessors:
                found[choice] = _row_cost(region, choice, point, target)
    ranked = sorted(found, key=lambda item: (found[item], -item.width, str(item)))
    return _diverse(ranked, 1 if rows >= PLENTY * target.multiprocessors else 2)


def _diverse(ranked: list[RegionChoice], most: int) -> list[RegionChoice]:
    """The first few, at most so many of them with as many threads to a row and rows at once."""
    found: list[RegionChoice] = []
    for choice in ranked:
        alike = [item for item in found if item.lanes == choice.lanes and item.rows == choice.rows]
        if len(alike) < most and len(found) < MOST:
            found.append(choice)
    return found


def _widths(region: Region, axis: int = -1, *, tail: bool = False) -> list[int]:
    """Vector widths that the last axis and its contiguous accesses allow, the best first."""
    axis %= len(region.space)
    items: list[Load | Store] = [*region.loads, *region.stores]
    near = [item for item in items if item.strides[axis] == 1]
    nbytes = [item.dtype.nbytes for item in region.loads if item.strides[axis] == 1]
    nbytes += [s.value.dtype.nbytes for s in region.stores if s.strides[axis] == 1]
    if not nbytes:
        return [1]
    found = []
    width = max(1, min(16 // min(nbytes), 32 // max(nbytes)))
    while width >= 1:
        fits = tail or divides(width, region.space[axis])
        served = sum(is_vector(item, width, axis, tail=tail) for item in near)
        stores = all(is_vector(s, width, axis, tail=tail) for s in region.stores if s in near)
        if fits and (width == 1 or (stores and 2 * served > len(near))):
            found.append(width)
        width //= 2
    return found


def _flat(region: Region, point: Mapping[str, int], target: CudaTarget) -> list[RegionChoice]:
    single = len(region.space) == 1
    widths = _widths(region, tail=single)
    points = _at(product(region.space), point)
    loads = max(1, len(region.loads))
    found = []
    for width in widths[:2]:
        vectors = max(1, points // width)
        # As many vectors per thread as leave every multiprocessor with two blocks or more.
        counts = [
            count
            for count in (4, 2, 1)
            if count == 1
            or (vectors >= target.multiprocessors * 512 * count and count * width * loads <= 64)
        ]
        for count in counts[:2]:
            for threads in (256, 128):
                if threads == 128 and vectors > target.multiprocessors * 2048:
                    continue
                found.append(RegionChoice("flat", threads, width, count))
    if points // widths[0] < target.multiprocessors * 128:
        found.sort(key=lambda choice: (choice.width != widths[0], choice.threads))
    return found[:MOST]


def _rows(region: Region, width: int, usual: int) -> list[RegionChoice]:
    length = region.space[-1]
    found = []
    kept = _kept(region)
    if isinstance(length, int):
        for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
            lanes = _lanes(-(-length // (width * count)))
            registers = 65536 // max(lanes, 128) - 40
            if lanes > 1024 or count * width * kept > min(MOST_KEPT + 48, registers):
                continue
            if (count - 1) * lanes * width >= length:
                continue  # fewer vectors would do
            for threads in (lanes,) if lanes > WARP else (128, 256, max(lanes, WARP)):
                choice = RegionChoice("rows", threads, width, count, lanes)
                found += [choice, *_several(region, choice)]
    if not found:  # too long for registers, or of any length
        for lanes in (8, WARP, 128, 256, 512, 1024):
            count = max(1, min(4, 32 // (width * kept)))
            if lanes == 8 or lanes * width < 2 * usual:
                found.append(RegionChoice("passes", max(lanes, 128), width, count, lanes))
    return found


def _several(region: Region, choice: RegionChoice) -> list[RegionChoice]:
    """The choice with several rows at once, where registers hold what is in flight of all."""
    found = [replace(choice, rows=rows) for rows in (2, 4)]
    most = min(128, 65536 // max(256, choice.threads) - 16)
    return [item for item in found if _registers(region, item) <= most]


def _registers(region: Region, choice: RegionChoice) -> int:
    """What a thread holds, about: loads of all rows as they lie in memory, values of each row."""
    axis = len(region.space) - 1
    along = [load for load in region.loads if load.strides[axis] != 0]
    moving = [load for load in along if _moves(load, axis)]
    nbytes = sum(load.dtype.nbytes * (choice.rows if load in moving else 1) for load in along)
    return 32 + choice.count * choice.width * (nbytes + 4 * choice.rows) // 4


def _moves(load: Load, axis: int) -> bool:
    """Whether a load may differ from row to row."""
    steps = any(stride != 0 for stride in load.strides[:axis])
    return steps or load.gather is not None or bool(load.bounds)


def _lanes(least: int) -> int:
    """Threads for a row: a power of two inside a warp, else whole warps."""
    return 1 << (least - 1).bit_length() if least <= WARP else -(-least // WARP) * WARP


def _row_cost(
    region: Region, choice: RegionChoice, point: Mapping[str, int], target: CudaTarget
) -> float:
    length = _at(region.space[-1], point)
    rows = max(1, _at(product(region.space[:-1]), point))
    nodes = order(*(store.value for store in region.stores))
    depth, processors = _depth(region), target.multiprocessors
    passes = 1 if choice.form == "rows" else depth + 1
    trips = -(-length // (choice.lanes * choice.width))  # vectors of one thread
    own = trips * choice.width * (len(nodes) + 4) * passes  # instructions for a row
    blocks = -(-rows * choice.lanes // (choice.threads * choice.rows))
    registers = 40 + choice.count * choice.width * _kept(region)
    if choice.form == "rows":
        registers = _registers(region, choice)
    resident = max(1, min(32, min(2048, 65536 // registers) // choice.threads))
    waves = -(-blocks // (processors * resident))
    busy = min(1.0, blocks / processors)
    issue = rows * choice.lanes / WARP * own / (processors * 4 * CLOCK * busy)
    moving, shared = _row_nbytes(region)
    moved = rows * length * moving / (BANDWIDTH * processors * min(1.0, 2 * busy))
    near = rows * length * (moving + shared / choice.rows) / (CACHE * processors * busy)
    rounds = waves * passes * -(-trips // choice.count)
    exchanges = depth * WARP_EXCHANGE * (min(choice.lanes, WARP).bit_length() - 1) / 5
    if choice.lanes > WARP:
        exchanges += depth * BLOCK_EXCHANGE * (1 + choice.lanes / 512)
    begun = blocks * max(BLOCK, STARTED_WARP * choice.threads / WARP)
    bound = max(moved, near, issue, rounds * TRIP, begun)
    return FIXED + bound + TRIP + waves * exchanges + choice.rows * own / CLOCK


def _kept(region: Region) -> int:
    """Arrays over a row that a thread keeps, about."""
    return 1 + sum(load.strides[-1] != 0 for load in region.loads)


def _row_nbytes(region: Region) -> tuple[int, int]:
    """Bytes for each point of a row that come from memory or go there, and of what rows share."""
    axis = len(region.space) - 1
    along = [load for load in region.loads if load.strides[axis] != 0]
    moving = sum(load.dtype.nbytes for load in along if _moves(load, axis))
    moving += sum(s.value.dtype.nbytes for s in region.stores if s.strides[axis] != 0)
    return moving, sum(load.dtype.nbytes for load in along if not _moves(load, axis))


def _depth(region: Region) -> int:
    levels: dict[object, int] = {}
    for node in order(*(store.value for store in region.stores)):
        below = max((levels[item] for item in node.operands), default=0)
        levels[node] = below + (node.function in REDUCTIONS)
    return max(levels.values())


def _prefers_columns(region: Region) -> bool:
    """Whether the reduced axis is strided and the axis before it is contiguous."""
    if len(region.space) < 2 or _depth(region) != 1 or region.space[-1] == 1:
        return False
    if any(store.strides[-1] != 0 for store in region.stores):
        return False
    strided = [load for load in region.loads if load.strides[-1] not in (0, 1)]
    near = any(load.strides[-1] == 1 for load in region.loads)
    return bool(strided) and not near and all(x.strides[-2] in (0, 1) for x in strided)


def _columns(region: Region, point: Mapping[str, int], target: CudaTarget) -> list[RegionChoice]:
    length = _at(region.space[-1], point)
    width = _widths(region, -2)[0]
    vectors = max(1, _at(product(region.space[:-1]), point) // width)
    found = []
    for across in (32, 16, 8, 4):
        for lanes in (4, 8, 16, 32, 64):
            threads = across * lanes
            if not 64 <= threads <= 512 or threads * width * 4 > 40 << 10:
                continue
            blocks = -(-vectors // across)
            waves = -(-blocks // (target.multiprocessors * (2048 // threads)))
            trips = -(-length // lanes)
            cost = waves * (TRIP * max(1, trips / 4)) + lanes * 2e-8
            # Short runs of bytes waste parts of sectors.
            cost *= 1 + 64 / (across * width * 2 + 64) / 4
            count = max(1, min(4, 32 // width))
            found.append((cost, RegionChoice("columns", threads, width, count, lanes)))
    found.sort(key=lambda item: (item[0], str(item[1])))
    return [choice for _, choice in found[:MOST]]


def _at(dim: Dim, point: Mapping[str, int]) -> int:
    """A size at the shape point; symbols without a value count as 1."""
    from engine.ir.sizes import symbols

    return evaluate(dim, {**dict.fromkeys(symbols(dim), 1), **point})
