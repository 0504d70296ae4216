"""Trilu: the upper or lower triangle of matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.contents import integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.pad import default_fill

__all__ = ["Trilu"]


@register("Trilu", since=14)
@dataclass(frozen=True, slots=True)
class Trilu(Operator):
    """The elements on and above (``upper``) or below diagonal k of the last two axes, else 0."""

    upper: int = 1

    def infer(self, data: Operand, k: Operand | None = None, /) -> list[TensorType]:
        """The type of the input."""
        given = tensor(data, "input")
        if given.shape is not None and len(given.shape) < 2:
            raise ValueError(f"the input has rank {len(given.shape)}, expected at least 2")
        return [given]

    def meaning(self, data: Array, k: Array | None = None, /) -> Array:
        """A choice between the element and 0 by a triangle of booleans."""
        diagonal = 0 if k is None else integers(k)[0]
        rows, columns = data.shape[-2:]
        if self.upper:
            kept = ~np.tri(rows, columns, diagonal - 1, bool)
        else:
            kept = np.tri(rows, columns, diagonal, bool)
        return np.where(kept, data, default_fill(data))
