"""Det: the determinant of square matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import agree

__all__ = ["Det"]


@register("Det", since=11)
@dataclass(frozen=True, slots=True)
class Det(Operator):
    """The determinants of the matrices in the last two axes."""

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The shape without the last two axes."""
        given = tensor(data, "X")
        if given.shape is None:
            return [given]
        if len(given.shape) < 2:
            raise ValueError(f"X has rank {len(given.shape)}, expected at least 2")
        agree(given.shape[-1], given.shape[-2], name="the size of a square matrix")
        return [TensorType(given.dtype, given.shape[:-2])]

    def meaning(self, data: Array, /) -> Array:
        """NumPy's determinant (LU decomposition)."""
        return as_array(np.linalg.det(widened(data))).astype(data.dtype, copy=False)
