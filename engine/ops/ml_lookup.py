"""Operators of ai.onnx.ml that look categories up: encoders, mappers, map conversions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.types import Array, DType, MapType, Operand, SequenceType, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register
from engine.ops.score_transforms import ML
from engine.ops.shapes import unknown
from engine.ops.strings import string_array

__all__ = [
    "CastMap",
    "CategoryMapper",
    "DictVectorizer",
    "LabelEncoder",
    "LabelEncoder1",
    "LabelEncoder2",
    "OneHotEncoder",
    "ZipMap",
]

_NAN = "NaN"  # equal to itself, unlike the number


def looked_up(x: Array, table: Mapping[Any, Any], default: Any, dtype: DType) -> Array:
    """Every element replaced by what a table holds for it, or by a default."""
    keys = [_key(item) for item in x.ravel().tolist()]
    return filled([table.get(key, default) for key in keys], x.shape, dtype)


def filled(items: Sequence[Any], shape: Sequence[int], dtype: DType) -> Array:
    """A tensor of a type from its elements in row-major order."""
    if dtype is DType.STRING:
        return string_array([str(item) for item in items], shape)
    return np.array(items, dtype.numpy).reshape(tuple(shape))


def _key(item: Any) -> Any:
    return (_NAN,) if isinstance(item, float) and math.isnan(item) else item


def _float32s(values: Sequence[float]) -> list[float]:
    """The numbers as float32 holds them, so that they equal elements of float32 tensors."""
    return [float(item) for item in np.array(values, np.float32)]


def _other(x: Operand) -> TensorType:
    """Strings for integers and integers for strings."""
    return TensorType(DType.INT64 if x.dtype is DType.STRING else DType.STRING, x.shape)


@register("CategoryMapper", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class CategoryMapper(Operator):
    """Strings to the integers at the same place of a list, or integers to strings."""

    cats_int64s: tuple[int, ...] = ()
    cats_strings: tuple[str, ...] = ()
    default_int64: int = -1
    default_string: str = "_Unused"

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [_other(x)]

    def meaning(self, x: Array, /) -> Array:
        integers, strings = self.cats_int64s, self.cats_strings
        if len(integers) != len(strings):
            raise ValueError(f"{len(integers)} integers for {len(strings)} strings")
        if x.dtype == object:
            to_integer = dict(zip(strings, integers, strict=True))
            return looked_up(x, to_integer, self.default_int64, DType.INT64)
        to_string = dict(zip(integers, strings, strict=True))
        return looked_up(x, to_string, self.default_string, DType.STRING)


@register("LabelEncoder", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class LabelEncoder1(Operator):
    """Strings to their places in a list of classes, or places to strings."""

    classes_strings: tuple[str, ...] = ()
    default_int64: int = -1
    default_string: str = "_Unused"

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [_other(x)]

    def meaning(self, x: Array, /) -> Array:
        places = range(len(self.classes_strings))
        if x.dtype == object:
            to_place = dict(zip(self.classes_strings, places, strict=True))
            return looked_up(x, to_place, self.default_int64, DType.INT64)
        to_string = dict(zip(places, self.classes_strings, strict=True))
        return looked_up(x, to_string, self.default_string, DType.STRING)


@register("LabelEncoder", since=2, domain=ML)
@dataclass(frozen=True, slots=True)
class LabelEncoder2(Operator):
    """Each element replaced by the value at the place where it stands among the keys.

    Any NaN finds a key that is NaN; of equal keys the last one counts.
    """

    default_float: float = -0.0
    default_int64: int = -1
    default_string: str = "_Unused"
    keys_floats: tuple[float, ...] = ()
    keys_int64s: tuple[int, ...] = ()
    keys_strings: tuple[str, ...] = ()
    values_floats: tuple[float, ...] = ()
    values_int64s: tuple[int, ...] = ()
    values_strings: tuple[str, ...] = ()

    def _keys(self) -> Sequence[Any]:
        return self.keys_strings or self.keys_int64s or _float32s(self.keys_floats)

    def _values(self) -> tuple[Sequence[Any], Any, DType]:
        """The values, their default and their type."""
        if self.values_strings:
            return self.values_strings, self.default_string, DType.STRING
        if self.values_int64s:
            return self.values_int64s, self.default_int64, DType.INT64
        return self.values_floats, self.default_float, DType.FLOAT32

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [TensorType(self._values()[2], x.shape)]

    def meaning(self, x: Array, /) -> Array:
        keys, (values, default, dtype) = self._keys(), self._values()
        if len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys for {len(values)} values")
        table = dict(zip(map(_key, keys), values, strict=True))
        return looked_up(x, table, default, dtype)


@register("LabelEncoder", since=4, domain=ML)
@dataclass(frozen=True, slots=True)
class LabelEncoder(LabelEncoder2):
    """As version 2, with keys, values and default that may be tensors."""

    default_tensor: Array | None = None
    keys_tensor: Array | None = None
    values_tensor: Array | None = None

    def _keys(self) -> Sequence[Any]:
        if self.keys_tensor is not None:
            return list(self.keys_tensor.ravel().tolist())
        return LabelEncoder2._keys(self)

    def _values(self) -> tuple[Sequence[Any], Any, DType]:
        if self.values_tensor is None:
            values, default, dtype = LabelEncoder2._values(self)
        else:
            values, dtype = self.values_tensor.ravel().tolist(), DType.of(self.values_tensor.dtype)
            default = "_Unused" if dtype is DType.STRING else -0.0 if dtype.is_float else -1
        if self.default_tensor is not None:
            default = self.default_tensor.reshape(-1)[0]
        return values, default, dtype


@register("OneHotEncoder", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class OneHotEncoder(Operator):
    """A new last axis with 1 at the place of each element among the categories, in float32.

    Numbers are cut to integers first. An element that is no category gives zeros, or an error
    when ``zeros`` is 0.
    """

    cats_int64s: tuple[int, ...] = ()
    cats_strings: tuple[str, ...] = ()
    zeros: int = 1

    @property
    def _categories(self) -> Sequence[Any]:
        return self.cats_int64s or self.cats_strings

    def infer(self, x: Operand, /) -> Sequence[Type]:
        shape = None if x.shape is None else (*x.shape, len(self._categories))
        return [TensorType(DType.FLOAT32, shape)]

    def meaning(self, x: Array, /) -> Array:
        place = {item: index for index, item in enumerate(self._categories)}
        plain = x if x.dtype == object else x.astype(np.int64)
        found = looked_up(plain, place, -1, DType.INT64)
        if not self.zeros and (found < 0).any():
            odd = plain[found < 0].ravel()[0]
            raise ValueError(f"the element {odd!r} is none of the {len(place)} categories")
        return as_array(found[..., None] == np.arange(len(place))).astype(np.float32)


@register("DictVectorizer", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class DictVectorizer(Operator):
    """The values that a map holds for the words of a vocabulary: a vector, 0 or "" where none.

    Words outside the vocabulary are left out, as in onnx's reference and in ONNX Runtime.
    """

    int64_vocabulary: tuple[int, ...] = ()
    string_vocabulary: tuple[str, ...] = ()

    def infer(self, x: Operand, /) -> Sequence[Type]:
        if not isinstance(x.type, MapType) or not isinstance(x.type.value, TensorType):
            raise ValueError(f"a map was expected, found {x.type}")
        words = self.int64_vocabulary or self.string_vocabulary
        return [TensorType(x.type.value.dtype, (len(words),))]

    def meaning(self, x: Mapping[Any, Any], /) -> Array:
        words: Sequence[Any] = self.int64_vocabulary or self.string_vocabulary
        dtype = map_value_type(x)
        empty: Any = "" if dtype is DType.STRING else 0
        return filled([x.get(word, empty) for word in words], (len(words),), dtype)


def map_value_type(x: Mapping[Any, Any]) -> DType:
    """The element type of a map's values: of arrays their own, of Python numbers the usual one."""
    for value in x.values():
        if isinstance(value, (np.ndarray, np.generic)):
            return DType.of(value.dtype)
        if isinstance(value, str):
            return DType.STRING
        return DType.INT64 if isinstance(value, int) else DType.FLOAT32
    return DType.FLOAT32


