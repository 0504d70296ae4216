"""Range: numbers from a start in equal steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import ceildiv, maximum
from engine.ir.types import Array, Dim, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.contents import integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import is_narrow_float, widened
from engine.ops.shapes import unknown

__all__ = ["Range"]


@register("Range", since=11)
@dataclass(frozen=True, slots=True)
class Range(Operator):
    """``start + i * delta`` for every i >= 0 for which that lies before ``limit``.

    Half and bfloat16 are computed in float32 unless ``stash_type`` is 0.
    """

    symbolic = True
    shape_inputs = (0, 1, 2)
    stash_type: int = 1

    def infer(self, start: Operand, limit: Operand, delta: Operand, /) -> list[TensorType]:
        """One axis, as long as there are numbers."""
        dtype = tensor(start, "start").dtype
        if dtype.is_integer:
            first, last, step = (item.sizes for item in (start, limit, delta))
            if not (first and last and step):
                return [TensorType(dtype, (unknown(),))]
            return [TensorType(dtype, (_length(first[0], last[0], step[0]),))]
        values = [item.value for item in (start, limit, delta)]
        if any(value is None for value in values):
            return [TensorType(dtype, (unknown(),))]
        first_value, last_value, step_value = (as_array(value) for value in values)
        return [TensorType(dtype, (_float_length(first_value, last_value, step_value),))]

    def meaning(self, start: Array, limit: Array, delta: Array, /) -> Array:
        """Each number by one multiplication and one addition, so that no error builds up."""
        dtype = start.dtype
        if dtype.kind in "iuO":
            length = integers(_length(*(item.reshape(-1)[0] for item in (start, limit, delta))))[0]
            return as_array(start + np.arange(length).astype(dtype) * delta).reshape(length)
        length = _float_length(start, limit, delta)
        if is_narrow_float(start) and self.stash_type:
            start, delta = widened(start), widened(delta)
        steps = np.arange(length).astype(start.dtype) * delta.reshape(())
        return as_array(start.reshape(()) + steps).astype(dtype)


def _length(start: Dim, limit: Dim, delta: Dim) -> Dim:
    if delta == 0:
        raise ValueError("the step of a Range is 0, expected another number")
    if not hasattr(delta, "__index__"):
        return unknown()
    if int(delta) < 0:
        return maximum(ceildiv(_plain(start) - _plain(limit), -int(delta)), 0)
    return maximum(ceildiv(_plain(limit) - _plain(start), int(delta)), 0)


def _plain(value: Dim) -> Dim:
    return int(value) if hasattr(value, "__index__") else value


def _float_length(start: Array, limit: Array, delta: Array) -> int:
    first, last, step = (float(item.reshape(-1)[0]) for item in (start, limit, delta))
    if step == 0:
        raise ValueError("the step of a Range is 0, expected another number")
    return max(math.ceil((last - first) / step), 0)
