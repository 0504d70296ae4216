"""Conversions between element types by ONNX's rules, in NumPy.

Float to integer truncates and saturates, NaN becomes 0; integer to integer, and anything to the
integers below 8 bits, keeps the low bits; to the 8-bit floats saturates or not as asked;
everything else rounds half to even.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.ir.types import Array, DType
from engine.ops.arrays import as_array

__all__ = ["convert", "is_narrow", "limits", "wide"]

#: The 8-bit floats with a mantissa, and their greatest finite values.
_GREATEST = {
    DType.FLOAT8E4M3FN: 448.0,
    DType.FLOAT8E4M3FNUZ: 240.0,
    DType.FLOAT8E5M2: 57344.0,
    DType.FLOAT8E5M2FNUZ: 57344.0,
}
_SUB_BYTE = {DType.INT4: (4, True), DType.UINT4: (4, False), DType.INT2: (2, True)}
_SUB_BYTE[DType.UINT2] = (2, False)


def is_narrow(dtype: DType) -> bool:
    """Whether arithmetic on this type is done in a wider one and rounded back."""
    return dtype in _SUB_BYTE or (dtype.is_float and dtype.nbytes < 4)


def wide(dtype: DType) -> DType:
    """The type in which arithmetic on ``dtype`` is done."""
    if dtype in _SUB_BYTE:
        return DType.INT8 if _SUB_BYTE[dtype][1] else DType.UINT8
    return DType.FLOAT32 if is_narrow(dtype) else dtype


def limits(dtype: DType) -> tuple[int, int]:
    """The least and the greatest value of an integer type."""
    if dtype in _SUB_BYTE:
        bits, signed = _SUB_BYTE[dtype]
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    info = np.iinfo(dtype.numpy)
    return int(info.min), int(info.max)


def _float_to_integer(array: Array, dtype: DType) -> Array:
    if dtype in _SUB_BYTE:
        return _wrap(_float_to_integer(array, DType.INT64), dtype)
    low, high = limits(dtype)
    values = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    target = dtype.numpy
    with np.errstate(invalid="ignore"):
        result: Array = np.trunc(values).astype(target)
    # `high + 1` is a power of two and thus exact in every float type, unlike `high`.
    result = np.where(values >= float(high + 1), np.array(high, target), result)
    result = np.where(values <= float(low), np.array(low, target), result)
    return np.where(np.isnan(values), np.array(0, target), result)


def _wrap(array: Array, dtype: DType) -> Array:
    """Integers reduced to the low bits of a type that takes less than a byte."""
    bits, signed = _SUB_BYTE[dtype]
    values = array.astype(np.int64) & ((1 << bits) - 1)
    if signed:
        values = np.where(values >= 1 << bits - 1, values - (1 << bits), values)
    result: Array = values.astype(np.int8 if signed else np.uint8).astype(dtype.numpy)
    return result


def _to_float8(array: Array, dtype: DType, saturate: bool) -> Array:
    values = array.astype(np.float32)
    if saturate:
        greatest = _GREATEST[dtype]
        values = np.where(np.isnan(values), values, np.clip(values, -greatest, greatest))
    elif dtype in (DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2FNUZ, DType.FLOAT8E4M3FN):
        values = np.where(np.isinf(values), np.float32("nan"), values)
    result: Array = values.astype(dtype.numpy)
    return result


def _to_exponent(array: Array, saturate: bool, round_mode: str) -> Array:
    """To FLOAT8E8M0, a bare power of two, rounded up, down or to the nearest (ties away)."""
    values = array.astype(np.float32)
    mantissa, exponent = np.frexp(np.abs(values))  # value = mantissa * 2**exponent, mantissa >= 0.5
    power = exponent.astype(np.int64) - 1
    if round_mode == "up":
        power = power + (mantissa > 0.5)
    elif round_mode == "nearest":
        power = power + (mantissa >= 0.75)
    elif round_mode != "down":
        raise ValueError(f"round_mode is {round_mode!r}, expected 'up', 'down' or 'nearest'")
    power = np.where(values == 0, -127, power)
    over = (power > 127) | np.isinf(values)
    codes = np.clip(power, -127, 127) + 127
    if not saturate:
        codes = np.where(over, 255, codes)
    codes = np.where(np.isnan(values), 255, codes)
    result: Array = codes.astype(np.uint8).view(DType.FLOAT8E8M0.numpy)
    return result


def convert(array: Array, dtype: DType, *, saturate: bool = True, round_mode: str = "up") -> Array:
    """The array as another element type (not string); the array itself when it already has it.

    ``saturate`` and ``round_mode`` matter for 8-bit floats only, the latter for FLOAT8E8M0.
    """
    array = as_array(array)
    if array.dtype == dtype.numpy:
        return array
    if DType.of(array.dtype).is_complex and not dtype.is_complex:
        array = array.real
    source = DType.of(array.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype is DType.BOOL:
            return as_array(wide_array(array) != 0)
        if dtype.is_integer and source.is_float:
            return _float_to_integer(array, dtype)
        if dtype in _SUB_BYTE:
            return _wrap(wide_array(array), dtype)
        if dtype in _GREATEST:
            return _to_float8(wide_array(array), dtype, saturate)
        if dtype is DType.FLOAT8E8M0:
            return _to_exponent(wide_array(array), saturate, round_mode)
        if is_narrow(dtype) and source not in (DType.FLOAT32, DType.FLOAT64):
            array = wide_array(array).astype(np.float32)
        result: Array = array.astype(dtype.numpy)
        return result


def wide_array(array: Array) -> Array:
    """The array in the type in which arithmetic on it is done."""
    source = DType.of(array.dtype)
    result: Array = array.astype(wide(source).numpy) if is_narrow(source) else array
    return result


def round_to(array: Array, dtype: DType) -> Array:
    """A result computed in the wide type, brought back to the narrow one."""
    result: Any = convert(array, dtype, saturate=False) if dtype in _GREATEST else None
    return convert(array, dtype) if result is None else result
