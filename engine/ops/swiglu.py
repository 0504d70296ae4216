"""SwiGLU: a value gated by the swish of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import agree

__all__ = ["SwiGLU"]


@register("SwiGLU", since=28)
@dataclass(frozen=True, slots=True)
class SwiGLU(Operator):
    """``gate * sigmoid(alpha * gate) * value``, both of one shape."""

    alpha: float = 1.0

    def infer(self, gate: Operand, value: Operand, /) -> list[TensorType]:
        """The type of the gate."""
        a, b = tensor(gate, "A"), tensor(value, "B")
        if a.shape is None or b.shape is None:
            return [TensorType(a.dtype, b.shape if a.shape is None else a.shape)]
        if len(a.shape) != len(b.shape):
            raise ValueError(f"A is {a} and B is {b}, expected one shape")
        pairs = zip(a.shape, b.shape, strict=True)
        return [TensorType(a.dtype, tuple(agree(x, y, name="an axis") for x, y in pairs))]

    def meaning(self, gate: Array, value: Array, /) -> Array:
        """The sigmoid with powers of e below 1 only, so that none overflows."""
        a = widened(gate)
        scaled = a * a.dtype.type(self.alpha)
        power = np.exp(-np.abs(scaled))
        opened = np.where(scaled >= 0, a.dtype.type(1), power) / (1 + power)
        return as_array(a * opened * widened(value)).astype(gate.dtype, copy=False)
