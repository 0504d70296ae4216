"""Operators that write updates into a copy of a tensor by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.gather import element_index
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import normalize_axis

__all__ = ["Scatter", "ScatterElements", "ScatterND", "TensorScatter"]

_REDUCTIONS: dict[str, Any] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def _write(data: Array, index: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    """A copy of ``data`` with the updates put, or combined with what stands there."""
    if reduction == "none":
        result = np.array(data, object if updates.dtype == object else data.dtype)
        result[index] = updates
        return result
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected none or one of {list(_REDUCTIONS)}")
    result = np.array(widened(data))
    _REDUCTIONS[reduction].at(result, index, widened(updates))
    return result.astype(data.dtype, copy=False)


def _same_dtype(data: Operand, updates: Operand) -> list[TensorType]:
    given, new = tensor(data, "data"), tensor(updates, "updates")
    if given.dtype is not new.dtype:
        raise ValueError(f"updates are {new.dtype.value}, expected {given.dtype.value} as the data")
    return [given]


def _infer_elements(
    data: Operand, indices: Operand, updates: Operand, axis: int
) -> list[TensorType]:
    given, places = tensor(data, "data"), tensor(indices, "indices")
    if given.shape is not None:
        normalize_axis(axis, len(given.shape))
        if places.shape is not None and len(places.shape) != len(given.shape):
            raise ValueError(f"indices have rank {places.rank}, expected {given.rank}")
    return _same_dtype(data, updates)


@register("ScatterElements", since=11)
@dataclass(frozen=True, slots=True)
class ScatterElements(Operator):
    """A copy of ``data``; each update goes to its own place, with its index along ``axis``."""

    symbolic = True
    axis: int = 0
    reduction: str = "none"

    def infer(self, data: Operand, indices: Operand, updates: Operand, /) -> list[TensorType]:
        """The type of the data."""
        return _infer_elements(data, indices, updates, self.axis)

    def meaning(self, data: Array, indices: Array, updates: Array, /) -> Array:
        """Assignment (the last one wins), or NumPy's unbuffered ``ufunc.at``."""
        index = element_index(indices, normalize_axis(self.axis, data.ndim))
        return _write(data, index, updates, self.reduction)


@register("Scatter", since=9)
@dataclass(frozen=True, slots=True)
class Scatter(Operator):
    """The former name of ScatterElements, without a reduction."""

    symbolic = True
    axis: int = 0

    def infer(self, data: Operand, indices: Operand, updates: Operand, /) -> list[TensorType]:
        """The type of the data."""
        return _infer_elements(data, indices, updates, self.axis)

    def meaning(self, data: Array, indices: Array, updates: Array, /) -> Array:
        """Assignment; the last one wins."""
        index = element_index(indices, normalize_axis(self.axis, data.ndim))
        return _write(data, index, updates, "none")


@register("ScatterND", since=11)
@dataclass(frozen=True, slots=True)
class ScatterND(Operator):
    """A copy of ``data``; each slice of updates goes where its index tuple points."""

    symbolic = True
    reduction: str = "none"

    def infer(self, data: Operand, indices: Operand, updates: Operand, /) -> list[TensorType]:
        """The type of the data."""
        given, places = tensor(data, "data"), tensor(indices, "indices")
        length = places.shape[-1] if places.shape else None
        if given.shape is not None and isinstance(length, int) and length > len(given.shape):
            raise ValueError(f"index tuples have {length} entries for {given.rank} axes")
        return _same_dtype(data, updates)

    def meaning(self, data: Array, indices: Array, updates: Array, /) -> Array:
        """Assignment (the last one wins), or NumPy's unbuffered ``ufunc.at``."""
        index = tuple(np.moveaxis(as_array(indices, np.int64), -1, 0))
        return _write(data, index, updates, self.reduction)


@register("TensorScatter", since=24)
@dataclass(frozen=True, slots=True)
class TensorScatter(Operator):
    """A key or value cache with new entries along the sequence axis, per sample of the batch."""

    axis: int = -2
    mode: str = "linear"

    def infer(
        self, cache: Operand, update: Operand, write_indices: Operand | None = None, /
    ) -> list[TensorType]:
        """The type of the cache."""
        given = tensor(cache, "past_cache")
        if given.shape is not None and normalize_axis(self.axis, len(given.shape)) == 0:
            raise ValueError("axis is the batch axis, expected a later one")
        if self.mode not in ("linear", "circular"):
            raise ValueError(f"mode is {self.mode!r}, expected 'linear' or 'circular'")
        return _same_dtype(cache, update)

    def meaning(self, cache: Array, update: Array, write_indices: Array | None = None, /) -> Array:
        """Assignment per sample; in mode circular the places wrap around."""
        axis = normalize_axis(self.axis, cache.ndim)
        result, steps = cache.copy(), np.arange(update.shape[axis])
        for sample in range(cache.shape[0]):
            places = steps + (0 if write_indices is None else int(write_indices[sample]))
            if self.mode == "circular":
                places %= cache.shape[axis]
            elif places.size and not (places[0] >= 0 and places[-1] < cache.shape[axis]):
                raise ValueError(
                    f"entries {places[0]} to {places[-1]} are written to a cache of "
                    f"{cache.shape[axis]}; expected them to fit, or mode 'circular'"
                )
            index: tuple[Any, ...] = (*(slice(None),) * (axis - 1), places)
            result[sample][index] = update[sample]
        return result
