"""Normalisations by mean and variance: instance, group, layer, root mean square, MVN; Lp and LRN.

Floats of 16 bits are computed in float32 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import normalize_axes, normalize_axis

__all__ = [
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "standardized",
]

Ints = tuple[int, ...]


def standardized(x: Array, axes: Ints, epsilon: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(variance + epsilon) over the axes, the mean, and the inverse deviation."""
    mean = np.mean(x, axis=axes, keepdims=True, dtype=x.dtype)
    centred = x - mean
    variance = np.mean(np.square(centred), axis=axes, keepdims=True, dtype=x.dtype)
    inverse = as_array(1 / np.sqrt(variance + x.dtype.type(epsilon)))
    return centred * inverse, as_array(mean), inverse


def _per_channel(values: Array, rank: int) -> Array:
    return widened(values).reshape(-1, *(1,) * (rank - 2))


def _check_channels(x: Operand, *parameters: Operand) -> list[TensorType]:
    kind = tensor(x, "X")
    if kind.shape is not None and len(kind.shape) < 2:
        raise ValueError(f"the input has rank {len(kind.shape)}, expected N, C and spatial axes")
    for item in parameters:
        tensor(item, "scale and bias")
    return [kind]


@register("InstanceNormalization", since=6)
@dataclass(frozen=True, slots=True)
class InstanceNormalization(Operator):
    """Mean 0 and variance 1 over the spatial axes of x [N, C, *spatial]; scale and bias [C]."""

    epsilon: float = 1e-5

    def infer(self, x: Operand, scale: Operand, bias: Operand, /) -> list[TensorType]:
        """The type of x."""
        return _check_channels(x, scale, bias)

    def meaning(self, x: Array, scale: Array, bias: Array, /) -> Array:
        """Standardise each plane, then scale and shift each channel."""
        normal, _, _ = standardized(widened(x), tuple(range(2, x.ndim)), self.epsilon)
        return rounded(normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim), x)


def _grouped(x: Array, groups: int, epsilon: float) -> Array:
    """The array x [N, C, ...] standardised over groups of channels."""
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"num_groups is {groups}, expected a divisor of {x.shape[1]} channels")
    parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    normal, _, _ = standardized(parts, tuple(range(2, parts.ndim)), epsilon)
    return normal


@register("GroupNormalization", since=18)
@dataclass(frozen=True, slots=True)
class GroupNormalization18(Operator):
    """Mean 0 and variance 1 over groups of channels; scale and bias [groups]."""

    epsilon: float = 1e-5
    num_groups: int = 1

    def infer(self, x: Operand, scale: Operand, bias: Operand, /) -> list[TensorType]:
        """The type of x."""
        return _check_channels(x, scale, bias)

    def meaning(self, x: Array, scale: Array, bias: Array, /) -> Array:
        """Standardise each group, then scale and shift it."""
        normal = _grouped(widened(x), self.num_groups, self.epsilon)
        shape = (-1, *(1,) * (normal.ndim - 2))
        result = normal * widened(scale).reshape(shape) + widened(bias).reshape(shape)
        return rounded(result.reshape(x.shape), x)


@register("GroupNormalization", since=21)
@dataclass(frozen=True, slots=True)
class GroupNormalization(Operator):
    """Mean 0 and variance 1 over groups of channels; scale and bias [C].

    ``stash_type`` asks for at least that precision in the first stage.
    """

    epsilon: float = 1e-5
    num_groups: int = 1
    stash_type: int = 1

    def infer(self, x: Operand, scale: Operand, bias: Operand, /) -> list[TensorType]:
        """The type of x."""
        dtype_of_code(self.stash_type)
        return _check_channels(x, scale, bias)

    def meaning(self, x: Array, scale: Array, bias: Array, /) -> Array:
        """Standardise each group, then scale and shift each channel."""
        normal = _grouped(_stashed(x, self.stash_type), self.num_groups, self.epsilon)
        normal = normal.reshape(x.shape).astype(widened(x).dtype, copy=False)
        return rounded(normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim), x)


def _stashed(x: Array, code: int) -> Array:
    """The array in the precision of a first stage, at least float32."""
    if dtype_of_code(code) is DType.FLOAT64:
        return x.astype(np.float64, copy=False)
    return widened(x)


def _trailing(axis: int, rank: int) -> Ints:
    return tuple(range(normalize_axis(axis, rank), rank))


