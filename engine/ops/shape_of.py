"""Shape and Size: the sizes of a tensor as a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import unknown

__all__ = ["Shape", "Size"]


@register("Shape", since=1)
@dataclass(frozen=True, slots=True)
class Shape(Operator):
    """The sizes from axis ``start`` up to axis ``end`` as int64 [count]; both may be negative."""

    symbolic = True
    start: int = 0
    end: int | None = None

    def infer(self, data: Operand, /) -> list[TensorType]:
        """One size per axis of the range."""
        shape = tensor(data, "data").shape
        if shape is None:
            return [TensorType(DType.INT64, (unknown(),))]
        return [TensorType(DType.INT64, (len(shape[self.start : self.end]),))]

    def meaning(self, data: Array, /) -> Array:
        """The sizes themselves; Python's slicing clamps the range as the standard demands."""
        return np.array(data.shape[self.start : self.end], np.int64)


@register("Size", since=1)
@dataclass(frozen=True, slots=True)
class Size(Operator):
    """The number of elements as an int64 scalar."""

    symbolic = True

    def infer(self, data: Operand, /) -> list[TensorType]:
        """A scalar."""
        tensor(data, "data")
        return [TensorType(DType.INT64, ())]

    def meaning(self, data: Array, /) -> Array:
        """The product of the sizes."""
        return np.array(data.size, np.int64)
