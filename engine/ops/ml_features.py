"""Operators of ai.onnx.ml that rework features elementwise or column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register
from engine.ops.score_transforms import ML
from engine.ops.shapes import same_as
from engine.ops.softmax import peak

__all__ = [
    "ArrayFeatureExtractor",
    "Binarizer",
    "FeatureVectorizer",
    "Imputer",
    "Normalizer",
    "Scaler",
]


@register("ArrayFeatureExtractor", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class ArrayFeatureExtractor(Operator):
    """Chosen columns of the last axis; a vector is one row: (..., C) to (..., number chosen)."""

    def infer(self, x: Operand, y: Operand, /) -> Sequence[Type]:
        if x.shape is None or y.shape is None:
            return [TensorType(x.dtype, None)]
        if not x.shape:
            raise ValueError("the input is a scalar, expected at least one axis")
        return [TensorType(x.dtype, (*(x.shape[:-1] or (1,)), y.tensor.elements))]

    def meaning(self, x: Array, y: Array, /) -> Array:
        rows = x.reshape(1, -1) if x.ndim == 1 else x
        chosen = y.reshape(-1)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < rows.shape[-1]:
            raise ValueError(f"columns {chosen.tolist()[:8]} of {rows.shape[-1]} were asked for")
        return np.take(rows, chosen, axis=-1)


@register("Binarizer", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class Binarizer(Operator):
    """1 where an element is greater than the threshold, else 0."""

    threshold: float = 0.0

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return same_as(x)

    def meaning(self, x: Array, /) -> Array:
        return as_array(x > self.threshold).astype(x.dtype)


@register("FeatureVectorizer", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class FeatureVectorizer(Operator):
    """All inputs side by side in float32; a vector is one row.

    ``inputdimensions`` gives the columns to take of each input; missing ones are 0.
    """

    inputdimensions: tuple[int, ...] = ()

    def infer(self, *inputs: Operand) -> Sequence[Type]:
        if any(item.shape is None for item in inputs):
            return [TensorType(DType.FLOAT32, None)]
        shapes = [item.tensor.dims for item in inputs]
        columns: Dim = sum(self.inputdimensions)
        if not self.inputdimensions:
            for shape in shapes:
                columns = columns + (shape[-1] if shape else 1)
        rows = shapes[0][0] if len(shapes[0]) == 2 else 1
        return [TensorType(DType.FLOAT32, (rows, columns))]

    def meaning(self, *inputs: Array) -> Array:
        rows = [np.atleast_2d(item).astype(np.float32) for item in inputs]
        widths = self.inputdimensions or tuple(item.shape[1] for item in rows)
        if len(widths) != len(rows):
            raise ValueError(f"{len(widths)} inputdimensions for {len(rows)} inputs")
        parts = []
        for item, width in zip(rows, widths, strict=True):
            missing = max(width - item.shape[1], 0)
            parts.append(np.pad(item[:, :width], ((0, 0), (0, missing))))
        return np.concatenate(parts, axis=1)


@register("Imputer", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class Imputer(Operator):
    """Elements that equal one value (or are NaN, if that is it) replaced by their column's value.

    Floats use the attributes named so, integers the others; one value serves for all columns.
    """

    imputed_value_floats: tuple[float, ...] = ()
    imputed_value_int64s: tuple[int, ...] = ()
    replaced_value_float: float = 0.0
    replaced_value_int64: int = 0

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return same_as(x)

    def meaning(self, x: Array, /) -> Array:
        is_float = x.dtype.kind == "f"
        values = self.imputed_value_floats if is_float else self.imputed_value_int64s
        replaced = self.replaced_value_float if is_float else self.replaced_value_int64
        columns = x.shape[-1] if x.ndim else 1
        if len(values) not in (1, columns):
            raise ValueError(f"{len(values)} imputed values, expected 1 or {columns}")
        old = np.isnan(x) if np.isnan(replaced) else x == as_array(replaced, x.dtype)
        return np.where(old, np.array(values, x.dtype), x).reshape(x.shape)


@register("Normalizer", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class Normalizer(Operator):
    """Each row divided by its maximum, sum of absolute values or length, in float32.

    A row whose divisor is 0 stays as it is.
    """

    norm: str = "MAX"

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [TensorType(DType.FLOAT32, x.shape)]

    def meaning(self, x: Array, /) -> Array:
        wide, axis = x.astype(np.float64), -1 if x.ndim < 2 else 1
        if self.norm == "MAX":
            divisor = peak(wide, axis)
        elif self.norm == "L1":
            divisor = np.abs(wide).sum(axis=axis, keepdims=True)
        elif self.norm == "L2":
            divisor = np.sqrt((wide * wide).sum(axis=axis, keepdims=True))
        else:
            raise ValueError(f"norm is {self.norm!r}, expected MAX, L1 or L2")
        return as_array(wide / np.where(divisor == 0, 1, divisor)).astype(np.float32)


@register("Scaler", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class Scaler(Operator):
    """(x - offset) * scale in float32, with one value or one per column."""

    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [TensorType(DType.FLOAT32, x.shape)]

    def meaning(self, x: Array, /) -> Array:
        columns = x.shape[-1] if x.ndim else 1
        for name, values in (("offset", self.offset), ("scale", self.scale)):
            if len(values) not in (0, 1, columns):
                raise ValueError(f"{len(values)} values of {name}, expected 1 or {columns}")
        offset = np.array(self.offset or (0.0,), np.float32).astype(np.float64)
        scale = np.array(self.scale or (1.0,), np.float32).astype(np.float64)
        scaled = (x.astype(np.float64) - offset) * scale
        return as_array(scaled).reshape(x.shape).astype(np.float32)
