"""Dropout: the identity, except in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened

__all__ = ["Dropout", "Dropout7", "Dropout10"]


@register("Dropout", since=7)
@dataclass(frozen=True, slots=True)
class Dropout7(Operator):
    """The input itself, and a mask of ones of its type."""

    ratio: float = 0.5

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The type of the input, twice."""
        return [tensor(data, "data"), tensor(data, "data")]

    def meaning(self, data: Array, /) -> tuple[Array, Array]:
        """Nothing is dropped."""
        return data, np.ones_like(data)


@register("Dropout", since=10)
@dataclass(frozen=True, slots=True)
class Dropout10(Operator):
    """The input itself, and a mask that is true everywhere."""

    ratio: float = 0.5

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The type of the input, and booleans of its shape."""
        kind = tensor(data, "data")
        return [kind, TensorType(DType.BOOL, kind.shape)]

    def meaning(self, data: Array, /) -> tuple[Array, Array]:
        """Nothing is dropped."""
        return data, np.ones(data.shape, bool)


@register("Dropout", since=12)
@dataclass(frozen=True, slots=True)
class Dropout(Operator):
    """The input itself; in training zeros with probability ``ratio``, the rest scaled up.

    The mask comes from NumPy's frozen MT19937 stream, seeded by the system when there is no seed.
    """

    seed: int | None = None

    deterministic = False

    def infer(
        self, data: Operand, ratio: Operand | None = None, training: Operand | None = None, /
    ) -> list[TensorType]:
        """The type of the input, and booleans of its shape."""
        kind = tensor(data, "data")
        return [kind, TensorType(DType.BOOL, kind.shape)]

    def meaning(
        self, data: Array, ratio: Array | None = None, training: Array | None = None, /
    ) -> tuple[Array, Array]:
        """Survivors are divided by the probability to survive."""
        share = 0.5 if ratio is None else float(as_array(ratio).reshape(()))
        if training is None or not bool(training) or share == 0:
            return data, np.ones(data.shape, bool)
        if not 0 <= share < 1:
            raise ValueError(f"ratio is {share}, expected a number from 0 to below 1")
        drawn = as_array(np.random.RandomState(self.seed).uniform(0.0, 1.0, data.shape))
        kept = as_array(drawn >= share)
        wide = widened(data)
        return rounded(np.where(kept, wide / wide.dtype.type(1 - share), 0), data), kept
