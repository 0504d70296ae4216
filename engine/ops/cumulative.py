"""CumSum and CumProd: running sums and products along an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.contents import integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import normalize_axis

__all__ = ["CumProd", "CumSum"]


@dataclass(frozen=True, slots=True)
class Cumulative(Operator):
    """A running reduction; ``exclusive`` leaves the element itself out, ``reverse`` starts last."""

    function: ClassVar[Any]
    exclusive: int = 0
    reverse: int = 0

    def infer(self, data: Operand, axis: Operand, /) -> list[TensorType]:
        """The type of the data."""
        tensor(axis, "axis")
        return [tensor(data, "x")]

    def meaning(self, data: Array, axis: Array, /) -> Array:
        """NumPy's accumulate; narrow floats are accumulated in float32."""
        place = normalize_axis(integers(axis)[0], data.ndim)
        function = type(self).function
        values = np.moveaxis(widened(data), place, 0)
        if self.reverse:
            values = np.flip(values, 0)
        result = function.accumulate(values, axis=0, dtype=values.dtype)
        if self.exclusive:
            result = np.concatenate([np.full_like(values[:1], function.identity), result[:-1]])
        if self.reverse:
            result = np.flip(result, 0)
        moved: Array = np.moveaxis(result, 0, place).astype(data.dtype, copy=False)
        return moved


@register("CumSum", since=11)
@dataclass(frozen=True, slots=True)
class CumSum(Cumulative):
    """Running sums."""

    symbolic = True
    function: ClassVar[Any] = np.add


@register("CumProd", since=26)
@dataclass(frozen=True, slots=True)
class CumProd(Cumulative):
    """Running products."""

    function: ClassVar[Any] = np.multiply
