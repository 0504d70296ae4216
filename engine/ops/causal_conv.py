"""CausalConvWithState: a depthwise convolution over time that carries its last inputs along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import unknown, unknown_shape

__all__ = ["CausalConvWithState"]


@register("CausalConvWithState", since=27)
@dataclass(frozen=True, slots=True)
class CausalConvWithState(Operator):
    """x [N, C, L], weight [C, 1, k], bias [C], the k - 1 inputs before x; and SiLU on demand."""

    activation: str = "none"

    def infer(
        self,
        x: Operand,
        weight: Operand,
        bias: Operand | None = None,
        past: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """The type of x, and the state [N, C, k - 1]."""
        kind, taps = tensor(x, "input"), tensor(weight, "weight").shape
        if kind.shape is not None and len(kind.shape) != 3:
            raise ValueError(f"the input has rank {len(kind.shape)}, expected 3")
        lead = unknown_shape(2) if kind.shape is None else kind.shape[:2]
        length = unknown() if taps is None else taps[2] - 1
        return [kind, TensorType(kind.dtype, (*lead, length))]

    def meaning(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        past: Array | None = None,
        /,
    ) -> tuple[Array, Array]:
        """A sum of scaled shifts of the past and the input joined."""
        if self.activation not in ("none", "silu", "swish"):
            raise ValueError(f"activation is {self.activation!r}, expected none, silu or swish")
        taps = weight.shape[2]
        state = np.zeros((*x.shape[:2], taps - 1), x.dtype) if past is None else past
        joined = np.concatenate([state, x], axis=2)
        length = x.shape[2]
        wide, factors = widened(joined), widened(weight)
        total = np.zeros(x.shape, wide.dtype)
        for tap in range(taps):
            total += wide[:, :, tap : tap + length] * factors[:, 0, tap, None]
        if bias is not None:
            total += widened(bias)[:, None]
        if self.activation != "none":
            with np.errstate(over="ignore"):
                total = total / (1 + np.exp(-total))
        return rounded(total, x), joined[:, :, joined.shape[2] - taps + 1 :]
