"""Linear quantisation: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, QLinearMatMul.

Rounding is half to even, integers saturate, NaN becomes 0. Scales and zero points are one number,
one per index of an axis, or one per block of an axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.conversions import convert, limits
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.matmul import matmul_shape
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import agree, normalize_axis

__all__ = [
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearMatMul",
    "QuantizeLinear",
    "requantize",
    "spread",
]


def requantize(values: Array, zero: Array | None, dtype: DType | None = None) -> Array:
    """Quotients in float32 or float64 plus the zero point, as its type (or ``dtype``), saturated.

    Quotients are rounded when the type is an integer; ``values`` may be overwritten.
    """
    kind = DType.of(zero.dtype) if zero is not None else dtype
    if kind is None:
        raise ValueError("neither a zero point nor a type says what to quantise to")
    if kind.is_integer:
        values = np.rint(values)
    if zero is not None:
        values = values + zero.astype(values.dtype)
    if not kind.is_integer:
        return convert(values, kind)
    low, high = limits(kind)
    values = as_array(np.clip(values, low, high))
    values[np.isnan(values)] = 0
    return values.astype(np.int64 if kind.nbytes == 4 else np.int32).astype(kind.numpy)


def spread(parameter: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """A scale or zero point made to broadcast over ``shape``; ValueError when it does not fit."""
    if parameter.size == 1 and block == 0:
        return parameter.reshape(())
    axis = normalize_axis(axis, len(shape))
    if block == 0:
        if parameter.ndim != 1 or parameter.size != shape[axis]:
            raise ValueError(
                f"a scale or zero point has shape {list(parameter.shape)}, expected one number or "
                f"{shape[axis]} along axis {axis} of {list(shape)}"
            )
        return parameter.reshape(-1, *(1,) * (len(shape) - axis - 1))
    expected = list(shape)
    expected[axis] = -(-shape[axis] // block)
    if list(parameter.shape) != expected:
        raise ValueError(
            f"a scale or zero point has shape {list(parameter.shape)}, expected {expected} for "
            f"blocks of {block} along axis {axis} of {list(shape)}"
        )
    repeated = np.repeat(parameter, block, axis=axis)
    return repeated[(slice(None),) * axis + (slice(shape[axis]),)]


def _divide(x: Array, scale: Array, precision: DType | None) -> Array:
    """The quotient x / scale, rounded to ``precision`` (by default the type of the scale)."""
    if precision is None:
        precision = DType.of(scale.dtype)
        if precision is DType.FLOAT8E8M0:  # a bare power of two cannot hold a quotient
            precision = DType.of(x.dtype)
    if precision in (DType.FLOAT64, DType.INT32):
        return as_array(x.astype(np.float64) / scale.astype(np.float64))
    with np.errstate(all="ignore"):
        left = x if x.dtype == np.float32 else convert(x, precision).astype(np.float32)
        right = scale if scale.dtype == np.float32 else scale.astype(np.float32)
        quotient = as_array(left / right)
        return quotient.astype(precision.numpy).astype(np.float32, copy=False)


def _quantized(
    x: Array,
    scale: Array,
    zero: Array | None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> Array:
    kind = dtype_of_code(output_dtype) if output_dtype else DType.UINT8
    if zero is not None:
        if output_dtype and DType.of(zero.dtype) is not kind:
            raise ValueError(
                f"output_dtype is {kind.value}, the zero point's type {DType.of(zero.dtype).value}"
            )
        kind = DType.of(zero.dtype)
        zero = spread(zero, x.shape, axis, block)
    quotient = _divide(
        x,
        spread(scale, x.shape, axis, block),
        dtype_of_code(precision) if precision else None,
    )
    if kind.is_integer:
        return requantize(quotient, zero, kind)
    if zero is not None:
        quotient = quotient + zero.astype(np.float32)
    return convert(quotient, kind, saturate=bool(saturate))


def _quantized_type(
    x: Operand, scale: Operand, zero: Operand | None, output_dtype: int = 0
) -> list[TensorType]:
    tensor(scale, "y_scale")
    kind = dtype_of_code(output_dtype) if output_dtype else DType.UINT8
    return [TensorType(tensor(zero, "zero").dtype if zero else kind, tensor(x, "x").shape)]


@register("QuantizeLinear", since=10)
@dataclass(frozen=True, slots=True)
class QuantizeLinear10(Operator):
    """y = saturate(round(x / scale) + zero point), one scale for all."""

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in the type of the zero point."""
        return _quantized_type(x, scale, zero)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """The division is done in float32."""
        return _quantized(x, scale, zero)


