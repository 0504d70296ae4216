"""Poolings over windows: AveragePool, MaxPool, LpPool, their global forms and MaxUnpool.

Floats of 16 bits are pooled in float32 and rounded once. Padding takes no part in a maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array, DType, Operand, Shape, TensorType
from engine.ops.contents import integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import unknown_shape
from engine.ops.sliding import Windows, filled

__all__ = [
    "AveragePool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "LpPool",
    "MaxPool",
    "MaxUnpool",
    "pool_average",
    "pool_maximum",
]

Ints = tuple[int, ...]


def _shape(x: TensorType, windows: Windows) -> Shape:
    rank = len(windows.kernel)
    if x.shape is None:
        return unknown_shape(rank + 2)
    if len(x.shape) != rank + 2:
        raise ValueError(f"the input has rank {len(x.shape)}, expected {rank + 2} for the kernel")
    return (*x.shape[:2], *windows.output(x.shape[2:]))


def _covered(windows: Windows, sizes: Ints, counts: Ints, *, with_padding: bool) -> Array:
    """How many elements each window covers, as an array of shape ``counts``."""
    before, after = windows.padding(sizes)
    total: Array = np.ones((), np.int64)
    for axis, count in enumerate(counts):
        starts = np.arange(count) * windows.strides[axis] - before[axis]
        places = starts[:, None] + np.arange(windows.kernel[axis]) * windows.dilations[axis]
        low = -before[axis] if with_padding else 0
        high = sizes[axis] + (after[axis] if with_padding else 0)
        total = total[..., None] * ((places >= low) & (places < high)).sum(1)
    return total


def pool_average(x: Array, windows: Windows, *, count_include_pad: bool) -> Array:
    """The mean over each window of x [N, C, *spatial]."""
    padded, counts = windows.pad(widened(x), 0)
    total = np.zeros((*x.shape[:2], *counts), padded.dtype)
    for index in windows.offsets(counts):
        total += padded[index]
    covered = _covered(windows, x.shape[2:], counts, with_padding=count_include_pad)
    return rounded(total / covered.astype(total.dtype), x)


def pool_maximum(x: Array, windows: Windows) -> Array:
    """The greatest element of each window of x [N, C, *spatial]; NaN wins."""
    kind = DType.of(x.dtype)
    least: Any = np.iinfo(x.dtype).min if kind.is_integer else -np.inf
    wide = widened(x)
    padded, counts = windows.pad(wide, least)
    result = np.full((*x.shape[:2], *counts), least, wide.dtype)
    for index in windows.offsets(counts):
        np.maximum(result, padded[index], out=result)
    return rounded(result, x)


def _maximum_with_places(x: Array, windows: Windows, storage_order: int) -> tuple[Array, Array]:
    """Maxima and the flat indices of their first occurrences; NaN wins."""
    spatial = x.shape[2:]
    result = pool_maximum(x, windows)
    order: Any = "F" if storage_order else "C"
    volume = int(np.prod(spatial))
    flat = np.arange(volume, dtype=np.int64).reshape(spatial, order=order)
    where, counts = windows.pad(flat, -1)
    values, _ = windows.pad(x, 0)
    places = np.full(result.shape, -1, np.int64)
    nan = result != result
    for index in windows.offsets(counts):
        value = values[index]
        hit = (places < 0) & (where[index] >= 0) & ((value == result) | (nan & (value != value)))
        np.copyto(places, where[index], where=hit)
    planes = np.arange(x.shape[0] * x.shape[1], dtype=np.int64) * volume
    return result, places + planes.reshape(*x.shape[:2], *(1,) * len(spatial))


@dataclass(frozen=True, slots=True)
class _Pool(Operator):
    """The attributes that every pooling over windows has."""

    auto_pad: str = "NOTSET"
    kernel_shape: Ints = ()
    pads: Ints | None = None
    strides: Ints | None = None

    def windows(self) -> Windows:
        """The windows that the attributes describe."""
        return Windows.of(
            self.kernel_shape,
            strides=self.strides,
            dilations=getattr(self, "dilations", None),
            pads=self.pads,
            auto_pad=self.auto_pad,
            ceil=getattr(self, "ceil_mode", 0),
        )

    def infer(self, x: Operand, /) -> list[TensorType]:
        """[N, C, *windows]."""
        return [TensorType(x.dtype, _shape(tensor(x, "X"), self.windows()))]


@register("AveragePool", since=7)
@dataclass(frozen=True, slots=True)
class AveragePool7(_Pool):
    """The mean of each window, with or without the padding."""

    count_include_pad: int = 0

    def meaning(self, x: Array, /) -> Array:
        """A sum over the places of a window, divided by what it covers."""
        return pool_average(x, self.windows(), count_include_pad=bool(self.count_include_pad))


@register("AveragePool", since=10)
@dataclass(frozen=True, slots=True)
class AveragePool10(AveragePool7):
    """The mean of each window; the number of windows may be rounded up."""

    ceil_mode: int = 0


@register("AveragePool", since=19)
@dataclass(frozen=True, slots=True)
class AveragePool(AveragePool10):
    """The mean of each window, whose elements may be apart."""

    dilations: Ints | None = None


@register("MaxPool", since=1)
@dataclass(frozen=True, slots=True)
class MaxPool1(_Pool):
    """The greatest element of each window."""

    def meaning(self, x: Array, /) -> Array:
        """A maximum over the places of a window."""
        return pool_maximum(x, self.windows())


@register("MaxPool", since=8)
@dataclass(frozen=True, slots=True)
class MaxPool8(_Pool):
    """The greatest element of each window, and on demand its index in the whole input."""

    storage_order: int = 0
    output_count: int = 0

    def infer(self, x: Operand, /) -> list[TensorType]:
        """[N, C, *windows], for the indices too when they are asked for."""
        shape = _shape(tensor(x, "X"), self.windows())
        both = [TensorType(x.dtype, shape), TensorType(DType.INT64, shape)]
        return both[:1] if self.output_count == 1 else both

    def meaning(self, x: Array, /) -> Array | tuple[Array, ...]:
        """Maxima over the places of a window; the indices only when they are asked for."""
        if self.output_count == 1:
            return pool_maximum(x, self.windows())
        return _maximum_with_places(x, self.windows(), self.storage_order)


@register("MaxPool", since=10)
@dataclass(frozen=True, slots=True)
class MaxPool(MaxPool8):
    """The greatest element of each window, whose elements may be apart."""

    ceil_mode: int = 0
    dilations: Ints | None = None


@register("LpPool", since=2)
@dataclass(frozen=True, slots=True)
class LpPool2(_Pool):
    """The p-norm of each window."""

    p: int = 2

    def meaning(self, x: Array, /) -> Array:
        """(sum of |x| ** p) ** (1 / p) over the places of a window."""
        windows = self.windows()
        powers, counts = windows.pad(np.abs(widened(x)) ** self.p, 0)
        total = np.zeros((*x.shape[:2], *counts), powers.dtype)
        for index in windows.offsets(counts):
            total += powers[index]
        return rounded(total ** (1 / self.p), x)


@register("LpPool", since=18)
@dataclass(frozen=True, slots=True)
class LpPool(LpPool2):
    """The p-norm of each window, whose elements may be apart."""

    ceil_mode: int = 0
    dilations: Ints | None = None


def _global_shape(x: TensorType) -> Shape | None:
    if x.shape is None:
        return None
    if len(x.shape) < 2:
        raise ValueError(f"the input has rank {len(x.shape)}, expected N, C and spatial axes")
    return (*x.shape[:2], *(1,) * (len(x.shape) - 2))


@dataclass(frozen=True, slots=True)
class _GlobalPool(Operator):
    """A pooling over all spatial axes."""

    def infer(self, x: Operand, /) -> list[TensorType]:
        """[N, C, 1, ...]."""
        return [TensorType(x.dtype, _global_shape(tensor(x, "X")))]


@register("GlobalAveragePool", since=1)
@dataclass(frozen=True, slots=True)
class GlobalAveragePool(_GlobalPool):
    """The mean over all spatial axes."""

    def meaning(self, x: Array, /) -> Array:
        """A mean in float32 or float64."""
        axes = tuple(range(2, x.ndim))
        return rounded(np.mean(widened(x), axis=axes, keepdims=True), x)


@register("GlobalMaxPool", since=1)
@dataclass(frozen=True, slots=True)
class GlobalMaxPool(_GlobalPool):
    """The greatest element over all spatial axes."""

    def meaning(self, x: Array, /) -> Array:
        """A maximum; NaN wins."""
        axes = tuple(range(2, x.ndim))
        return rounded(np.max(widened(x), axis=axes, keepdims=True), x)


@register("GlobalLpPool", since=2)
@dataclass(frozen=True, slots=True)
class GlobalLpPool(_GlobalPool):
    """The p-norm over all spatial axes."""

    p: int = 2

    def meaning(self, x: Array, /) -> Array:
        """(sum of |x| ** p) ** (1 / p)."""
        axes = tuple(range(2, x.ndim))
        total = np.sum(np.abs(widened(x)) ** self.p, axis=axes, keepdims=True)
        return rounded(total ** (1 / self.p), x)


@register("MaxUnpool", since=9)
@dataclass(frozen=True, slots=True)
class MaxUnpool(Operator):
    """Maxima put back to where they were found, zeros elsewhere.

    The indices are those of the array that was pooled; a given output shape may be larger.
    """

    kernel_shape: Ints = ()
    pads: Ints | None = None
    strides: Ints | None = None

    shape_inputs = (2,)

    def _natural(self, sizes: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """The shape that was pooled, as far as the attributes tell."""
        rank = len(self.kernel_shape)
        strides = filled(self.strides, rank, 1, name="strides")
        pads = filled(self.pads, 2 * rank, 0, name="pads")
        spatial = tuple(
            (size - 1) * s + k - a - b
            for size, s, k, a, b in zip(
                sizes[2:], strides, self.kernel_shape, pads[:rank], pads[rank:], strict=True
            )
        )
        return (*sizes[:2], *spatial)

    def infer(
        self, x: Operand, places: Operand, output_shape: Operand | None = None, /
    ) -> list[TensorType]:
        """The given shape, or the one that the attributes lead to."""
        tensor(places, "I")
        rank = len(self.kernel_shape) + 2
        if output_shape is not None:
            sizes = output_shape.sizes
            return [TensorType(x.dtype, unknown_shape(rank) if sizes is None else tuple(sizes))]
        if x.shape is None:
            return [TensorType(x.dtype, unknown_shape(rank))]
        if len(x.shape) != rank:
            raise ValueError(f"the input has rank {len(x.shape)}, expected {rank}")
        return [TensorType(x.dtype, self._natural(x.shape))]

    def meaning(self, x: Array, places: Array, output_shape: Array | None = None, /) -> Array:
        """Scatter into the pooled shape, then copy into the corner of a larger output."""
        natural = integers(self._natural(x.shape))
        target = natural if output_shape is None else integers(output_shape)
        whole = np.zeros(natural, x.dtype)
        if x.size and (places.min() < 0 or places.max() >= whole.size):
            whole = np.zeros(target, x.dtype)
        whole.reshape(-1)[places.reshape(-1)] = x.reshape(-1)
        if list(whole.shape) == target:
            return whole
        result = np.zeros(target, x.dtype)
        corner = tuple(slice(min(a, b)) for a, b in zip(natural, target, strict=True))
        result[corner] = whole[corner]
        return result
