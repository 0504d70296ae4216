"""Cast and CastLike: conversions between all element types, strings included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.conversions import convert, wide_array
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.expression import Expression, cast, load
from engine.ops.operator import register, tensor
from engine.ops.symbolic import evaluate_sizes, holds_conditions, holds_sizes

__all__ = ["convert_any"]

ROUND_MODES = ("up", "down", "nearest")


def _number(text: str, dtype: DType) -> Any:
    """The number that a string spells; ValueError when it spells none."""
    try:
        if dtype.is_integer:
            try:
                return int(text)
            except ValueError:
                return int(float(text))
        if dtype.is_complex:
            return complex(text)
        return bool(float(text)) if dtype is DType.BOOL else float(text)
    except (ValueError, OverflowError):
        raise ValueError(f"the string {text!r} spells no {dtype.value}") from None


def _from_strings(array: Array, dtype: DType, saturate: bool, round_mode: str) -> Array:
    numbers = [_number(str(item), dtype) for item in array.ravel()]
    if dtype.is_integer:
        between = np.array([n & (1 << 64) - 1 for n in numbers], np.uint64).astype(np.int64)
    elif dtype.is_complex or dtype is DType.BOOL:
        between = np.array(numbers, dtype.numpy)
    else:
        between = np.array(numbers, np.float64)
        if dtype is not DType.FLOAT64:
            with np.errstate(over="ignore"):
                between = between.astype(np.float32)
    wanted = between.reshape(array.shape)
    return convert(wanted, dtype, saturate=saturate, round_mode=round_mode)


def _to_strings(array: Array) -> Array:
    """Shortest text that reads back as the same number, without exponent where that is short."""
    if array.dtype == np.bool_:
        texts = ["1" if item else "0" for item in array.ravel()]
    else:
        texts = [str(item) for item in wide_array(array).ravel()]
    result = np.empty(array.shape, object)
    result.reshape(-1)[:] = texts
    return result


def convert_any(
    array: Array, dtype: DType, *, saturate: bool = True, round_mode: str = "up"
) -> Array:
    """The array as another element type, strings included."""
    strings = DType.of(array.dtype) is DType.STRING
    if strings and dtype is DType.STRING:
        return array
    if strings:
        return _from_strings(array, dtype, saturate, round_mode)
    if dtype is DType.STRING:
        return _to_strings(array)
    return convert(array, dtype, saturate=saturate, round_mode=round_mode)


@dataclass(frozen=True, slots=True)
class _Conversion(ElementwiseOperator):
    """What Cast and CastLike share: the target type is told by a subclass."""

    symbolic: ClassVar[bool] = True

    def _options(self) -> tuple[bool, str]:
        saturate = bool(getattr(self, "saturate", 1))
        mode: str = getattr(self, "round_mode", "up")
        if mode not in ROUND_MODES:
            raise ValueError(f"round_mode is {mode!r}, expected one of {', '.join(ROUND_MODES)}")
        return saturate, mode

    def _expression(self, x: Expression, dtype: DType) -> Expression:
        """The conversion as an expression; ValueError for the forms that expressions lack."""
        saturate, mode = self._options()
        if dtype is DType.FLOAT8E8M0 and mode != "up":
            raise ValueError(f"an expression rounds up to {dtype.value}, not {mode}")
        if not saturate and dtype.value.startswith("float8"):
            raise ValueError(f"an expression saturates {dtype.value}")
        return cast(x, dtype)

    def _convert(self, x: Any, dtype: DType) -> Array:
        array = as_array(x)
        if dtype is not DType.STRING and holds_sizes(array):
            source = DType.BOOL if holds_conditions(array) else DType.INT64
            return evaluate_sizes(cast(load(0, source), dtype), [array])
        saturate, mode = self._options()
        return convert_any(array, dtype, saturate=saturate, round_mode=mode)


@dataclass(frozen=True, slots=True)
class _Cast(_Conversion):
    def target(self) -> DType:
        """The element type asked for."""
        return dtype_of_code(getattr(self, "to", 0))

    def expression(self, *operands: Expression | None) -> Expression:
        """The conversion of the one operand."""
        (x,) = operands
        assert x is not None
        return self._expression(x, self.target())

    def infer(self, x: Operand | None, /) -> Sequence[Type]:
        """The input's shape with the wanted type."""
        return [TensorType(self.target(), tensor(x, "input").shape)]

    def meaning(self, x: Any, /) -> Array:
        """The converted array; the same array when it already has the type."""
        return self._convert(x, self.target())


@register("Cast", since=6)
@dataclass(frozen=True, slots=True)
class Cast6(_Cast):
    """The conversion to the type that ``to`` names."""

    to: int


@register("Cast", since=19)
@dataclass(frozen=True, slots=True)
class Cast19(_Cast):
    """The conversion to the type that ``to`` names; ``saturate`` is for 8-bit floats."""

    to: int
    saturate: int = 1


@register("Cast", since=24)
@dataclass(frozen=True, slots=True)
class Cast(_Cast):
    """The conversion to the type that ``to`` names; ``round_mode`` is for FLOAT8E8M0."""

    to: int
    saturate: int = 1
    round_mode: str = "up"


@dataclass(frozen=True, slots=True)
class _CastLike(_Conversion):
    def expression(self, *operands: Expression | None) -> Expression:
        """The first operand in the second one's type."""
        x, like = operands
        assert x is not None
        assert like is not None
        return self._expression(x, like.dtype)

    def infer(self, x: Operand | None, like: Operand | None, /) -> Sequence[Type]:
        """The first input's shape with the second one's type."""
        return [TensorType(tensor(like, "target_type").dtype, tensor(x, "input").shape)]

    def meaning(self, x: Any, like: Any, /) -> Array:
        """The first array in the second one's type."""
        other = as_array(like)
        return self._convert(x, DType.INT64 if holds_sizes(other) else DType.of(other.dtype))


@register("CastLike", since=15)
@dataclass(frozen=True, slots=True)
class CastLike15(_CastLike):
    """The conversion to the second input's type."""


@register("CastLike", since=19)
@dataclass(frozen=True, slots=True)
class CastLike19(_CastLike):
    """The conversion to the second input's type; ``saturate`` is for 8-bit floats."""

    saturate: int = 1


@register("CastLike", since=24)
@dataclass(frozen=True, slots=True)
class CastLike(_CastLike):
    """The conversion to the second input's type; ``round_mode`` is for FLOAT8E8M0."""

    saturate: int = 1
    round_mode: str = "up"