@register("QuantizeLinear", since=13)
@dataclass(frozen=True, slots=True)
class QuantizeLinear13(Operator):
    """y = saturate(round(x / scale) + zero point), one scale for all or per index of an axis."""

    axis: int = 1

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in the type of the zero point."""
        return _quantized_type(x, scale, zero)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """The division is done in float32."""
        return _quantized(x, scale, zero, axis=self.axis)


@register("QuantizeLinear", since=19)
@dataclass(frozen=True, slots=True)
class QuantizeLinear19(Operator):
    """Quantisation that may also be to 8-bit floats, whose saturation can be switched off."""

    axis: int = 1
    saturate: int = 1

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in the type of the zero point."""
        return _quantized_type(x, scale, zero)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """The division is done in the type of the scale."""
        return _quantized(x, scale, zero, axis=self.axis, saturate=self.saturate)


@register("QuantizeLinear", since=21)
@dataclass(frozen=True, slots=True)
class QuantizeLinear21(Operator):
    """Quantisation with scales per tensor, per axis or per block."""

    axis: int = 1
    block_size: int = 0
    output_dtype: int = 0
    saturate: int = 1

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in the type of the zero point, else ``output_dtype``, else uint8."""
        return _quantized_type(x, scale, zero, self.output_dtype)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """The division is done in the type of the scale."""
        return _quantized(
            x,
            scale,
            zero,
            axis=self.axis,
            saturate=self.saturate,
            block=self.block_size,
            output_dtype=self.output_dtype,
        )


@register("QuantizeLinear", since=23)
@dataclass(frozen=True, slots=True)
class QuantizeLinear(Operator):
    """Quantisation with scales per tensor, axis or block, divided in a precision of its own."""

    axis: int = 1
    block_size: int = 0
    output_dtype: int = 0
    precision: int = 0
    saturate: int = 1

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in the type of the zero point, else ``output_dtype``, else uint8."""
        return _quantized_type(x, scale, zero, self.output_dtype)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """The division is done in ``precision``, else in the type of the scale."""
        return _quantized(
            x,
            scale,
            zero,
            axis=self.axis,
            saturate=self.saturate,
            block=self.block_size,
            output_dtype=self.output_dtype,
            precision=self.precision,
        )


def _dequantized(
    x: Array,
    scale: Array,
    zero: Array | None,
    *,
    axis: int = 1,
    block: int = 0,
    output_dtype: int = 0,
) -> Array:
    kind = dtype_of_code(output_dtype) if output_dtype else DType.of(scale.dtype)
    narrow = x.dtype.itemsize <= 2
    value = x.astype(np.float32 if narrow else np.float64)
    if zero is not None:
        value = value - spread(zero, x.shape, axis, block).astype(value.dtype)
    factor = spread(scale, x.shape, axis, block)
    product = value.astype(np.float32, copy=False) * widened(factor).astype(np.float32, copy=False)
    return convert(as_array(product), kind)


def _dequantized_type(x: Operand, scale: Operand, output_dtype: int = 0) -> list[TensorType]:
    kind = dtype_of_code(output_dtype) if output_dtype else tensor(scale, "x_scale").dtype
    return [TensorType(kind, tensor(x, "x").shape)]


@register("DequantizeLinear", since=10)
@dataclass(frozen=True, slots=True)
class DequantizeLinear10(Operator):
    """y = (x - zero point) * scale, one scale for all."""

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in the type of the scale."""
        return _dequantized_type(x, scale)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """An exact difference times the scale."""
        return _dequantized(x, scale, zero)


@register("DequantizeLinear", since=13)
@dataclass(frozen=True, slots=True)
class DequantizeLinear13(Operator):
    """y = (x - zero point) * scale, one scale for all or per index of an axis."""

    axis: int = 1

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in the type of the scale."""
        return _dequantized_type(x, scale)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """An exact difference times the scale."""
        return _dequantized(x, scale, zero, axis=self.axis)


