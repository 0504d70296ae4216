"""Split: a tensor cut into parts along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.ir.sizes import ceildiv, floordiv, maximum, minimum, provably_equal
from engine.ir.types import Array, Dim, Operand, TensorType
from engine.ops.contents import integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import normalize_axis, unknown

__all__ = ["Split2", "Split13", "Split18"]


def equal_parts(size: Dim, count: int) -> list[Dim]:
    """``count`` sizes that are equal; ValueError when they provably cannot be."""
    if count < 1 or (isinstance(size, int) and size % count):
        raise ValueError(f"an axis of size {size} cannot be split into {count} equal parts")
    return [floordiv(size, count)] * count


def ceiled_parts(size: Dim, count: int) -> list[Dim]:
    """``count`` sizes, equal but for the last ones, which take what is left."""
    if count < 1:
        raise ValueError(f"an axis of size {size} cannot be split into {count} parts")
    part = ceildiv(size, count)
    return [maximum(minimum(part, size - part * index), 0) for index in range(count)]


def _types(
    data: TensorType, axis: int, sizes: Sequence[Dim] | None, count: int
) -> list[TensorType]:
    """The types of the parts; without ``sizes`` they are unknown along the axis."""
    if data.shape is None:
        return [TensorType(data.dtype, None)] * (count if sizes is None else len(sizes))
    axis = normalize_axis(axis, len(data.shape))
    size = data.shape[axis]
    if sizes is None:
        parts: Sequence[Dim] = [unknown(size)] * count
    else:
        total: Dim = 0
        for part in sizes:
            total = total + part
        if provably_equal(total, size) is False:
            raise ValueError(f"parts of sizes {[str(s) for s in sizes]} do not add up to {size}")
        parts = sizes
    head, tail = data.shape[:axis], data.shape[axis + 1 :]
    return [TensorType(data.dtype, (*head, part, *tail)) for part in parts]


def _axis_size(data: TensorType, axis: int) -> Dim | None:
    return None if data.shape is None else data.shape[normalize_axis(axis, len(data.shape))]


def _cut(data: Array, axis: int, sizes: Sequence[int]) -> tuple[Array, ...]:
    if sum(sizes) != data.shape[axis]:
        raise ValueError(f"parts of sizes {list(sizes)} do not add up to {data.shape[axis]}")
    edges = np.cumsum([0, *sizes])
    place = (slice(None),) * normalize_axis(axis, data.ndim)
    return tuple(data[(*place, slice(a, b))] for a, b in pairwise(edges))


@register("Split", since=2)
@dataclass(frozen=True, slots=True)
class Split2(Operator):
    """Parts of the sizes in ``split``, or as many equal parts as there are outputs."""

    symbolic = True
    axis: int = 0
    split: tuple[int, ...] | None = None
    output_count: int = 0

    def infer(self, data: Operand, /) -> list[TensorType]:
        """One type per part."""
        given = tensor(data, "input")
        size = _axis_size(given, self.axis)
        sizes = None if size is None else self._sizes(size)
        count = len(self.split) if self.split is not None else self.output_count
        return _types(given, self.axis, sizes, count)

    def meaning(self, data: Array, /) -> tuple[Array, ...]:
        """Views of the parts."""
        return _cut(data, self.axis, integers(self._sizes(data.shape[self.axis])))

    def _sizes(self, size: Dim) -> Sequence[Dim]:
        return self.split if self.split is not None else equal_parts(size, self.output_count)


@register("Split", since=13)
@dataclass(frozen=True, slots=True)
class Split13(Operator):
    """Parts of the sizes that an input gives, or as many equal parts as there are outputs."""

    symbolic = True
    shape_inputs = (1,)
    axis: int = 0
    output_count: int = 0

    def infer(self, data: Operand, split: Operand | None = None, /) -> list[TensorType]:
        """One type per part."""
        given = tensor(data, "input")
        size = _axis_size(given, self.axis)
        sizes: Sequence[Dim] | None = None if split is None else split.sizes
        if split is None and size is not None:
            sizes = equal_parts(size, self.output_count)
        return _types(given, self.axis, sizes, self.output_count)

    def meaning(self, data: Array, split: Array | None = None, /) -> tuple[Array, ...]:
        """Views of the parts."""
        if split is not None:
            return _cut(data, self.axis, integers(split))
        sizes = equal_parts(data.shape[self.axis], self.output_count)
        return _cut(data, self.axis, integers(sizes))


@register("Split", since=18)
@dataclass(frozen=True, slots=True)
class Split18(Operator):
    """Parts of the sizes that an input gives, or ``num_outputs`` parts, the last one smaller."""

    symbolic = True
    shape_inputs = (1,)
    axis: int = 0
    num_outputs: int | None = None
    output_count: int = 0

    def infer(self, data: Operand, split: Operand | None = None, /) -> list[TensorType]:
        """One type per part."""
        given = tensor(data, "input")
        size = _axis_size(given, self.axis)
        sizes: Sequence[Dim] | None = None if split is None else split.sizes
        if split is None and size is not None:
            sizes = ceiled_parts(size, self._count)
        return _types(given, self.axis, sizes, self._count)

    def meaning(self, data: Array, split: Array | None = None, /) -> tuple[Array, ...]:
        """Views of the parts."""
        if split is not None:
            return _cut(data, self.axis, integers(split))
        return _cut(data, self.axis, integers(ceiled_parts(data.shape[self.axis], self._count)))

    @property
    def _count(self) -> int:
        return self.output_count if self.num_outputs is None else self.num_outputs
