"""Concat: tensors one after the other along an axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Dim, Operand, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import agree, normalize_axis, unknown

__all__ = ["Concat"]


@register("Concat", since=4)
@dataclass(frozen=True, slots=True)
class Concat(Operator):
    """The inputs joined along ``axis``; all other sizes are equal."""

    symbolic = True
    axis: int

    def infer(self, *inputs: Operand) -> list[TensorType]:
        """The sizes along the axis added up."""
        if not inputs:
            raise ValueError("Concat has no input, expected at least one")
        types = [tensor(item, f"inputs[{position}]") for position, item in enumerate(inputs)]
        dtypes = {item.dtype for item in types}
        if len(dtypes) > 1:
            raise ValueError(f"inputs have types {sorted(d.value for d in dtypes)}, expected one")
        shapes = [item.shape for item in types if item.shape is not None]
        if not shapes:
            return [TensorType(types[0].dtype, None)]
        ranks = {len(shape) for shape in shapes}
        if len(ranks) > 1:
            raise ValueError(f"inputs have ranks {sorted(ranks)}, expected one rank")
        rank = ranks.pop()
        axis = normalize_axis(self.axis, rank)
        dims: list[Dim] = list(shapes[0])
        for shape in shapes[1:]:
            for place in range(rank):
                if place == axis:
                    dims[place] = dims[place] + shape[place]
                else:
                    dims[place] = agree(dims[place], shape[place], name=f"axis {place}")
        if len(shapes) < len(types):
            dims[axis] = unknown()
        return [TensorType(types[0].dtype, tuple(dims))]

    def meaning(self, *inputs: Array) -> Array:
        """NumPy's concatenate."""
        return np.concatenate(inputs, self.axis)
