"""A tensor seen in another shape: what Reshape, Flatten, Squeeze and Unsqueeze come down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.ir.sizes import evaluate, provably_equal
from engine.ir.types import Array, Dim, Operand, TensorType, Type
from engine.ops.operator import DOMAIN, Operator, register

__all__ = ["View"]


@register("View", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class View(Operator):
    """The same elements in row-major order under another shape; it costs nothing at run time."""

    shape: tuple[Dim, ...] = ()

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        (x,) = operands
        assert x is not None
        result = TensorType(x.dtype, self.shape)
        if x.shape is not None and provably_equal(x.tensor.elements, result.elements) is False:
            raise ValueError(f"{x.type} cannot be seen as {result}")
        return [result]

    def meaning(self, *inputs: Array) -> Array:
        (x,) = inputs
        return x.reshape([evaluate(dim, {}) for dim in self.shape])
