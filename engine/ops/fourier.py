"""Fourier transforms: DFT and STFT.

Complex numbers are pairs on a last axis of size 2; a last axis of size 1 holds real numbers.
The transforms are computed in complex128 and rounded once to the input's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array, Operand, TensorType, Type
from engine.ops.operator import Operator, register
from engine.ops.shapes import normalize_axis, unknown, unknown_shape

__all__ = ["DFT", "STFT", "DFT17"]


def to_complex(x: Array) -> Array:
    """The complex numbers whose parts lie on the last axis (real ones when its size is 1)."""
    wide = x.astype(np.float64)
    if x.shape[-1] not in (1, 2):
        raise ValueError(f"the last axis has size {x.shape[-1]}, expected 1 (real) or 2 (complex)")
    return wide[..., 0] + 1j * wide[..., 1] if x.shape[-1] == 2 else wide[..., 0] + 0j


def to_pairs(x: Array, dtype: np.dtype[Any]) -> Array:
    """Real and imaginary parts on a new last axis."""
    return np.stack([x.real, x.imag], axis=-1).astype(dtype)


def transform(x: Array, length: int | None, axis: int, *, inverse: int, onesided: int) -> Array:
    """The DFT of ``x`` along an axis that does not count the last one.

    The signal is cut or padded with zeros to ``length``. A forward one-sided transform keeps the
    first length // 2 + 1 bins; an inverse one-sided transform gives real numbers.
    """
    signal = to_complex(x)
    axis = normalize_axis(axis, x.ndim)
    if axis == x.ndim - 1:
        raise ValueError("axis is the one that holds real and imaginary parts")
    if inverse and onesided:
        size = 2 * (signal.shape[axis] - 1) if length is None else length
        return np.fft.irfft(signal, size, axis)[..., None].astype(x.dtype)
    size = signal.shape[axis] if length is None else length
    if inverse:
        return to_pairs(np.fft.ifft(signal, size, axis), x.dtype)
    result = np.fft.fft(signal, size, axis)
    if onesided:
        result = np.take(result, np.arange(size // 2 + 1), axis=axis)
    return to_pairs(result, x.dtype)


def transformed_type(
    x: Operand, length: Operand | None, axis: int | None, *, inverse: int, onesided: int
) -> Sequence[Type]:
    """The type of a transform; an axis of None is not known."""
    parts = 1 if inverse and onesided else 2
    if x.shape is None:
        return [TensorType(x.dtype, None)]
    rank = x.tensor.rank
    if axis is None:
        return [TensorType(x.dtype, (*unknown_shape(rank - 1), parts))]
    axis = normalize_axis(axis, rank)
    if axis == rank - 1:
        raise ValueError(f"axis is {axis}, expected one before the last of {rank} axes")
    size: Dim = 2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis]
    if length is not None:
        size = length.sizes[0] if length.sizes else unknown()
        if not length.sizes:
            return [TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 : -1], parts))]
    if onesided and not inverse:
        size = size // 2 + 1
    return [TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 : -1], parts))]


def scalar(value: Array | None) -> int | None:
    """The integer in a scalar input, None for an absent one."""
    return None if value is None else int(value.reshape(-1)[0])


@register("DFT", since=17)
@dataclass(frozen=True, slots=True)
class DFT17(Operator):
    """The discrete Fourier transform along the axis that an attribute names."""

    shape_inputs: ClassVar[tuple[int, ...]] = (1,)

    axis: int = 1
    inverse: int = 0
    onesided: int = 0

    def infer(self, x: Operand, length: Operand | None = None, /) -> Sequence[Type]:
        return transformed_type(x, length, self.axis, inverse=self.inverse, onesided=self.onesided)

    def meaning(self, x: Array, length: Array | None = None, /) -> Array:
        size = scalar(length)
        return transform(x, size, self.axis, inverse=self.inverse, onesided=self.onesided)


@register("DFT", since=20)
@dataclass(frozen=True, slots=True)
class DFT(Operator):
    """The discrete Fourier transform along the axis that an input names (the last signal axis)."""

    shape_inputs: ClassVar[tuple[int, ...]] = (1, 2)

    inverse: int = 0
    onesided: int = 0

    def infer(
        self, x: Operand, length: Operand | None = None, axis: Operand | None = None, /
    ) -> Sequence[Type]:
        known = [-2] if axis is None else axis.sizes
        place = int(known[0]) if known and isinstance(known[0], int) else None
        return transformed_type(x, length, place, inverse=self.inverse, onesided=self.onesided)

    def meaning(self, x: Array, length: Array | None = None, axis: Array | None = None, /) -> Array:
        place = scalar(axis)
        return transform(
            x,
            scalar(length),
            -2 if place is None else place,
            inverse=self.inverse,
            onesided=self.onesided,
        )


@register("STFT", since=17)
@dataclass(frozen=True, slots=True)
class STFT(Operator):
    """The DFT of windowed frames of a signal: (batch, length, 1 or 2) to (batch, frames, bins, 2).

    A complex signal has no symmetry to use; ``onesided`` then only cuts the upper bins off.
    """

    shape_inputs: ClassVar[tuple[int, ...]] = (1, 3)

    onesided: int = 1

    def infer(
        self,
        signal: Operand,
        frame_step: Operand,
        window: Operand | None = None,
        frame_length: Operand | None = None,
        /,
    ) -> Sequence[Type]:
        if signal.shape is None:
            return [TensorType(signal.dtype, (*unknown_shape(3), 2))]
        if signal.tensor.rank != 3:
            raise ValueError(f"signal has rank {signal.tensor.rank}, expected 3")
        batch, total, _ = signal.shape
        length: Dim | None = total
        if frame_length is not None:
            length = frame_length.sizes[0] if frame_length.sizes else None
        elif window is not None:
            length = window.shape[0] if window.shape else None
        if length is None:
            return [TensorType(signal.dtype, (batch, unknown(), unknown(), 2))]
        step = frame_step.sizes
        frames = (total - length) // step[0] + 1 if step and step[0] != 0 else unknown()
        bins = length // 2 + 1 if self.onesided else length
        return [TensorType(signal.dtype, (batch, frames, bins, 2))]

    def meaning(
        self,
        signal: Array,
        frame_step: Array,
        window: Array | None = None,
        frame_length: Array | None = None,
        /,
    ) -> Array:
        step, length = scalar(frame_step), scalar(frame_length)
        if length is None:
            length = signal.shape[1] if window is None else window.shape[0]
        if window is not None and window.shape != (length,):
            raise ValueError(f"window has shape {window.shape}, expected ({length},)")
        if not step or step < 0:
            raise ValueError(f"frame_step is {step}, expected at least 1")
        samples = to_complex(signal)
        if length > samples.shape[1]:
            frames = np.zeros((samples.shape[0], 0, length), samples.dtype)
        else:
            every = np.lib.stride_tricks.sliding_window_view(samples, length, axis=1)
            frames = every[:, ::step]
        if window is not None:
            frames = frames * window.astype(np.float64)
        result = np.fft.fft(frames, axis=-1) if frames.size else frames
        if self.onesided:
            result = result[..., : length // 2 + 1]
        return to_pairs(result, signal.dtype)
