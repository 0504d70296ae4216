"""EyeLike: a matrix with ones on a diagonal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.operator import Operator, register, tensor

__all__ = ["EyeLike"]


@register("EyeLike", since=9)
@dataclass(frozen=True, slots=True)
class EyeLike(Operator):
    """Ones on diagonal ``k`` of a matrix shaped like the input, zeros elsewhere."""

    dtype: int | None = None
    k: int = 0

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The input's shape with the type that is wanted."""
        given = tensor(data, "input")
        if given.shape is not None and len(given.shape) != 2:
            raise ValueError(f"the input has rank {len(given.shape)}, expected a matrix")
        return [TensorType(self._dtype(given.dtype), given.shape)]

    def meaning(self, data: Array, /) -> Array:
        """NumPy's eye."""
        rows, columns = data.shape
        ones: Array = np.eye(rows, columns, self.k, dtype=np.bool_)
        return ones.astype(self._dtype(DType.of(data.dtype)).numpy)

    def _dtype(self, given: DType) -> DType:
        return given if self.dtype is None else dtype_of_code(self.dtype)
