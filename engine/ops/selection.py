"""Operators whose result is as long as the data say: NonZero, Unique, Compress."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Dim, DType, Operand, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import normalize_axis, unknown

__all__ = ["Compress", "NonZero", "Unique"]


@register("NonZero", since=9)
@dataclass(frozen=True, slots=True)
class NonZero(Operator):
    """The indices of all elements that are not zero (False, empty), as int64 [rank, count]."""

    def infer(self, data: Operand, /) -> list[TensorType]:
        """As many columns as there are elements at most."""
        given = tensor(data, "X")
        if given.shape is None:
            return [TensorType(DType.INT64, (unknown(), unknown()))]
        return [TensorType(DType.INT64, (len(given.shape), unknown(given.elements)))]

    def meaning(self, data: Array, /) -> Array:
        """NumPy's nonzero, in row-major order."""
        if data.ndim == 0:
            return np.zeros((0, int(bool(data))), np.int64)
        return np.array(np.nonzero(data), np.int64)


@register("Compress", since=9)
@dataclass(frozen=True, slots=True)
class Compress(Operator):
    """The slices along ``axis`` (elements of the flattened tensor without) whose condition holds.

    A condition that is too short leaves the rest out.
    """

    axis: int | None = None

    def infer(self, data: Operand, condition: Operand, /) -> list[TensorType]:
        """The axis becomes shorter by a number that only a run tells."""
        given = tensor(data, "input")
        tensor(condition, "condition")
        count: Dim | None = None
        if condition.value is not None:
            count = int(np.count_nonzero(condition.value))
        if self.axis is None:
            bound = None if given.shape is None else given.elements
            return [TensorType(given.dtype, (unknown(bound) if count is None else count,))]
        if given.shape is None:
            return [given]
        dims = list(given.shape)
        axis = normalize_axis(self.axis, len(dims))
        dims[axis] = unknown(dims[axis]) if count is None else count
        return [TensorType(given.dtype, tuple(dims))]

    def meaning(self, data: Array, condition: Array, /) -> Array:
        """Indexing by the places where the condition holds."""
        kept = np.flatnonzero(condition)
        if self.axis is None:
            return np.take(data.reshape(-1), kept)
        return np.take(data, kept, self.axis)


@register("Unique", since=11)
@dataclass(frozen=True, slots=True)
class Unique(Operator):
    """Distinct elements, or slices along ``axis``: (Y, first indices, inverse indices, counts).

    In ascending order when ``sorted``, else in the order of their first occurrence.
    """

    axis: int | None = None
    sorted: int = 1
    output_count: int = 0

    def infer(self, data: Operand, /) -> list[TensorType]:
        """Sizes that only a run tells, bounded by the number of elements or slices."""
        given = tensor(data, "X")
        total: Dim | None = None
        if self.axis is None:
            total = None if given.shape is None else given.elements
            first = TensorType(given.dtype, (unknown(total),))
        elif given.shape is None:
            first = given
        else:
            dims = list(given.shape)
            axis = normalize_axis(self.axis, len(dims))
            total = dims[axis]
            dims[axis] = unknown(total)
            first = TensorType(given.dtype, tuple(dims))
        found = TensorType(DType.INT64, (unknown(total),))
        inverse = TensorType(DType.INT64, (unknown() if total is None else total,))
        return [first, found, inverse, found][: self.output_count or 4]

    def meaning(self, data: Array, /) -> tuple[Array, ...]:
        """NumPy's unique on ranks of the elements, so that slices of any type compare."""
        axis = 0 if self.axis is None else normalize_axis(self.axis, data.ndim)
        items = data.reshape(-1) if self.axis is None else np.moveaxis(data, axis, 0)
        width = math.prod(items.shape[1:])
        codes = np.unique(items.reshape(-1), return_inverse=True)[1].reshape(len(items), width)
        if width == 0:
            codes = np.zeros((len(items), 1), np.int64)
        _, first, inverse, counts = np.unique(
            codes, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        inverse = inverse.reshape(-1)
        if not self.sorted:
            order = np.argsort(first, kind="stable")
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            first, counts, inverse = first[order], counts[order], place[inverse]
        values = np.take(data.reshape(-1) if self.axis is None else data, first, axis)
        outputs = (values, *(part.astype(np.int64) for part in (first, inverse, counts)))
        return outputs[: self.output_count or 4]
