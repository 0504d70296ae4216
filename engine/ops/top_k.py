"""TopK: the greatest or least elements along an axis, with their indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Dim, DType, Operand, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import normalize_axis, unknown

__all__ = ["TopK1", "TopK10"]


def _types(data: TensorType, axis: int, count: Dim | None) -> list[TensorType]:
    if data.shape is None:
        return [data, TensorType(DType.INT64, None)]
    axis = normalize_axis(axis, len(data.shape))
    size = data.shape[axis]
    if isinstance(count, int) and (count < 0 or (isinstance(size, int) and count > size)):
        raise ValueError(f"K is {count}, expected at most the size {size} of axis {axis}")
    length = unknown(size) if count is None else count
    dims = (*data.shape[:axis], length, *data.shape[axis + 1 :])
    return [TensorType(data.dtype, dims), TensorType(DType.INT64, dims)]


def _top(data: Array, count: int, axis: int, *, largest: bool) -> tuple[Array, Array]:
    """The first ``count`` elements of the sorted axis; of equal ones the first comes first."""
    axis = normalize_axis(axis, data.ndim)
    size = data.shape[axis]
    if not 0 <= count <= size:
        raise ValueError(f"K is {count}, expected at most the size {size} of axis {axis}")
    if largest:
        # Sorting the reversed axis upwards and reading it backwards keeps equal elements in order.
        order = size - 1 - np.flip(np.argsort(np.flip(data, axis), axis, "stable"), axis)
    else:
        order = np.argsort(data, axis, "stable")
    places = order[(slice(None),) * axis + (slice(count),)].astype(np.int64)
    return np.take_along_axis(data, places, axis), places


@register("TopK", since=1)
@dataclass(frozen=True, slots=True)
class TopK1(Operator):
    """The ``k`` greatest elements along ``axis``, falling, and their indices (int64)."""

    k: int
    axis: int = -1

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The axis shortened to k."""
        return _types(tensor(data, "X"), self.axis, self.k)

    def meaning(self, data: Array, /) -> tuple[Array, Array]:
        """A stable sort."""
        return _top(data, self.k, self.axis, largest=True)


@register("TopK", since=10)
@dataclass(frozen=True, slots=True)
class TopK10(Operator):
    """The greatest (or least) K elements along ``axis`` and their indices; K is an input.

    They come in order whether ``sorted`` is set or not.
    """

    shape_inputs = (1,)
    axis: int = -1
    largest: int = 1
    sorted: int = 1

    def infer(self, data: Operand, count: Operand, /) -> list[TensorType]:
        """The axis shortened to K."""
        tensor(count, "K")
        wanted = count.sizes[0] if count.sizes else None
        return _types(tensor(data, "X"), self.axis, wanted)

    def meaning(self, data: Array, count: Array, /) -> tuple[Array, Array]:
        """A stable sort."""
        return _top(data, int(count.reshape(-1)[0]), self.axis, largest=bool(self.largest))
