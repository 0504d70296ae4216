"""The NumPy printer of regions whose sizes are numbers; also the twin of their C kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array
from engine.ops.arrays import as_array
from engine.ops.expression import Expression, evaluate_roots, order
from engine.ops.functions import REDUCTIONS

if TYPE_CHECKING:
    from engine.ops.region import Load, Region

__all__ = ["run", "whole"]


def whole(dim: Dim) -> int:
    """A size that must be a number by now; ValueError names the one that is not."""
    if not isinstance(dim, int):
        raise ValueError(f"the size {dim} has no value yet")
    return dim


def _view(
    flat: Array, offset: int, shape: Sequence[int], strides: Sequence[int], what: str
) -> Array:
    """A strided view, checked; axes of stride 0 have size 1. ValueError when it would leave."""
    shape = [1 if stride == 0 else size for size, stride in zip(shape, strides, strict=True)]
    if 0 in shape:
        return np.empty(shape, flat.dtype)
    steps = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    low, high = offset + sum(min(s, 0) for s in steps), offset + sum(max(s, 0) for s in steps)
    if low < 0 or high >= flat.size:
        raise ValueError(f"{what} reaches elements {low} to {high} of {flat.size}")
    nbytes = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, nbytes)


def _positions(region: Region, item: Load, index: Array) -> Array:
    """Element positions of a gathered load, of a shape that broadcasts to the space."""
    assert item.gather is not None
    rank, bound = len(region.space), whole(item.gather.bound)
    if bound < 1:
        raise ValueError("a gather from nothing")
    index = index.astype(np.int64)
    index = np.clip(np.where(index < 0, index + bound, index), 0, bound - 1)
    total = as_array(whole(item.offset) + index * whole(item.gather.stride))
    for axis, (size, stride) in enumerate(zip(region.space, item.strides, strict=True)):
        if stride != 0:
            low = next((whole(b.low) for b in item.bounds if b.axis == axis), 0)
            shape = [1] * rank
            shape[axis] = -1
            total = total + ((np.arange(whole(size)) - low) * whole(stride)).reshape(shape)
    return total


def _inside(region: Region, item: Load) -> Array:
    """Whether a bounded load reads, of a shape that broadcasts to the space."""
    rank = len(region.space)
    inside = np.ones([1] * rank, bool)
    for bound in item.bounds:
        shape = [1] * rank
        shape[bound.axis] = -1
        place = np.arange(whole(region.space[bound.axis]))
        inside = inside & ((place >= whole(bound.low)) & (place < whole(bound.high))).reshape(shape)
    return inside


def _loaded(region: Region, place: int, operands: Sequence[Array]) -> Array:
    item = region.loads[place]
    flat = operands[item.operand]
    space = [whole(size) for size in region.space]
    if item.gather is not None:
        positions = _positions(region, item, _loaded(region, item.gather.load, operands))
        inside = _inside(region, item)
        positions = np.where(inside, positions, 0) if item.bounds else positions
        if positions.size and not (positions.min() >= 0 and positions.max() < flat.size):
            raise ValueError(f"load {place} leaves its operand of {flat.size} elements")
        found: Array = flat[positions]
        return np.where(inside, found, flat.dtype.type(item.fill)) if item.bounds else found
    strides = [whole(stride) for stride in item.strides]
    if not item.bounds:
        return _view(flat, whole(item.offset), space, strides, f"load {place}")
    window, part = list(space), [slice(None)] * len(space)
    shape = [1 if stride == 0 else size for size, stride in zip(space, strides, strict=True)]
    for bound in item.bounds:
        low, high = whole(bound.low), min(whole(bound.high), space[bound.axis])
        shape[bound.axis] = space[bound.axis]
        window[bound.axis] = max(0, high - low)
        part[bound.axis] = slice(low, max(low, high))
    result = np.full(shape, item.fill, flat.dtype)
    if math.prod(window):
        view = _view(flat, whole(item.offset), window, strides, f"load {place}")
        result[tuple(part)] = view
    return result


def run(region: Region, operands: Sequence[Array], outputs: Sequence[Array]) -> None:
    """Compute a region over flat operands and write its flat outputs in place.

    Raises ValueError when a load or store would leave its array.
    """
    space = [whole(size) for size in region.space]
    rank, cache = len(space), dict[int, Array]()
    reduces = any(
        node.function in REDUCTIONS for node in order(*(store.value for store in region.stores))
    )
    if math.prod(space[:-1] if reduces else space) == 0:
        return

    def leaf(node: Expression) -> Array:
        place = int(node.value or 0)
        if node.function == "index":
            shape = [1] * rank
            shape[place] = -1
            return np.arange(space[place], dtype=np.int64).reshape(shape)
        if place not in cache:
            cache[place] = _loaded(region, place, operands)
        return cache[place]

    roots = [store.value for store in region.stores]
    values = evaluate_roots(roots, leaf, axis=-1, length=space[-1])
    for store, value in zip(region.stores, values, strict=True):
        strides = [whole(stride) for stride in store.strides]
        offset = whole(store.offset)
        view = _view(outputs[store.output], offset, space, strides, "a store")
        view[...] = value
