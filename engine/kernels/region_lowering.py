"""From a region to its kernel: axes merged and ordered, strides classified, sizes listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.ir.sizes import Dim
from engine.ir.types import DType
from engine.kernels.region import LoadForm, RegionKernel, StoreForm
from engine.ops.expression import Expression, call, index, order
from engine.ops.functions import REDUCTIONS
from engine.ops.region import Bound, Load, Region, Store

__all__ = ["kernel_of", "simplified"]

#: Innermost axes below this many elements are moved outwards where another axis serves better.
SHORT = 16


def _reindexed(root: Expression, axes: dict[int, int]) -> Expression:
    """The expression with the axes of its index nodes renumbered."""
    done: dict[Expression, Expression] = {}
    for node in order(root):
        if node.function == "index":
            done[node] = index(axes[int(node.value or 0)])
        else:
            inner = tuple(done[item] for item in node.operands)
            done[node] = Expression(node.function, node.dtype, inner, node.value)
    return done[root]


def _nodes(region: Region) -> list[Expression]:
    return order(*(store.value for store in region.stores))


def _pinned(region: Region) -> set[int]:
    """Axes that something refers to by number."""
    indexed = {int(n.value or 0) for n in _nodes(region) if n.function == "index"}
    return indexed | {bound.axis for load in region.loads for bound in load.bounds}


def _taking(region: Region, axes: Sequence[int]) -> Region:
    """The region with only the given axes, in the given order."""
    places = {axis: place for place, axis in enumerate(axes)}

    def pick(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
        return tuple(dims[axis] for axis in axes)

    loads = tuple(
        replace(
            load,
            strides=pick(load.strides),
            bounds=tuple(Bound(places[b.axis], b.low, b.high) for b in load.bounds),
        )
        for load in region.loads
    )
    stores = tuple(
        replace(s, strides=pick(s.strides), value=_reindexed(s.value, places))
        for s in region.stores
    )
    return Region(pick(region.space), loads, stores, region.operands)


def _merged(region: Region, axis: int) -> Region:
    """The region with ``axis`` and the next one made one."""
    space = region.space
    size = space[axis] * space[axis + 1]
    widened = replace_at(space, axis + 1, size)
    kept = [place for place in range(len(space)) if place != axis]
    # The inner axis carries the merged size; its strides stand for both.
    parts: tuple[Load, ...] = region.loads
    stores: tuple[Store, ...] = region.stores
    return _taking(Region(widened, parts, stores, region.operands), kept)


def replace_at(dims: tuple[Dim, ...], place: int, dim: Dim) -> tuple[Dim, ...]:
    """The sizes with one replaced."""
    return (*dims[:place], dim, *dims[place + 1 :])


def _mergeable(region: Region, axis: int) -> bool:
    inner = region.space[axis + 1]
    parts = [*(load.strides for load in region.loads), *(s.strides for s in region.stores)]
    return all(strides[axis] == strides[axis + 1] * inner for strides in parts)


def simplified(region: Region) -> Region:
    """The same region with fewer, longer axes, the one with contiguous stores last."""
    reduces = any(node.function in REDUCTIONS for node in _nodes(region))
    rank, pinned = len(region.space), _pinned(region)
    movable = rank - 1 if reduces else rank
    kept = [
        axis for axis in range(rank) if region.space[axis] != 1 or axis in pinned or axis >= movable
    ]
    region = _taking(region, kept or [rank - 1])
    region = _ordered(region, reduces)
    axis = len(region.space) - (3 if reduces else 2)
    while axis >= 0:
        pinned = _pinned(region)
        if axis not in pinned and axis + 1 not in pinned and _mergeable(region, axis):
            region = _merged(region, axis)
        axis -= 1
    return region


def _ordered(region: Region, reduces: bool) -> Region:
    """Axes by falling stride of the first store, when all of its strides are numbers."""
    count = len(region.space) - reduces
    strides = region.stores[0].strides[:count]
    if not all(isinstance(stride, int) for stride in strides):
        return region
    axes = sorted(range(count), key=lambda axis: -int(str(strides[axis])))
    last = region.space[axes[-1]] if axes else 1
    if not reduces and isinstance(last, int) and last < SHORT:
        # A long axis that a load walks contiguously makes a better innermost loop.
        for axis in axes[:-1]:
            size, loads = region.space[axis], region.loads
            if isinstance(size, int) and size >= SHORT and any(x.strides[axis] == 1 for x in loads):
                axes = [item for item in axes if item != axis] + [axis]
                break
    rest = list(range(count, len(region.space)))
    return region if axes == list(range(count)) else _taking(region, axes + rest)


def _inner(strides: Sequence[Dim]) -> str:
    if strides[-1] == 0:
        return "zero"
    return "unit" if strides[-1] == 1 else "strided"


def _normalised(root: Expression) -> Expression:
    """Shares of a row's sum, e / row_sum(e), as products with one reciprocal per row.

    A vector division per element would cost more than all else that softmax does; the result is
    within one unit in the last place.
    """
    done: dict[Expression, Expression] = {}
    for node in order(root):
        inner = tuple(done[item] for item in node.operands)
        is_share = node.function == "divide" and node.dtype is DType.FLOAT32
        if is_share and node.operands[1] is Expression("row_sum", node.dtype, (node.operands[0],)):
            done[node] = call("multiply", inner[0], call("reciprocal", inner[1]))
        else:
            done[node] = Expression(node.function, node.dtype, inner, node.value)
    return done[root]


def kernel_of(region: Region) -> tuple[RegionKernel, tuple[Dim, ...]]:
    """The kernel that computes a region, and its sizes in the order of its `size_names`.

    The kernel's operands are the region's inputs, then its outputs. Raises ValueError when an
    input is never read or an element type has no C form.
    """
    region = simplified(region)
    shares = tuple(replace(store, value=_normalised(store.value)) for store in region.stores)
    region = Region(region.space, region.loads, shares, region.operands)
    inputs = max((load.operand for load in region.loads), default=-1) + 1
    sizes: list[Dim] = list(region.space)
    loads = []
    for load in region.loads:
        axes = tuple(bound.axis for bound in load.bounds)
        place = -1 if load.gather is None else load.gather.load
        form = LoadForm(load.operand, load.dtype, _inner(load.strides), place, axes, load.fill)
        loads.append(form)
        sizes += [load.offset, *load.strides]
        if load.gather is not None:
            sizes += [load.gather.stride, load.gather.bound]
        for bound in load.bounds:
            sizes += [bound.low, bound.high]
    stores = []
    for store in region.stores:
        stores.append(StoreForm(store.output, store.value, _inner(store.strides)))
        sizes += [store.offset, *store.strides]
    layout = "columns" if _prefers_columns(region, loads, stores) else "rows"
    return RegionKernel(len(region.space), inputs, tuple(loads), tuple(stores), layout), (
        tuple(sizes)
    )


def _prefers_columns(
    region: Region, loads: Sequence[LoadForm], stores: Sequence[StoreForm]
) -> bool:
    if len(region.space) < 2 or any(store.inner != "zero" for store in stores):
        return False
    for node in _nodes(region):
        inner = order(*node.operands)
        if node.function in REDUCTIONS and any(item.function in REDUCTIONS for item in inner):
            return False
    reduces = any(node.function in REDUCTIONS for node in _nodes(region))
    strided = [place for place, load in enumerate(loads) if load.inner == "strided"]
    return (
        reduces
        and bool(strided)
        and all(region.loads[place].strides[-2] in (0, 1) for place in strided)
    )
