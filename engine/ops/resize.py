"""Resize and Upsample: images interpolated along each axis in turn.

Interpolation is separable, so every axis is read at fractional positions by a few weighted taps.
Positions are computed in float64 (float32 for "nearest"), values in float32 (float64 for integers
and float64).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from engine.ir.sizes import Dim, floordiv
from engine.ir.types import Array, DType, Operand, Shape, TensorType
from engine.ops.arrays import as_array
from engine.ops.contents import integers
from engine.ops.conversions import convert
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import normalize_axes, unknown, unknown_shape

__all__ = ["Resize", "Resize10", "Resize11", "Upsample7", "Upsample9", "scaled_size"]

_MODES = ("nearest", "linear", "cubic")
#: The rounding before opset 11: up when an axis shrinks, down when it grows.
_BEFORE_11 = "before_11"
_POLICIES = ("stretch", "not_larger", "not_smaller")


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis to resize: its sizes, their ratio, and the region that is read (0 to 1)."""

    size: int
    target: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True)
class _Method:
    """How positions are found and values between elements are made."""

    mode: str = "nearest"
    coordinates: str = "asymmetric"
    rounding: str = _BEFORE_11
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


#: Where the middle of an output element lies in the input: (index, axis) to position.
_POSITIONS: dict[str, Callable[[Array, _Axis], Array]] = {
    "half_pixel": lambda y, a: (y + 0.5) / a.scale - 0.5,
    "asymmetric": lambda y, a: y / a.scale,
    "tf_half_pixel_for_nn": lambda y, a: (y + 0.5) / a.scale,
    "pytorch_half_pixel": lambda y, a: (
        (y + 0.5) / a.scale - 0.5 if a.target > 1 else np.zeros(y.shape)
    ),
    "half_pixel_symmetric": lambda y, a: (
        a.size / 2 * (1 - a.target / (a.scale * a.size)) + (y + 0.5) / a.scale - 0.5
    ),
    "align_corners": lambda y, a: (
        y * (a.size - 1) / (a.scale * a.size - 1) if a.scale * a.size != 1 else np.zeros(y.shape)
    ),
    "tf_crop_and_resize": lambda y, a: (
        a.start * (a.size - 1) + y * (a.end - a.start) * (a.size - 1) / (a.target - 1)
        if a.target > 1
        else np.full(y.shape, 0.5 * (a.start + a.end) * (a.size - 1))
    ),
}

