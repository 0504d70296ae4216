"""Expand and Tile: a tensor repeated along axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.contents import element_count, integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import broadcast, unknown_shape

__all__ = ["Expand", "Tile"]


@register("Expand", since=8)
@dataclass(frozen=True, slots=True)
class Expand(Operator):
    """The tensor broadcast together with a shape; either may have the greater size."""

    symbolic = True
    shape_inputs = (1,)

    def infer(self, data: Operand, shape: Operand, /) -> list[TensorType]:
        """The broadcast of both shapes."""
        given = tensor(data, "input")
        tensor(shape, "shape")
        if shape.sizes is not None:
            return [TensorType(given.dtype, broadcast(given.shape, tuple(shape.sizes)))]
        count = element_count(shape)
        if given.shape is None or count is None:
            return [TensorType(given.dtype, None)]
        return [TensorType(given.dtype, unknown_shape(max(count, len(given.shape))))]

    def meaning(self, data: Array, shape: Array, /) -> Array:
        """A read-only view."""
        return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(integers(shape))))


@register("Tile", since=6)
@dataclass(frozen=True, slots=True)
class Tile(Operator):
    """The tensor repeated ``repeats[i]`` times along axis i."""

    symbolic = True
    shape_inputs = (1,)

    def infer(self, data: Operand, repeats: Operand, /) -> list[TensorType]:
        """The sizes multiplied."""
        given = tensor(data, "input")
        tensor(repeats, "repeats")
        if given.shape is None:
            count = element_count(repeats)
            return [TensorType(given.dtype, None if count is None else unknown_shape(count))]
        if repeats.sizes is None:
            return [TensorType(given.dtype, unknown_shape(len(given.shape)))]
        if len(repeats.sizes) != len(given.shape):
            raise ValueError(f"{len(repeats.sizes)} repeats are given, expected {given.rank}")
        pairs = zip(given.shape, repeats.sizes, strict=True)
        return [TensorType(given.dtype, tuple(size * times for size, times in pairs))]

    def meaning(self, data: Array, repeats: Array, /) -> Array:
        """NumPy's tile."""
        return np.tile(data, integers(repeats))