@register("LayerNormalization", since=17)
@dataclass(frozen=True, slots=True)
class LayerNormalization(Operator):
    """Mean 0 and variance 1 over all axes from one on, then scale and bias.

    The mean and the inverse deviation are outputs of their own, of the type ``stash_type``.
    """

    axis: int = -1
    epsilon: float = 1e-5
    stash_type: int = 1

    def infer(self, x: Operand, scale: Operand, bias: Operand | None = None, /) -> list[TensorType]:
        """The type of x, and twice x with the normalised axes reduced to 1."""
        kind = tensor(x, "X")
        tensor(scale, "Scale")
        stash = dtype_of_code(self.stash_type)
        if kind.shape is None:
            return [kind, TensorType(stash, None), TensorType(stash, None)]
        axes = _trailing(self.axis, len(kind.shape))
        shape = (*kind.shape[: len(kind.shape) - len(axes)], *(1,) * len(axes))
        return [kind, TensorType(stash, shape), TensorType(stash, shape)]

    def meaning(
        self, x: Array, scale: Array, bias: Array | None = None, /
    ) -> tuple[Array, Array, Array]:
        """The first stage in at least float32, as is the second."""
        stash = dtype_of_code(self.stash_type).numpy
        axes = _trailing(self.axis, x.ndim)
        normal, mean, inverse = standardized(_stashed(x, self.stash_type), axes, self.epsilon)
        result = normal * widened(scale)
        if bias is not None:
            result = result + widened(bias)
        return rounded(result, x), mean.astype(stash), inverse.astype(stash)


@register("RMSNormalization", since=23)
@dataclass(frozen=True, slots=True)
class RMSNormalization(Operator):
    """x / sqrt(mean of squares + epsilon) over all axes from one on, times a scale."""

    axis: int = -1
    epsilon: float = 1e-5
    stash_type: int = 1

    def infer(self, x: Operand, scale: Operand, /) -> list[TensorType]:
        """The shape of x, of the type of the scale."""
        kind = tensor(x, "X")
        dtype_of_code(self.stash_type)
        if kind.shape is not None:
            normalize_axis(self.axis, len(kind.shape))
        return [TensorType(tensor(scale, "scale").dtype, kind.shape)]

    def meaning(self, x: Array, scale: Array, /) -> Array:
        """The first stage in at least float32."""
        wide = _stashed(x, self.stash_type)
        axes = _trailing(self.axis, x.ndim)
        square = np.mean(np.square(wide), axis=axes, keepdims=True, dtype=wide.dtype)
        normal = wide / np.sqrt(square + wide.dtype.type(self.epsilon))
        return rounded(normal * widened(scale), scale)


@register("MeanVarianceNormalization", since=9)
@dataclass(frozen=True, slots=True)
class MeanVarianceNormalization(Operator):
    """(x - mean) / (standard deviation + 1e-9) over the axes."""

    axes: Ints = (0, 2, 3)

    def infer(self, x: Operand, /) -> list[TensorType]:
        """The type of x."""
        kind = tensor(x, "X")
        if kind.shape is not None:
            normalize_axes(self.axes, len(kind.shape))
        return [kind]

    def meaning(self, x: Array, /) -> Array:
        """The deviation is the root of the mean square less the squared mean."""
        wide = widened(x)
        axes = normalize_axes(self.axes, x.ndim)
        mean = np.mean(wide, axis=axes, keepdims=True, dtype=wide.dtype)
        centred = wide - mean
        variance = np.mean(np.square(centred), axis=axes, keepdims=True, dtype=wide.dtype)
        return rounded(centred / (np.sqrt(variance) + wide.dtype.type(1e-9)), x)


@register("LpNormalization", since=1)
@dataclass(frozen=True, slots=True)
class LpNormalization(Operator):
    """x divided by its 1-norm or 2-norm along an axis; 0 where the norm is 0."""

    axis: int = -1
    p: int = 2

    def infer(self, x: Operand, /) -> list[TensorType]:
        """The type of x."""
        kind = tensor(x, "input")
        if kind.shape is not None:
            normalize_axis(self.axis, len(kind.shape))
        if self.p not in (1, 2):
            raise ValueError(f"p is {self.p}, expected 1 or 2")
        return [kind]

    def meaning(self, x: Array, /) -> Array:
        """The norm in float32 or float64."""
        wide = widened(x)
        if self.p == 1:
            norm = np.sum(np.abs(wide), axis=self.axis, keepdims=True)
        else:
            norm = np.sqrt(np.sum(np.square(wide), axis=self.axis, keepdims=True))
        return rounded(np.divide(wide, norm, out=np.zeros_like(wide), where=norm != 0), x)


@register("LRN", since=1)
@dataclass(frozen=True, slots=True)
class LRN(Operator):
    """x / (bias + alpha / size * sum of squares over ``size`` channels around) ** beta.

    Local response normalisation (Krizhevsky, Sutskever, Hinton, 2012, section 3.3).
    """

    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0
    size: int = 1

    def infer(self, x: Operand, /) -> list[TensorType]:
        """The type of x."""
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected a number from 1 on")
        return _check_channels(x)

    def meaning(self, x: Array, /) -> Array:
        """(size - 1) // 2 channels before and size // 2 after, as far as there are any."""
        wide = widened(x)
        squares = np.square(wide)
        total = np.zeros_like(wide)
        channels = x.shape[1]
        for step in range(-((self.size - 1) // 2), self.size // 2 + 1):
            low, high = max(0, -step), min(channels, channels - step)
            if low < high:
                total[:, low:high] += squares[:, low + step : high + step]
        scale = self.bias + self.alpha / self.size * total
        return rounded(wide / scale**self.beta, x)