_ROUNDINGS: dict[str, Callable[[Array], Any]] = {
    "round_prefer_floor": lambda p: np.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _cubic(distance: Array, a: float) -> Array:
    """The kernel of cubic convolution (Keys, 1981, equation 4)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _taps(axis: _Axis, method: _Method, position: Array) -> tuple[Array, Array]:
    """The indices read for each output and their weights, both [taps, target]."""
    low = np.floor(position)
    reach = 1 if method.mode == "linear" else 2
    shrink = min(axis.scale, 1.0) if method.antialias else 1.0
    before = int(np.floor(-reach / shrink)) + 1
    steps = np.arange(before, 2 - before)[:, None]
    distance = (steps - (position - low)) * shrink
    if method.mode == "linear":
        weights = np.clip(1 - np.abs(distance), 0, 1)
    else:
        weights = _cubic(distance, method.cubic)
    index = (low + steps).astype(np.int64)
    if method.exclude_outside:
        weights = np.where((index >= 0) & (index < axis.size), weights, 0.0)
    if method.exclude_outside or method.antialias:
        total = weights.sum(axis=0)
        weights = weights / np.where(total == 0, 1, total)
    return np.clip(index, 0, axis.size - 1), weights


def _resize_axis(x: Array, number: int, axis: _Axis, method: _Method) -> Array:
    """The array resized along one axis; outside a cropped region the extrapolation value."""
    # Where rounding decides, float32 keeps 0.6 * 5 on the same side of 3 as other runtimes do.
    precision = np.float32 if method.mode == "nearest" else np.float64
    position = _POSITIONS[method.coordinates](np.arange(axis.target, dtype=precision), axis)
    along = (slice(None),) + (None,) * (x.ndim - number - 1)
    if method.mode == "nearest":
        rounding = method.rounding
        if rounding == _BEFORE_11:
            rounding = "ceil" if axis.scale < 1 else "floor"
        index = _ROUNDINGS[rounding](position.astype(np.float64)).astype(np.int64)
        result = np.take(x, np.clip(index, 0, axis.size - 1), axis=number)
    else:
        indices, weights = _taps(axis, method, position)
        result = np.zeros((*x.shape[:number], axis.target, *x.shape[number + 1 :]), x.dtype)
        for index, weight in zip(indices, weights.astype(x.real.dtype), strict=True):
            if weight.any():
                result += np.take(x, index, axis=number) * weight[along]
    if method.coordinates == "tf_crop_and_resize":
        outside = (position < 0) | (position > axis.size - 1)
        if outside.any():
            fill = as_array(method.extrapolation).astype(x.dtype)
            result = np.where(outside[along], fill, result)
    return as_array(result)


def resize(x: Array, axes: Sequence[_Axis], method: _Method) -> Array:
    """The array with every axis resized in turn, of its own type."""
    if method.mode not in _MODES:
        raise ValueError(f"mode is {method.mode!r}, expected one of {', '.join(_MODES)}")
    if method.coordinates not in _POSITIONS:
        raise ValueError(
            f"coordinate_transformation_mode is {method.coordinates!r}, expected one of "
            f"{', '.join(_POSITIONS)}"
        )
    if method.rounding not in (*_ROUNDINGS, _BEFORE_11):
        raise ValueError(
            f"nearest_mode is {method.rounding!r}, expected one of {', '.join(_ROUNDINGS)}"
        )
    result: Array = x
    kind = DType.of(x.dtype)
    if method.mode != "nearest":
        result = widened(x) if kind.is_float or kind.is_complex else x.astype(np.float64)
    if any(axis.size == 0 or axis.target == 0 for axis in axes):
        return np.zeros(tuple(axis.target for axis in axes), x.dtype)
    for number, axis in enumerate(axes):
        whole = axis.start == 0 and axis.end == 1
        if axis.scale != 1 or axis.size != axis.target or not whole:
            result = _resize_axis(result, number, axis, method)
    if kind.is_integer and method.mode != "nearest":
        result = np.rint(result)
    return convert(result, kind) if result.dtype != x.dtype else result


def scaled_size(size: Dim, scale: float) -> Dim:
    """floor(size * scale), computed in float32; an unknown size where no formula is exact."""
    if isinstance(size, int):
        return int(np.floor(np.float32(size) * np.float32(scale)))
    ratio = Fraction(float(np.float32(scale)))
    if ratio.denominator > 1 << 10 or ratio.numerator > 1 << 10:
        return unknown()
    return floordiv(size * ratio.numerator, ratio.denominator)


def _constant(operand: Operand | None) -> Array | None:
    """The elements of a float input when they are known and there are any."""
    if operand is None or operand.value is None or as_array(operand.value).size == 0:
        return None
    return as_array(operand.value).reshape(-1)


def _count(found: int, expected: int, name: str) -> None:
    if found != expected:
        raise ValueError(f"{name} has {found} elements, expected {expected}")


def _simple_axes(x: Array, scales: Sequence[float]) -> list[_Axis]:
    _count(len(scales), x.ndim, "scales")
    return [
        _Axis(n, int(np.floor(np.float32(n) * np.float32(s))), float(s))
        for n, s in zip(x.shape, scales, strict=True)
    ]


def _simple_type(x: Operand, scales: Sequence[float] | None) -> list[TensorType]:
    kind = tensor(x, "X")
    if kind.shape is None:
        return [kind if scales is None else TensorType(kind.dtype, unknown_shape(len(scales)))]
    if scales is None:
        return [TensorType(kind.dtype, unknown_shape(len(kind.shape)))]
    _count(len(scales), len(kind.shape), "scales")
    shape = tuple(scaled_size(n, float(s)) for n, s in zip(kind.shape, scales, strict=True))
    return [TensorType(kind.dtype, shape)]


@register("Upsample", since=7)
@dataclass(frozen=True, slots=True)
class Upsample7(Operator):
    """Sizes multiplied by scales that are an attribute; "nearest" or "linear" ("bilinear")."""

    mode: str = "nearest"
    scales: tuple[float, ...] = ()

    def infer(self, x: Operand, /) -> list[TensorType]:
        """Each size times its scale, rounded down."""
        return _simple_type(x, self.scales)

    def meaning(self, x: Array, /) -> Array:
        """Output i reads position i / scale."""
        mode = "linear" if self.mode == "bilinear" else self.mode
        return resize(x, _simple_axes(x, self.scales), _Method(mode))


@register("Upsample", since=9)
@dataclass(frozen=True, slots=True)
class Upsample9(Operator):
    """Sizes multiplied by scales that are an input; "nearest" or "linear"."""

    mode: str = "nearest"

    shape_inputs = (1,)

    def infer(self, x: Operand, scales: Operand, /) -> list[TensorType]:
        """Each size times its scale, rounded down."""
        found = _constant(scales)
        return _simple_type(x, None if found is None else found.tolist())

    def meaning(self, x: Array, scales: Array, /) -> Array:
        """Output i reads position i / scale."""
        mode = "linear" if self.mode == "bilinear" else self.mode
        return resize(x, _simple_axes(x, scales.tolist()), _Method(mode))


@register("Resize", since=10)
@dataclass(frozen=True, slots=True)
class Resize10(Operator):
    """Sizes multiplied by scales of any size; "nearest" or "linear"."""

    mode: str = "nearest"

    shape_inputs = (1,)

    def infer(self, x: Operand, scales: Operand, /) -> list[TensorType]:
        """Each size times its scale, rounded down."""
        found = _constant(scales)
        return _simple_type(x, None if found is None else found.tolist())

    def meaning(self, x: Array, scales: Array, /) -> Array:
        """Output i reads position i / scale."""
        return resize(x, _simple_axes(x, scales.tolist()), _Method(self.mode))


@register("Resize", since=11)
@dataclass(frozen=True, slots=True)
class Resize11(Operator):
    """Images resized by scales or to sizes, with a choice of coordinates and interpolations."""

    coordinate_transformation_mode: str = "half_pixel"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    extrapolation_value: float = 0.0
    mode: str = "nearest"
    nearest_mode: str = "round_prefer_floor"

    shape_inputs = (1, 2, 3)

    def chosen_axes(self, rank: int) -> tuple[int, ...]:
        """The axes that scales, sizes and region speak of."""
        axes = getattr(self, "axes", None)
        return tuple(range(rank)) if axes is None else normalize_axes(axes, rank)

    def policy(self) -> str:
        """What sizes mean for the aspect ratio."""
        policy = str(getattr(self, "keep_aspect_ratio_policy", "stretch"))
        if policy not in _POLICIES:
            raise ValueError(
                f"keep_aspect_ratio_policy is {policy!r}, expected one of {', '.join(_POLICIES)}"
            )
        return policy

    def infer(
        self,
        x: Operand,
        region: Operand | None = None,
        scales: Operand | None = None,
        sizes: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """The sizes given, or each size times its scale, rounded down."""
        kind = tensor(x, "X")
        if kind.shape is None:
            return [kind]
        axes = self.chosen_axes(len(kind.shape))
        shape = list(kind.shape)
        for axis in axes:
            shape[axis] = unknown()
        targets = None if sizes is None else sizes.sizes
        factors = _constant(scales)
        if targets:
            _count(len(targets), len(axes), "sizes")
            for axis, target in zip(axes, self._targets(kind.shape, axes, targets), strict=True):
                shape[axis] = target
        elif factors is not None:
            _count(len(factors), len(axes), "scales")
            for axis, factor in zip(axes, factors.tolist(), strict=True):
                shape[axis] = scaled_size(kind.shape[axis], factor)
        return [TensorType(kind.dtype, tuple(shape))]

    def _targets(self, shape: Shape, axes: Sequence[int], sizes: Sequence[Dim]) -> Sequence[Dim]:
        """The sizes after the policy; unknown ones where a symbol would have to be compared."""
        if self.policy() == "stretch":
            return sizes
        known = [n for n in (*sizes, *(shape[a] for a in axes)) if isinstance(n, int)]
        if len(known) < 2 * len(axes):
            return unknown_shape(len(axes))
        old, new = known[len(axes) :], known[: len(axes)]
        scale = self._common_scale(old, new)
        return [int(scale * n + 0.5) for n in old]

    def _common_scale(self, old: Sequence[int], new: Sequence[int]) -> float:
        ratios = [b / a if a else 1.0 for a, b in zip(old, new, strict=True)]
        return min(ratios) if self.policy() == "not_larger" else max(ratios)

    def _axes(
        self, x: Array, region: Array | None, scales: Array | None, sizes: Array | None
    ) -> list[_Axis]:
        """Every axis of x with its target size, scale and region."""
        axes = self.chosen_axes(x.ndim)
        result = [_Axis(n, n, 1.0) for n in x.shape]
        old = [x.shape[a] for a in axes]
        given = sizes is not None and sizes.size > 0
        if sizes is not None and given:
            new = integers(sizes)
            _count(len(new), len(axes), "sizes")
            factors = [b / a if a else 1.0 for a, b in zip(old, new, strict=True)]
            if self.policy() != "stretch":
                factors = [self._common_scale(old, new)] * len(axes)
                new = [int(factors[0] * n + 0.5) for n in old]
        elif scales is not None and scales.size > 0:
            _count(scales.size, len(axes), "scales")
            factors = [float(item) for item in scales.reshape(-1)]
            new = [int(np.floor(np.float32(n) * np.float32(s))) for n, s in zip(old, factors)]
        else:
            raise ValueError("neither scales nor sizes are given, expected one of them")
        bounds = np.zeros(2 * len(axes)) if region is None else region.astype(np.float64)
        crop = self.coordinate_transformation_mode == "tf_crop_and_resize"
        if crop:
            _count(bounds.size, 2 * len(axes), "roi")
        for i, axis in enumerate(axes):
            low, high = (bounds[i], bounds[len(axes) + i]) if crop else (0.0, 1.0)
            result[axis] = _Axis(old[i], new[i], factors[i], float(low), float(high))
        return result

    def meaning(
        self,
        x: Array,
        region: Array | None = None,
        scales: Array | None = None,
        sizes: Array | None = None,
        /,
    ) -> Array:
        """Each axis in turn."""
        method = _Method(
            mode=self.mode,
            coordinates=self.coordinate_transformation_mode,
            rounding=self.nearest_mode,
            cubic=self.cubic_coeff_a,
            exclude_outside=bool(self.exclude_outside),
            antialias=bool(getattr(self, "antialias", 0)),
            extrapolation=self.extrapolation_value,
        )
        return resize(x, self._axes(x, region, scales, sizes), method)


@register("Resize", since=18)
@dataclass(frozen=True, slots=True)
class Resize(Resize11):
    """Images resized along chosen axes, keeping their aspect ratio or filtered on demand."""

    antialias: int = 0
    axes: tuple[int, ...] | None = None
    keep_aspect_ratio_policy: str = "stretch"
