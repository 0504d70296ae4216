"""BatchNormalization: channels shifted and scaled by given statistics, or by the batch's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened

__all__ = ["BatchNormalization"]


def _apply(
    x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float
) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, the parameters along axis 1."""
    wide = widened(x)

    def along(values: Array) -> Array:
        own = widened(values)
        if x.ndim < 2:
            return own
        trailing = x.ndim - 1 - own.ndim
        return own.reshape(*own.shape, *(1,) * max(trailing, 0))

    factor = widened(scale) / np.sqrt(widened(variance) + widened(variance).dtype.type(epsilon))
    return rounded((wide - along(mean)) * along(as_array(factor)) + along(bias), x)


def _types(x: Operand, mean: Operand, variance: Operand, count: int) -> list[TensorType]:
    kind, first, second = tensor(x, "X"), tensor(mean, "mean"), tensor(variance, "var")
    if kind.shape is not None and not kind.shape:
        raise ValueError("the input is a scalar, expected N, C and spatial axes")
    return [kind, first, second, first, second][: max(count, 1)]


def _statistics(x: Array) -> tuple[Array, Array]:
    """Mean and population variance of each channel, in float32 or float64."""
    wide = widened(x)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1) if x.ndim > 1 else (0,)
    keep = x.ndim == 1
    mean = np.mean(wide, axis=axes, keepdims=keep)
    variance = np.var(wide, axis=axes, keepdims=keep)
    return as_array(mean), as_array(variance)


def _trained(
    inputs: tuple[Array, ...], momentum: float, epsilon: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Normalised by the batch; the running statistics moved towards the batch's; those."""
    x, scale, bias, mean, variance = inputs
    own_mean, own_variance = _statistics(x)
    y = _apply(x, scale, bias, own_mean, own_variance, epsilon)
    moved = [
        rounded(widened(old) * momentum + new * (1 - momentum), old)
        for old, new in ((mean, own_mean), (variance, own_variance))
    ]
    return y, *moved, rounded(own_mean, mean), rounded(own_variance, variance)  # type: ignore[return-value]


@register("BatchNormalization", since=7)
@dataclass(frozen=True, slots=True)
class BatchNormalization7(Operator):
    """Batch normalisation; in training when more than one output is asked for.

    With ``spatial`` 0 every position has parameters of its own [C, *spatial].
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    spatial: int = 1
    output_count: int = 0

    def infer(
        self, x: Operand, scale: Operand, bias: Operand, mean: Operand, variance: Operand, /
    ) -> list[TensorType]:
        """The type of x; in training the running and the batch's mean and variance."""
        tensor(scale, "scale")
        tensor(bias, "B")
        return _types(x, mean, variance, self.output_count)

    def meaning(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, /
    ) -> Array | tuple[Array, ...]:
        """Shift and scale in at least float32."""
        if self.output_count <= 1:
            return _apply(x, scale, bias, mean, variance, self.epsilon)
        inputs = (x, scale, bias, mean, variance)
        if self.spatial:
            return _trained(inputs, self.momentum, self.epsilon)[: self.output_count]
        flat = (x.reshape(x.shape[0], -1), *(item.reshape(-1) for item in inputs[1:]))
        y, *rest = _trained(flat, self.momentum, self.epsilon)
        return (y.reshape(x.shape), *(r.reshape(mean.shape) for r in rest))[: self.output_count]


@register("BatchNormalization", since=9)
@dataclass(frozen=True, slots=True)
class BatchNormalization9(Operator):
    """Batch normalisation; in training when more than one output is asked for."""

    epsilon: float = 1e-5
    momentum: float = 0.9
    output_count: int = 0

    def infer(
        self, x: Operand, scale: Operand, bias: Operand, mean: Operand, variance: Operand, /
    ) -> list[TensorType]:
        """The type of x; in training the running and the batch's mean and variance."""
        tensor(scale, "scale")
        tensor(bias, "B")
        return _types(x, mean, variance, self.output_count)

    def meaning(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, /
    ) -> Array | tuple[Array, ...]:
        """Shift and scale in at least float32."""
        if self.output_count <= 1:
            return _apply(x, scale, bias, mean, variance, self.epsilon)
        inputs = (x, scale, bias, mean, variance)
        return _trained(inputs, self.momentum, self.epsilon)[: self.output_count]


@register("BatchNormalization", since=14)
@dataclass(frozen=True, slots=True)
class BatchNormalization(Operator):
    """Batch normalisation by given statistics, or in training by the batch's own."""

    epsilon: float = 1e-5
    momentum: float = 0.9
    training_mode: int = 0

    def infer(
        self, x: Operand, scale: Operand, bias: Operand, mean: Operand, variance: Operand, /
    ) -> list[TensorType]:
        """The type of x; in training the running mean and variance."""
        tensor(scale, "scale")
        tensor(bias, "B")
        return _types(x, mean, variance, 3 if self.training_mode else 1)

    def meaning(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, /
    ) -> Array | tuple[Array, ...]:
        """Shift and scale in at least float32."""
        if not self.training_mode:
            return _apply(x, scale, bias, mean, variance, self.epsilon)
        return _trained((x, scale, bias, mean, variance), self.momentum, self.epsilon)[:3]
