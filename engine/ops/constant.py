"""Constant and ConstantOfShape: tensors that attributes hold."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.contents import element_count, integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import unknown_shape

__all__ = ["Constant", "ConstantOfShape"]


@register("Constant", since=1)
@dataclass(frozen=True, slots=True)
class Constant(Operator):
    """The tensor in the one attribute that is given; a sparse one is held densely."""

    value: Array | None = None
    sparse_value: Array | None = None
    value_float: float | None = None
    value_floats: tuple[float, ...] | None = None
    value_int: int | None = None
    value_ints: tuple[int, ...] | None = None
    value_string: str | None = None
    value_strings: tuple[str, ...] | None = None

    def infer(self, /) -> list[TensorType]:
        """The type of the tensor."""
        held = self.meaning()
        return [TensorType(DType.of(held.dtype), tuple(held.shape))]

    def meaning(self, /) -> Array:
        """The tensor; ValueError unless exactly one attribute is given."""
        given = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) is not None
        }
        if len(given) != 1:
            raise ValueError(f"attributes {sorted(given)} are given, expected exactly one value")
        name, value = given.popitem()
        if name.startswith("value_"):
            dtype = {"float": np.float32, "int": np.int64}.get(name[6:].rstrip("s"), object)
            return np.array(value, dtype)
        return as_array(value)


@register("ConstantOfShape", since=9)
@dataclass(frozen=True, slots=True)
class ConstantOfShape(Operator):
    """A tensor of the given shape, full of the one element of ``value`` (default 0.0 float32)."""

    symbolic = True
    shape_inputs = (0,)
    value: Array | None = None

    def infer(self, shape: Operand, /) -> list[TensorType]:
        """The shape that the input holds."""
        tensor(shape, "input")
        dtype = DType.of(self._element.dtype)
        if shape.sizes is not None:
            if any(isinstance(dim, int) and dim < 0 for dim in shape.sizes):
                raise ValueError(f"the shape is {shape.sizes}, expected sizes >= 0")
            return [TensorType(dtype, tuple(shape.sizes))]
        count = element_count(shape)
        return [TensorType(dtype, None if count is None else unknown_shape(count))]

    def meaning(self, shape: Array, /) -> Array:
        """NumPy's full."""
        return np.full(integers(shape), self._element, self._element.dtype)

    @property
    def _element(self) -> Array:
        if self.value is None:
            return np.zeros((), np.float32)
        if self.value.size != 1:
            raise ValueError(f"attribute 'value' has {self.value.size} elements, expected 1")
        return self.value.reshape(())
