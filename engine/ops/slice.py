"""Slice: a range of indices along some axes, with steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.ir.sizes import bounds, ceildiv, maximum, minimum
from engine.ir.types import Array, Dim, Operand, Shape, TensorType
from engine.ops.contents import integers, known_integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import normalize_axes, unknown, unknown_shape

__all__ = ["Slice1", "Slice10"]

#: Ends from here on mean "to the end of the axis", whatever its size.
FAR = 2**31 - 1


def slice_size(size: Dim, start: Dim, end: Dim, step: int) -> Dim:
    """How many indices of an axis a slice takes; an unknown size when a sign is undecided."""
    if step == 0:
        raise ValueError("a step of a slice is 0, expected another number")
    first, last = _from_front(start, size), _from_front(end, size)
    if first is None or last is None:
        return unknown(size)
    if step < 0:
        low = -1 if isinstance(end, int) and end <= -FAR else maximum(last, -1)
        high = size - 1 if start == -1 else minimum(maximum(first, 0), size - 1)
        return maximum(ceildiv(high - low, -step), 0)
    end_at = maximum(minimum(last, size), 0)
    if isinstance(start, int) and start < 0:
        return maximum(ceildiv(minimum(end_at - first, end_at), step), 0)
    # An index past the end needs no clamping here: the end lies before it.
    return maximum(ceildiv(end_at - first, step), 0)


def _from_front(index: Dim, size: Dim) -> Dim | None:
    """The index counted from the front, possibly outside the axis; None when undecided."""
    if isinstance(index, int):
        if index >= FAR:
            return size
        return index if index >= 0 else size + index
    lower, upper = bounds(index)
    if lower is not None and lower >= 0:
        return index
    return size + index if upper is not None and upper < 0 else None


def _sliced(
    shape: Shape,
    starts: Sequence[Dim],
    ends: Sequence[Dim],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Shape:
    dims = list(shape)
    _check_lengths(starts, ends, axes, steps)
    places = normalize_axes(axes, len(shape))
    for axis, start, end, step in zip(places, starts, ends, steps, strict=True):
        dims[axis] = slice_size(shape[axis], start, end, step)
    return tuple(dims)


def _check_lengths(*lists: Sequence[object]) -> None:
    lengths = [len(item) for item in lists]
    if len(set(lengths)) > 1:
        raise ValueError(f"starts, ends, axes and steps have lengths {lengths}, expected one")


def _take(
    data: Array,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Array:
    _check_lengths(starts, ends, axes, steps)
    index = [slice(None)] * data.ndim
    places = normalize_axes(axes, data.ndim)
    for axis, start, end, step in zip(places, starts, ends, steps, strict=True):
        index[axis] = _slice(data.shape[axis], start, end, step)
    return data[tuple(index)]


def _slice(size: int, start: int, end: int, step: int) -> slice:
    """Python's slice; unlike it, a backward start before the axis means its first element."""
    if step == 0:
        raise ValueError("a step of a slice is 0, expected another number")
    if step > 0:
        return slice(start, end, step)
    start = min(max(start + size if start < 0 else start, 0), size - 1)
    end = max(end + size if end < 0 else end, -1)
    return slice(start, None if end < 0 else end, step) if size else slice(0, 0, 1)


@register("Slice", since=1)
@dataclass(frozen=True, slots=True)
class Slice1(Operator):
    """Indices ``starts`` (included) to ``ends`` (excluded) of ``axes``; negative from the back."""

    symbolic = True
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    axes: tuple[int, ...] | None = None

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The sizes of the ranges."""
        given = tensor(data, "data")
        if given.shape is None:
            return [given]
        dims = _sliced(given.shape, self.starts, self.ends, self._axes, [1] * len(self.starts))
        return [TensorType(given.dtype, dims)]

    def meaning(self, data: Array, /) -> Array:
        """A view of the ranges."""
        return _take(data, self.starts, self.ends, self._axes, [1] * len(self.starts))

    @property
    def _axes(self) -> Sequence[int]:
        return range(len(self.starts)) if self.axes is None else self.axes


@register("Slice", since=10)
@dataclass(frozen=True, slots=True)
class Slice10(Operator):
    """Indices start to end (excluded) in steps, of the axes given; all four come as inputs."""

    symbolic = True
    shape_inputs = (1, 2, 3, 4)

    def infer(
        self,
        data: Operand,
        starts: Operand,
        ends: Operand,
        axes: Operand | None = None,
        steps: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """The sizes of the ranges, unknown along the axes whose range is not known."""
        given = tensor(data, "data")
        tensor(starts, "starts")
        tensor(ends, "ends")
        if given.shape is None:
            return [given]
        places, strides = known_integers(axes), known_integers(steps)
        if axes is None:
            count = len(starts.sizes) if starts.sizes is not None else None
            places = None if count is None else list(range(count))
        if places is None:
            return [TensorType(given.dtype, unknown_shape(len(given.shape)))]
        if steps is None:
            strides = [1] * len(places)
        if starts.sizes is None or ends.sizes is None or strides is None:
            cut = normalize_axes(places, len(given.shape))
            rows = enumerate(given.shape)
            return [TensorType(given.dtype, tuple(unknown(d) if i in cut else d for i, d in rows))]
        dims = _sliced(given.shape, starts.sizes, ends.sizes, places, strides)
        return [TensorType(given.dtype, dims)]

    def meaning(
        self,
        data: Array,
        starts: Array,
        ends: Array,
        axes: Array | None = None,
        steps: Array | None = None,
        /,
    ) -> Array:
        """A view of the ranges."""
        first = integers(starts)
        places = range(len(first)) if axes is None else integers(axes)
        strides = [1] * len(first) if steps is None else integers(steps)
        return _take(data, first, integers(ends), places, strides)