@register("DequantizeLinear", since=21)
@dataclass(frozen=True, slots=True)
class DequantizeLinear21(Operator):
    """y = (x - zero point) * scale with scales per tensor, per axis or per block."""

    axis: int = 1
    block_size: int = 0

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in the type of the scale."""
        return _dequantized_type(x, scale)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """An exact difference times the scale."""
        return _dequantized(x, scale, zero, axis=self.axis, block=self.block_size)


@register("DequantizeLinear", since=23)
@dataclass(frozen=True, slots=True)
class DequantizeLinear(Operator):
    """y = (x - zero point) * scale, in the type of the scale or another one."""

    axis: int = 1
    block_size: int = 0
    output_dtype: int = 0

    def infer(self, x: Operand, scale: Operand, zero: Operand | None = None, /) -> list[TensorType]:
        """The shape of x in ``output_dtype``, else the type of the scale."""
        return _dequantized_type(x, scale, self.output_dtype)

    def meaning(self, x: Array, scale: Array, zero: Array | None = None, /) -> Array:
        """An exact difference times the scale, in float32, rounded once."""
        return _dequantized(
            x,
            scale,
            zero,
            axis=self.axis,
            block=self.block_size,
            output_dtype=self.output_dtype,
        )


@register("DynamicQuantizeLinear", since=11)
@dataclass(frozen=True, slots=True)
class DynamicQuantizeLinear(Operator):
    """x [...] float32 as uint8 with a scale and a zero point chosen for its range and 0."""

    def infer(self, x: Operand, /) -> list[TensorType]:
        """uint8 of the shape of x, a scalar scale, a scalar zero point."""
        return [
            TensorType(DType.UINT8, tensor(x, "x").shape),
            TensorType(x.dtype, ()),
            TensorType(DType.UINT8, ()),
        ]

    def meaning(self, x: Array, /) -> tuple[Array, ...]:
        """The scale is the range / 255, or 1 when the range is empty."""
        least = np.minimum(x.min(initial=0), x.dtype.type(0))
        greatest = np.maximum(x.max(initial=0), x.dtype.type(0))
        scale = as_array((greatest - least) / x.dtype.type(255))
        if greatest == least:
            scale = np.ones_like(scale)
        zero = as_array(np.rint(np.clip(-least / scale, 0, 255)).astype(np.uint8))
        return requantize(x / scale, zero), scale, zero


def _along_rows(parameter: Array) -> Array:
    """Numbers per row of the left operand."""
    return parameter[:, None] if parameter.ndim == 1 and parameter.size > 1 else parameter


@register("QLinearMatMul", since=10)
@dataclass(frozen=True, slots=True)
class QLinearMatMul(Operator):
    """The product of two quantised matrices, requantised.

    Scales and zero points are one number, or one per row of a and one per column of b.
    """

    def infer(
        self,
        a: Operand,
        a_scale: Operand,
        a_zero: Operand,
        b: Operand,
        b_scale: Operand,
        b_zero: Operand,
        y_scale: Operand,
        y_zero: Operand,
        /,
    ) -> list[TensorType]:
        """NumPy's matmul shape, of the type of y's zero point."""
        if a.shape and b.shape:
            agree(a.shape[-1], b.shape[-2] if len(b.shape) > 1 else b.shape[-1], name="K")
        return [TensorType(y_zero.dtype, matmul_shape(a.shape, b.shape))]

    def meaning(
        self,
        a: Array,
        a_scale: Array,
        a_zero: Array,
        b: Array,
        b_scale: Array,
        b_zero: Array,
        y_scale: Array,
        y_zero: Array,
        /,
    ) -> Array:
        """A product in float64, exact for integers, times a_scale * b_scale / y_scale."""
        left = a.astype(np.float64) - _along_rows(a_zero.astype(np.float64))
        right = b.astype(np.float64) - b_zero.astype(np.float64)
        product = as_array(np.matmul(left, right)).astype(np.float32)
        scale = _along_rows(widened(a_scale)) * widened(b_scale) / widened(y_scale)
        return requantize(as_array(product * scale), y_zero)