_CASTS = {"TO_FLOAT": DType.FLOAT32, "TO_INT64": DType.INT64, "TO_STRING": DType.STRING}


@register("CastMap", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class CastMap(Operator):
    """The values of a map in the order of its keys (DENSE), or at their keys' places (SPARSE).

    The answer has shape (1, n). Numbers become strings with six decimals; places without a key
    hold 0, or "0.f" among strings (ONNX Runtime's rules, where the specification is silent).
    """

    cast_to: str = "TO_FLOAT"
    map_form: str = "DENSE"
    max_map: int = 1

    def infer(self, x: Operand, /) -> Sequence[Type]:
        size = self.max_map if self.map_form == "SPARSE" else unknown()
        return [TensorType(self._dtype(), (1, size))]

    def _dtype(self) -> DType:
        if self.cast_to not in _CASTS or self.map_form not in ("DENSE", "SPARSE"):
            raise ValueError(
                f"cast_to is {self.cast_to!r} and map_form {self.map_form!r}, expected one of "
                f"{', '.join(_CASTS)} and DENSE or SPARSE"
            )
        return _CASTS[self.cast_to]

    def meaning(self, x: Mapping[int, Any], /) -> Array:
        dtype = self._dtype()
        cast = {key: _cast(x[key], dtype) for key in sorted(x)}
        if self.map_form == "DENSE":
            return filled(list(cast.values()), (1, len(cast)), dtype)
        outside = [key for key in cast if not 0 <= key < self.max_map]
        if outside:
            raise ValueError(f"the map has the key {outside[0]}, expected 0 to {self.max_map - 1}")
        empty: Any = "0.f" if dtype is DType.STRING else 0
        items = [cast.get(key, empty) for key in range(self.max_map)]
        return filled(items, (1, self.max_map), dtype)


def _cast(value: Any, dtype: DType) -> Any:
    if dtype is DType.STRING:
        return value if isinstance(value, str) else f"{float(value):f}"
    return float(value) if dtype is DType.FLOAT32 else int(value)


@register("ZipMap", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class ZipMap(Operator):
    """One map per row, from class labels to the row's values: (N, C) or (C) to N maps."""

    classlabels_int64s: tuple[int, ...] = ()
    classlabels_strings: tuple[str, ...] = ()

    def infer(self, x: Operand, /) -> Sequence[Type]:
        key = DType.STRING if self.classlabels_strings else DType.INT64
        return [SequenceType(MapType(key, TensorType(x.dtype, ())))]

    def meaning(self, x: Array, /) -> list[dict[Any, float]]:
        labels: Sequence[Any] = self.classlabels_strings or self.classlabels_int64s
        if x.ndim not in (1, 2) or x.shape[-1] != len(labels):
            raise ValueError(f"the input has shape {x.shape}, expected (N, {len(labels)})")
        return [dict(zip(labels, row, strict=True)) for row in np.atleast_2d(x).tolist()]
