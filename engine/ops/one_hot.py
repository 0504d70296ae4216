"""OneHot: indices written as vectors with one element on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.ir.types import Array, Dim, Operand, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import normalize_axis, unknown

__all__ = ["OneHot11", "OneHot9"]


@register("OneHot", since=9)
@dataclass(frozen=True, slots=True)
class OneHot9(Operator):
    """A new axis of size ``depth``: the second value at the index, the first one elsewhere.

    An index outside [0, depth) leaves its whole vector at the first value.
    """

    wraps: ClassVar[bool] = False
    shape_inputs = (1,)
    axis: int = -1

    def infer(self, indices: Operand, depth: Operand, values: Operand, /) -> list[TensorType]:
        """The indices' shape with the new axis."""
        places, choice = tensor(indices, "indices"), tensor(values, "values")
        tensor(depth, "depth")
        if places.shape is None:
            return [TensorType(choice.dtype, None)]
        axis = normalize_axis(self.axis, len(places.shape) + 1)
        size: Dim = unknown() if depth.sizes is None else depth.sizes[0]
        if isinstance(size, int) and size < 0:
            raise ValueError(f"depth is {size}, expected a number >= 0")
        dims = (*places.shape[:axis], size, *places.shape[axis:])
        return [TensorType(choice.dtype, dims)]

    def meaning(self, indices: Array, depth: Array, values: Array, /) -> Array:
        """A comparison of the indices with all places of the new axis."""
        size, axis = int(depth.reshape(-1)[0]), normalize_axis(self.axis, indices.ndim + 1)
        places = indices.astype(np.int64)
        if self.wraps:
            places = np.where(places < 0, places + size, places)
        along = np.arange(size).reshape((size,) + (1,) * (indices.ndim - axis))
        on = np.expand_dims(places, axis) == along
        result: Array = np.where(on, values[1], values[0])
        return result.astype(values.dtype, copy=False)


@register("OneHot", since=11)
@dataclass(frozen=True, slots=True)
class OneHot11(OneHot9):
    """As before, with indices from -depth counted from the back."""

    wraps: ClassVar[bool] = True
