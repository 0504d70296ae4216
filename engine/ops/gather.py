"""Operators that collect elements or slices by index; negative indices count from the back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import agree, normalize_axis

__all__ = ["Gather", "GatherElements", "GatherND"]


@register("Gather", since=1)
@dataclass(frozen=True, slots=True)
class Gather(Operator):
    """Slices of ``data`` along ``axis``, in the order and the shape of ``indices``."""

    symbolic = True
    axis: int = 0

    def infer(self, data: Operand, indices: Operand, /) -> list[TensorType]:
        """The axis replaced by the axes of the indices."""
        given, places = tensor(data, "data"), tensor(indices, "indices")
        if given.shape is None:
            return [TensorType(given.dtype, None)]
        axis = normalize_axis(self.axis, len(given.shape))
        if places.shape is None:
            return [TensorType(given.dtype, None)]
        dims = (*given.shape[:axis], *places.shape, *given.shape[axis + 1 :])
        return [TensorType(given.dtype, dims)]

    def meaning(self, data: Array, indices: Array, /) -> Array:
        """NumPy's take; IndexError for an index outside the axis."""
        axis = normalize_axis(self.axis, data.ndim)
        places = as_array(indices, np.int64)
        taken = np.take(data, places.reshape(-1), axis)
        return taken.reshape((*data.shape[:axis], *places.shape, *data.shape[axis + 1 :]))


@register("GatherElements", since=11)
@dataclass(frozen=True, slots=True)
class GatherElements(Operator):
    """For each entry of ``indices`` the element with that index along ``axis``."""

    symbolic = True
    axis: int = 0

    def infer(self, data: Operand, indices: Operand, /) -> list[TensorType]:
        """The shape of the indices."""
        given, places = tensor(data, "data"), tensor(indices, "indices")
        if given.shape is not None and places.shape is not None:
            normalize_axis(self.axis, len(given.shape))
            if len(given.shape) != len(places.shape):
                raise ValueError(
                    f"indices have rank {len(places.shape)}, expected that of data, {given.rank}"
                )
        return [TensorType(given.dtype, places.shape)]

    def meaning(self, data: Array, indices: Array, /) -> Array:
        """NumPy's indexing with the index arrays of all axes."""
        return as_array(data[element_index(indices, normalize_axis(self.axis, data.ndim))])


def element_index(indices: Array, axis: int) -> tuple[Array, ...]:
    """Index arrays, one per axis: the entry's own place, and its content along ``axis``."""
    index = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    index[axis] = as_array(indices, np.int64)
    return tuple(index)


@register("GatherND", since=11)
@dataclass(frozen=True, slots=True)
class GatherND(Operator):
    """Slices of ``data`` whose leading indices are the last axis of ``indices``."""

    symbolic = True
    batch_dims: int = 0

    def infer(self, data: Operand, indices: Operand, /) -> list[TensorType]:
        """Batch axes, the other axes of the indices but the last, and the axes not indexed."""
        given, places = tensor(data, "data"), tensor(indices, "indices")
        if given.shape is None or places.shape is None:
            return [TensorType(given.dtype, None)]
        batch, length = self.batch_dims, places.shape[-1] if places.shape else 0
        if not 0 <= batch < min(len(given.shape), len(places.shape)):
            raise ValueError(f"batch_dims is {batch}, expected less than both ranks")
        if not isinstance(length, int):
            return [TensorType(given.dtype, None)]
        if length > len(given.shape) - batch:
            raise ValueError(f"index tuples have {length} entries for {given.rank - batch} axes")
        pairs = zip(given.shape[:batch], places.shape[:batch], strict=True)
        head = (agree(a, b, name="a batch axis") for a, b in pairs)
        dims = (*head, *places.shape[batch:-1], *given.shape[batch + length :])
        return [TensorType(given.dtype, dims)]

    def meaning(self, data: Array, indices: Array, /) -> Array:
        """NumPy's indexing, with the batch axes flattened into one."""
        batch, length = self.batch_dims, indices.shape[-1]
        count = math.prod(data.shape[:batch])
        inner = math.prod(indices.shape[batch:-1])
        flat = data.reshape((count, *data.shape[batch:]))
        places = as_array(indices, np.int64).reshape(count, inner, length)
        rows = np.arange(count)[:, None]
        taken: Array = flat[(rows, *np.moveaxis(places, -1, 0))]
        return taken.reshape((*indices.shape[:-1], *data.shape[batch + length :]))
