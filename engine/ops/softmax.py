"""Softmax, LogSoftmax and Hardmax: over one axis, or over all axes from one on (before opset 13).

Floats of 16 bits are computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import normalize_axis

__all__ = [
    "Hardmax",
    "LogSoftmax",
    "Softmax",
    "hard_maximum",
    "log_softmax",
    "peak",
    "softmax",
]


def peak(x: Array, axis: int) -> Array:
    """The greatest elements along an axis, which stays with size 1; minus infinity for no elements.

    In words that CuPy knows too: its maximum takes no initial value.
    """
    if x.shape[axis]:
        return as_array(np.max(x, axis=axis, keepdims=True))
    return as_array(np.full_like(np.sum(x, axis=axis, keepdims=True), -np.inf))


def _shifted(x: Array, axis: int) -> Array:
    """The array less its maximum along the axis, so that no exponential overflows."""
    with np.errstate(invalid="ignore"):
        return as_array(x - peak(x, axis))


def softmax(x: Array, axis: int) -> Array:
    """exp(x) / sum of exp(x) along the axis, in float32 or float64."""
    powers = _shifted(x, axis)
    np.exp(powers, out=powers)
    powers /= np.sum(powers, axis=axis, keepdims=True)
    return powers


def log_softmax(x: Array, axis: int) -> Array:
    """The difference x - log of the sum of exp(x) along the axis, in float32 or float64."""
    shifted = _shifted(x, axis)
    total = np.sum(np.exp(shifted), axis=axis, keepdims=True)
    return as_array(shifted - np.log(total)) if x.size else shifted


def hard_maximum(x: Array, axis: int) -> Array:
    """1 at the first maximum along the axis, 0 elsewhere."""
    result = np.zeros_like(x)
    if x.size:
        first = np.expand_dims(np.argmax(x, axis=axis), axis)
        np.put_along_axis(result, first, x.dtype.type(1), axis=axis)
    return result


@dataclass(frozen=True, slots=True)
class _OverAxis(Operator):
    """A function of one axis."""

    axis: int = -1

    def infer(self, x: Operand, /) -> list[TensorType]:
        """The type of x."""
        kind = tensor(x, "input")
        if kind.shape is not None:
            normalize_axis(self.axis, len(kind.shape))
        return [kind]

    def over_axis(self, function: Callable[[Array, int], Array], x: Array) -> Array:
        """The function along the axis."""
        return rounded(function(widened(x), self.axis), x)


@dataclass(frozen=True, slots=True)
class _OverRest(Operator):
    """A function of all axes from one on, taken as a single one."""

    axis: int = 1

    def infer(self, x: Operand, /) -> list[TensorType]:
        """The type of x."""
        kind = tensor(x, "input")
        if kind.shape is not None and not -len(kind.shape) <= self.axis <= len(kind.shape):
            raise ValueError(f"axis is {self.axis}, the input has rank {len(kind.shape)}")
        return [kind]

    def over_rest(self, function: Callable[[Array, int], Array], x: Array) -> Array:
        """The function of the rows of the matrix that x is when flattened before the axis."""
        axis = self.axis + x.ndim if self.axis < 0 else self.axis
        rows = int(np.prod(x.shape[:axis]))
        matrix = widened(x).reshape(rows, int(np.prod(x.shape[axis:])))
        return rounded(function(matrix, 1).reshape(x.shape), x)


@register("Softmax", since=1)
@dataclass(frozen=True, slots=True)
class Softmax1(_OverRest):
    """Softmax over all axes from one on."""

    def meaning(self, x: Array, /) -> Array:
        """exp(x) / sum of exp(x)."""
        return self.over_rest(softmax, x)


@register("Softmax", since=13)
@dataclass(frozen=True, slots=True)
class Softmax(_OverAxis):
    """Softmax over one axis."""

    def meaning(self, x: Array, /) -> Array:
        """exp(x) / sum of exp(x)."""
        return self.over_axis(softmax, x)


@register("LogSoftmax", since=1)
@dataclass(frozen=True, slots=True)
class LogSoftmax1(_OverRest):
    """The logarithm of softmax over all axes from one on."""

    def meaning(self, x: Array, /) -> Array:
        """The difference x - log of the sum of exp(x)."""
        return self.over_rest(log_softmax, x)


@register("LogSoftmax", since=13)
@dataclass(frozen=True, slots=True)
class LogSoftmax(_OverAxis):
    """The logarithm of softmax over one axis."""

    def meaning(self, x: Array, /) -> Array:
        """The difference x - log of the sum of exp(x)."""
        return self.over_axis(log_softmax, x)


@register("Hardmax", since=1)
@dataclass(frozen=True, slots=True)
class Hardmax1(_OverRest):
    """1 at the first maximum over all axes from one on, 0 elsewhere."""

    def meaning(self, x: Array, /) -> Array:
        """One 1 per row."""
        return self.over_rest(hard_maximum, x)


@register("Hardmax", since=13)
@dataclass(frozen=True, slots=True)
class Hardmax(_OverAxis):
    """1 at the first maximum over one axis, 0 elsewhere."""

    def meaning(self, x: Array, /) -> Array:
        """One 1 per line."""
        return self.over_axis(hard_maximum, x)
