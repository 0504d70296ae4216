"""Pad and CenterCropPad: elements added to, or cut from, the ends of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Dim, DType, Operand, Shape, TensorType
from engine.ops.arrays import as_array
from engine.ops.contents import integers, known_integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import normalize_axes, unknown, unknown_shape

__all__ = ["CenterCropPad", "Pad11", "Pad2"]

MODES = ("constant", "reflect", "edge", "wrap")


def default_fill(data: Array) -> Array:
    """The scalar that stands for nothing: 0, False or the empty string."""
    if DType.of(data.dtype) is DType.STRING:
        return np.array("", object)
    return np.zeros((), data.dtype)


def padded_shape(shape: Shape, pads: Sequence[Dim], axes: Sequence[int]) -> Shape:
    """The sizes with the pads of each named axis added; negative ones cut."""
    places = normalize_axes(axes, len(shape))
    if len(pads) != 2 * len(places):
        raise ValueError(f"pads has {len(pads)} entries, expected {2 * len(places)}")
    dims = list(shape)
    for index, axis in enumerate(places):
        dims[axis] = dims[axis] + pads[index] + pads[len(places) + index]
    if any(isinstance(dim, int) and dim < 0 for dim in dims):
        raise ValueError(f"pads {list(pads)} cut more than there is of shape {list(shape)}")
    return tuple(dims)


def padded(data: Array, pads: Sequence[int], axes: Sequence[int], mode: str, fill: Array) -> Array:
    """The padded array; ``pads`` holds all begins, then all ends."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    places = normalize_axes(axes, data.ndim)
    shape = padded_shape(data.shape, pads, axes)
    before = dict(zip(places, pads[: len(places)], strict=True))
    if mode == "constant":
        return _filled(data, integers(shape), before, fill)
    for axis, begin in before.items():
        places_wanted = np.arange(integers(shape)[axis]) - begin
        data = np.take(data, _source(places_wanted, data.shape[axis], mode), axis)
    return data


def _filled(data: Array, shape: Sequence[int], before: dict[int, int], fill: Array) -> Array:
    result = np.full(shape, fill, data.dtype)
    source, target = [slice(None)] * data.ndim, [slice(None)] * data.ndim
    for axis, begin in before.items():
        length = max(min(data.shape[axis], shape[axis] - begin) - max(-begin, 0), 0)
        source[axis] = slice(max(-begin, 0), max(-begin, 0) + length)
        target[axis] = slice(max(begin, 0), max(begin, 0) + length)
    result[tuple(target)] = data[tuple(source)]
    return result


def _source(places: Array, size: int, mode: str) -> Array:
    """Where the elements at these places, counted from the old first one, come from."""
    if size == 0 and places.size:
        raise ValueError(f"an axis of size 0 cannot be padded in mode {mode!r}")
    if mode == "edge":
        return np.clip(places, 0, size - 1)
    if mode == "wrap":
        return as_array(places % max(size, 1))
    period = max(2 * (size - 1), 1)
    return as_array((size - 1) - np.abs(places % period - (size - 1)))


@register("Pad", since=2)
@dataclass(frozen=True, slots=True)
class Pad2(Operator):
    """The tensor with ``pads`` (all begins, then all ends) added to its axes."""

    pads: tuple[int, ...]
    mode: str = "constant"
    value: float = 0.0

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The sizes with the pads added."""
        given = tensor(data, "data")
        if given.shape is None:
            return [TensorType(given.dtype, unknown_shape(len(self.pads) // 2))]
        axes = range(len(given.shape))
        return [TensorType(given.dtype, padded_shape(given.shape, self.pads, axes))]

    def meaning(self, data: Array, /) -> Array:
        """A new array."""
        fill = np.array(self.value).astype(data.dtype)
        return padded(data, self.pads, range(data.ndim), self.mode, fill)


@register("Pad", since=11)
@dataclass(frozen=True, slots=True)
class Pad11(Operator):
    """The tensor with pads added to the axes given (all by default); pads are an input."""

    shape_inputs = (1, 3)
    mode: str = "constant"

    def infer(
        self,
        data: Operand,
        pads: Operand,
        constant_value: Operand | None = None,
        axes: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """The sizes with the pads added."""
        given = tensor(data, "data")
        tensor(pads, "pads")
        if given.shape is None:
            return [given]
        places = list(range(len(given.shape))) if axes is None else known_integers(axes)
        if places is None:
            return [TensorType(given.dtype, unknown_shape(len(given.shape)))]
        if pads.sizes is None:
            changed = normalize_axes(places, len(given.shape))
            rows = enumerate(given.shape)
            dims = tuple(unknown() if axis in changed else dim for axis, dim in rows)
            return [TensorType(given.dtype, dims)]
        return [TensorType(given.dtype, padded_shape(given.shape, pads.sizes, places))]

    def meaning(
        self,
        data: Array,
        pads: Array,
        constant_value: Array | None = None,
        axes: Array | None = None,
        /,
    ) -> Array:
        """A new array."""
        places = range(data.ndim) if axes is None else integers(axes)
        fill = default_fill(data) if constant_value is None else constant_value.reshape(())
        return padded(data, integers(pads), places, self.mode, fill)


@register("CenterCropPad", since=18)
@dataclass(frozen=True, slots=True)
class CenterCropPad(Operator):
    """The tensor cut or zero-padded around its centre to the sizes that an input gives."""

    shape_inputs = (1,)
    axes: tuple[int, ...] | None = None

    def infer(self, data: Operand, shape: Operand, /) -> list[TensorType]:
        """The sizes given, for the axes named."""
        given = tensor(data, "input_data")
        tensor(shape, "shape")
        if given.shape is None:
            return [given]
        dims = list(given.shape)
        places = self._axes(len(dims))
        wanted = shape.sizes or [unknown()] * len(places)
        if len(wanted) != len(places):
            raise ValueError(f"shape has {len(wanted)} entries, expected {len(places)}")
        for axis, size in zip(places, wanted, strict=True):
            dims[axis] = size
        return [TensorType(given.dtype, tuple(dims))]

    def meaning(self, data: Array, shape: Array, /) -> Array:
        """Both ends change alike; the odd element is cut or added at the end."""
        places = self._axes(data.ndim)
        begins, ends = [], []
        for axis, size in zip(places, integers(shape), strict=True):
            missing = size - data.shape[axis]
            begins.append(missing // 2 if missing >= 0 else -(-missing // 2))
            ends.append(missing - begins[-1])
        return padded(data, begins + ends, places, "constant", default_fill(data))

    def _axes(self, rank: int) -> tuple[int, ...]:
        return normalize_axes(range(rank) if self.axes is None else self.axes, rank)
