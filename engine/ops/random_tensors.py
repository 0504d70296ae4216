"""Random tensors: normal, uniform, Bernoulli and multinomial.

Numbers come from NumPy's PCG64 generator. A given ``seed`` (its float32 bits) gives the same
numbers in every run; without one each run draws a fresh seed from the system.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import unknown_shape

__all__ = [
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "generator",
]


def generator(seed: float | None) -> np.random.Generator:
    """A generator for the seed attribute; freshly seeded by the system without one."""
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng(int(np.float32(seed).view(np.uint32)))


def _like(data: Operand, code: int | None) -> TensorType:
    given = tensor(data, "input")
    return TensorType(given.dtype if code is None else dtype_of_code(code), given.shape)


def _dtype(data: Array, code: int | None) -> DType:
    return DType.of(data.dtype) if code is None else dtype_of_code(code)


@register("RandomNormal", since=1)
@dataclass(frozen=True, slots=True)
class RandomNormal(Operator):
    """Normally distributed numbers of the given shape."""

    deterministic = False
    shape: tuple[int, ...]
    dtype: int = 1
    mean: float = 0.0
    scale: float = 1.0
    seed: float | None = None

    def infer(self, /) -> list[TensorType]:
        """The shape and type that the attributes give."""
        return [TensorType(dtype_of_code(self.dtype), self.shape)]

    def meaning(self, /) -> Array:
        """Drawn in float64 and rounded once."""
        drawn = generator(self.seed).normal(self.mean, self.scale, self.shape)
        return as_array(drawn).astype(dtype_of_code(self.dtype).numpy)


@register("RandomUniform", since=1)
@dataclass(frozen=True, slots=True)
class RandomUniform(Operator):
    """Numbers of the given shape, equally likely in [low, high)."""

    deterministic = False
    shape: tuple[int, ...]
    dtype: int = 1
    high: float = 1.0
    low: float = 0.0
    seed: float | None = None

    def infer(self, /) -> list[TensorType]:
        """The shape and type that the attributes give."""
        return [TensorType(dtype_of_code(self.dtype), self.shape)]

    def meaning(self, /) -> Array:
        """Drawn in float64 and rounded once."""
        drawn = generator(self.seed).uniform(self.low, self.high, self.shape)
        return as_array(drawn).astype(dtype_of_code(self.dtype).numpy)


@register("RandomNormalLike", since=1)
@dataclass(frozen=True, slots=True)
class RandomNormalLike(Operator):
    """Normally distributed numbers in the shape of the input."""

    deterministic = False
    dtype: int | None = None
    mean: float = 0.0
    scale: float = 1.0
    seed: float | None = None

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The shape of the input; its type unless ``dtype`` is given."""
        return [_like(data, self.dtype)]

    def meaning(self, data: Array, /) -> Array:
        """Drawn in float64 and rounded once."""
        drawn = generator(self.seed).normal(self.mean, self.scale, data.shape)
        return as_array(drawn).astype(_dtype(data, self.dtype).numpy)


@register("RandomUniformLike", since=1)
@dataclass(frozen=True, slots=True)
class RandomUniformLike(Operator):
    """Numbers equally likely in [low, high), in the shape of the input."""

    deterministic = False
    dtype: int | None = None
    high: float = 1.0
    low: float = 0.0
    seed: float | None = None

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The shape of the input; its type unless ``dtype`` is given."""
        return [_like(data, self.dtype)]

    def meaning(self, data: Array, /) -> Array:
        """Drawn in float64 and rounded once."""
        drawn = generator(self.seed).uniform(self.low, self.high, data.shape)
        return as_array(drawn).astype(_dtype(data, self.dtype).numpy)


@register("Bernoulli", since=15)
@dataclass(frozen=True, slots=True)
class Bernoulli(Operator):
    """1 with the probability that the input holds, else 0."""

    deterministic = False
    dtype: int | None = None
    seed: float | None = None

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The shape of the input; its type unless ``dtype`` is given."""
        return [_like(data, self.dtype)]

    def meaning(self, data: Array, /) -> Array:
        """A comparison with uniform numbers in [0, 1)."""
        drawn = generator(self.seed).random(data.shape)
        ones = as_array(drawn < data.astype(np.float64))
        return ones.astype(_dtype(data, self.dtype).numpy)


@register("Multinomial", since=7)
@dataclass(frozen=True, slots=True)
class Multinomial(Operator):
    """``sample_size`` classes per row, drawn by unnormalised log-probabilities [batch, class]."""

    deterministic = False
    dtype: int = 6
    sample_size: int = 1
    seed: float | None = None

    def infer(self, data: Operand, /) -> list[TensorType]:
        """A matrix [batch, sample_size]."""
        shape = tensor(data, "input").shape
        if shape is not None and len(shape) != 2:
            raise ValueError(f"the input has rank {len(shape)}, expected [batch, class]")
        batch = unknown_shape(1)[0] if shape is None else shape[0]
        return [TensorType(dtype_of_code(self.dtype), (batch, self.sample_size))]

    def meaning(self, data: Array, /) -> Array:
        """Uniform numbers looked up in the running sums of the probabilities."""
        logits = data.astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        edges = np.cumsum(weights, axis=1)
        drawn = generator(self.seed).random((len(data), self.sample_size)) * edges[:, -1:]
        classes = (drawn[:, :, None] >= edges[:, None, :]).sum(axis=2)
        return as_array(classes).astype(dtype_of_code(self.dtype).numpy)
