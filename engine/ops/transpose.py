"""Transpose: the axes of a tensor in another order."""

from __future__ import annotations

from dataclasses import dataclass

from engine.ir.types import Array, Operand, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import unknown_shape

__all__ = ["Transpose"]


@register("Transpose", since=1)
@dataclass(frozen=True, slots=True)
class Transpose(Operator):
    """The tensor with axis ``perm[i]`` as its axis i; by default all axes reversed."""

    symbolic = True
    perm: tuple[int, ...] | None = None

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The sizes in the new order."""
        given = tensor(data, "data")
        if given.shape is None:
            dims = None if self.perm is None else unknown_shape(len(self.perm))
            return [TensorType(given.dtype, dims)]
        order = self._order(len(given.shape))
        return [TensorType(given.dtype, tuple(given.shape[axis] for axis in order))]

    def meaning(self, data: Array, /) -> Array:
        """A view with the strides in the new order."""
        return data.transpose(self._order(data.ndim))

    def _order(self, rank: int) -> tuple[int, ...]:
        if self.perm is None:
            return tuple(reversed(range(rank)))
        order = tuple(axis + rank if axis < 0 else axis for axis in self.perm)
        if sorted(order) != list(range(rank)):
            raise ValueError(f"perm is {list(self.perm)}, expected an order of {rank} axes")
        return order
