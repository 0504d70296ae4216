"""ArgMax and ArgMin: the index of the greatest or least element along an axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import normalize_axis

__all__ = ["ArgMax", "ArgMin"]


@dataclass(frozen=True, slots=True)
class ArgExtreme(Operator):
    """The index (int64) of the first extreme element along ``axis``, or of the last one."""

    search: ClassVar[Callable[..., Any]]
    axis: int = 0
    keepdims: int = 1
    select_last_index: int = 0

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The axis reduced to 1 or dropped."""
        shape = tensor(data, "data").shape
        if shape is None:
            return [TensorType(DType.INT64, None)]
        if not shape:
            return [TensorType(DType.INT64, ())]
        axis = normalize_axis(self.axis, len(shape))
        kept = (1,) if self.keepdims else ()
        return [TensorType(DType.INT64, (*shape[:axis], *kept, *shape[axis + 1 :]))]

    def meaning(self, data: Array, /) -> Array:
        """NumPy's argmax or argmin, on the flipped axis for the last index."""
        axis = normalize_axis(self.axis, data.ndim)
        if data.ndim == 0:
            return np.zeros((), np.int64)
        values = widened(data)
        if self.select_last_index:
            flipped = type(self).search(np.flip(values, axis), axis=axis)
            found = data.shape[axis] - 1 - flipped
        else:
            found = type(self).search(values, axis=axis)
        if self.keepdims:
            found = np.expand_dims(found, axis)
        return as_array(found, np.int64)


@register("ArgMax", since=1)
@dataclass(frozen=True, slots=True)
class ArgMax(ArgExtreme):
    """The index of the greatest element along ``axis``."""

    search: ClassVar[Callable[..., Any]] = staticmethod(np.argmax)


@register("ArgMin", since=1)
@dataclass(frozen=True, slots=True)
class ArgMin(ArgExtreme):
    """The index of the least element along ``axis``."""

    search: ClassVar[Callable[..., Any]] = staticmethod(np.argmin)
