"""Operators on sequences of tensors: construct, read, change, split, concatenate.

The element type of a sequence has a shape only when all its elements have that same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.ir.sizes import Dim, provably_equal
from engine.ir.types import Array, DType, Operand, SequenceType, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.operator import Operator, register
from engine.ops.shapes import normalize_axis, unknown

__all__ = [
    "ConcatFromSequence",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SplitToSequence",
]


def sequence_type(operand: Operand) -> SequenceType:
    """The type of an input that must be a sequence; ValueError otherwise."""
    if not isinstance(operand.type, SequenceType):
        raise ValueError(f"a sequence was expected, found {operand.type}")
    return operand.type


def joined(left: Type, right: Type) -> Type:
    """The narrowest element type for two elements; ValueError when their element types differ."""
    if not (isinstance(left, TensorType) and isinstance(right, TensorType)):
        raise ValueError(f"a sequence holds tensors, found {left} and {right}")
    if left.dtype is not right.dtype:
        raise ValueError(
            f"a sequence holds tensors of one type, found {left.dtype.value} and "
            f"{right.dtype.value}"
        )
    return left if left.shape == right.shape else TensorType(left.dtype, None)


def position_of(position: Array | None, length: int, *, end: int) -> int:
    """The index that a position input means, in [0, end); ValueError when it lies outside."""
    index = int(as_array(position).reshape(-1)[0])
    if not -length <= index < end:
        raise ValueError(
            f"position is {index}, expected one of {-length} to {end - 1} for a sequence of "
            f"{length} tensors"
        )
    return index + length if index < 0 else index


@register("SequenceConstruct", since=11)
@dataclass(frozen=True, slots=True)
class SequenceConstruct(Operator):
    """A sequence of the given tensors."""

    def infer(self, *inputs: Operand) -> Sequence[Type]:
        element: Type = inputs[0].tensor
        for operand in inputs[1:]:
            element = joined(element, operand.tensor)
        return [SequenceType(element)]

    def meaning(self, *inputs: Array) -> list[Any]:
        return list(inputs)


@register("SequenceEmpty", since=11)
@dataclass(frozen=True, slots=True)
class SequenceEmpty(Operator):
    """A sequence without elements, of the element type that ``dtype`` names (float32 if none)."""

    dtype: int | None = None

    def infer(self) -> Sequence[Type]:
        kind = DType.FLOAT32 if self.dtype is None else dtype_of_code(self.dtype)
        return [SequenceType(TensorType(kind, None))]

    def meaning(self) -> list[Any]:
        return []


@register("SequenceAt", since=11)
@dataclass(frozen=True, slots=True)
class SequenceAt(Operator):
    """The tensor at a position, which counts from the back when it is negative."""

    def infer(self, sequence: Operand, position: Operand, /) -> Sequence[Type]:
        return [sequence_type(sequence).element]

    def meaning(self, sequence: list[Any], position: Array, /) -> Any:
        return sequence[position_of(position, len(sequence), end=len(sequence))]


@register("SequenceErase", since=11)
@dataclass(frozen=True, slots=True)
class SequenceErase(Operator):
    """The sequence without the tensor at a position (the last one if none is given)."""

    def infer(self, sequence: Operand, position: Operand | None = None, /) -> Sequence[Type]:
        return [sequence_type(sequence)]

    def meaning(self, sequence: list[Any], position: Array | None = None, /) -> list[Any]:
        place = as_array(-1) if position is None else position
        index = position_of(place, len(sequence), end=len(sequence))
        return sequence[:index] + sequence[index + 1 :]


@register("SequenceInsert", since=11)
@dataclass(frozen=True, slots=True)
class SequenceInsert(Operator):
    """The sequence with a tensor inserted before a position (at the end if none is given)."""

    def infer(
        self, sequence: Operand, tensor: Operand, position: Operand | None = None, /
    ) -> Sequence[Type]:
        return [SequenceType(joined(sequence_type(sequence).element, tensor.tensor))]

    def meaning(
        self, sequence: list[Any], tensor: Array, position: Array | None = None, /
    ) -> list[Any]:
        length = len(sequence)
        index = length if position is None else position_of(position, length, end=length + 1)
        return [*sequence[:index], tensor, *sequence[index:]]


@register("SequenceLength", since=11)
@dataclass(frozen=True, slots=True)
class SequenceLength(Operator):
    """The number of tensors in a sequence: a scalar of int64."""

    def infer(self, sequence: Operand, /) -> Sequence[Type]:
        sequence_type(sequence)
        return [TensorType(DType.INT64, ())]

    def meaning(self, sequence: list[Any], /) -> Array:
        return np.array(len(sequence), np.int64)


@register("ConcatFromSequence", since=11)
@dataclass(frozen=True, slots=True)
class ConcatFromSequence(Operator):
    """All tensors of a sequence joined along an axis, or stacked along a new one."""

    axis: int
    new_axis: int = 0

    def infer(self, sequence: Operand, /) -> Sequence[Type]:
        element = sequence_type(sequence).element
        if not isinstance(element, TensorType):
            raise ValueError(f"a sequence of tensors was expected, found {element}")
        if element.shape is None:
            return [TensorType(element.dtype, None)]
        rank = element.rank + bool(self.new_axis)
        axis = normalize_axis(self.axis, rank)
        after = axis if self.new_axis else axis + 1
        dims = (*element.shape[:axis], unknown(), *element.shape[after:])
        return [TensorType(element.dtype, dims)]

    def meaning(self, sequence: list[Array], /) -> Array:
        if not sequence:
            raise ValueError("a sequence without tensors cannot be concatenated")
        join = np.stack if self.new_axis else np.concatenate
        return join(sequence, axis=self.axis)


@register("SplitToSequence", since=11)
@dataclass(frozen=True, slots=True)
class SplitToSequence(Operator):
    """The parts of a tensor along an axis, as a sequence.

    ``split`` is a scalar (parts of that size, the last may be smaller) or a vector of sizes;
    without it every part has size 1 and ``keepdims=0`` drops its axis.
    """

    shape_inputs: ClassVar[tuple[int, ...]] = (1,)

    axis: int = 0
    keepdims: int = 1

    def infer(self, x: Operand, split: Operand | None = None, /) -> Sequence[Type]:
        if x.shape is None:
            return [SequenceType(TensorType(x.dtype, None))]
        axis = normalize_axis(self.axis, x.tensor.rank)
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        if split is None:
            dims = (*before, *((1,) if self.keepdims else ()), *after)
            return [SequenceType(TensorType(x.dtype, dims))]
        part = _common_part(x.shape[axis], split)
        shape = None if part is None else (*before, part, *after)
        return [SequenceType(TensorType(x.dtype, shape))]

    def meaning(self, x: Array, split: Array | None = None, /) -> list[Array]:
        axis = normalize_axis(self.axis, x.ndim)
        total = x.shape[axis]
        if split is None:
            parts = [np.take(x, [index], axis=axis) for index in range(total)]
            return parts if self.keepdims else [part.squeeze(axis) for part in parts]
        if split.ndim == 0:
            ends = np.arange(0, total, _positive(int(split)))[1:]
        else:
            if split.sum() != total or (split < 0).any():
                raise ValueError(
                    f"split is {split.tolist()}, expected sizes that add up to {total}"
                )
            ends = np.cumsum(split)[:-1]
        empty = not split.size if split.ndim else not total
        return [] if empty else np.split(x, ends, axis=axis)


def _positive(size: int) -> int:
    if size <= 0:
        raise ValueError(f"split is {size}, expected a size of at least 1")
    return size


def _common_part(total: Dim, split: Operand) -> Dim | None:
    """The size that all parts have, None when they may differ."""
    sizes = split.sizes
    if sizes is None or split.shape is None or not sizes:
        return None
    if split.shape:
        return sizes[0] if all(size == sizes[0] for size in sizes) else None
    size = sizes[0]
    whole = total % size if isinstance(size, int) and size > 0 else None
    return size if whole is not None and provably_equal(whole, 0) else None
