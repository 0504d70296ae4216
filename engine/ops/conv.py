"""Convolutions: Conv, ConvInteger, QLinearConv.

Floats of 16 bits are multiplied and accumulated in float32 and rounded once; integers are
convolved exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array, DType, Operand, Shape, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.quantize import requantize
from engine.ops.shapes import agree, unknown_shape
from engine.ops.sliding import Windows, filled

__all__ = ["Conv", "ConvInteger", "QLinearConv", "conv_shape", "convolve"]

Ints = tuple[int, ...]

#: Elements of a patch matrix that are formed at once.
_CHUNK = 1 << 24


def convolve(x: Array, weight: Array, windows: Windows, group: int) -> Array:
    """The convolution [N, M, *out] of x [N, C, *spatial] with weight [M, C / group, *kernel].

    Windows become columns of a matrix ("im2col": Chellapilla, Puri, Simard, 2006), one matrix
    product per image and group does the rest. Depthwise convolutions add up scaled shifts.
    """
    batch, channels, *_ = x.shape
    filters = weight.shape[0]
    if channels != weight.shape[1] * group or filters % group:
        raise ValueError(
            f"{channels} channels and {filters} filters of {weight.shape[1]} channels do not "
            f"make {group} groups"
        )
    padded, counts = windows.pad(x, 0)
    result = np.zeros((batch, filters, *counts), np.result_type(x, weight))
    if result.size == 0:
        return result
    if weight.shape[1] == 1 and group > 1:
        _shift_and_add(padded, weight, windows, counts, result)
        return result
    depth = weight[0].size
    matrix = weight.reshape(group, filters // group, depth)
    columns = windows.view(padded, counts)
    whole = result.reshape(batch, group, filters // group, -1)
    rows = max(_CHUNK // max(group * depth * int(np.prod(counts[1:])), 1), 1)
    width = int(np.prod(counts[1:]))
    for image in range(batch):
        for start in range(0, counts[0], rows):
            index = (slice(None),) * (1 + len(counts)) + (slice(start, start + rows),)
            patches = columns[image][index].reshape(group, depth, -1)
            stop = start * width + patches.shape[2]
            np.matmul(matrix, patches, out=whole[image, :, :, start * width : stop])
    return result


def _shift_and_add(
    padded: Array, weight: Array, windows: Windows, counts: Ints, result: Array
) -> None:
    """A convolution of each channel on its own, added to ``result``."""
    filters, rank = weight.shape[0], len(counts)
    repeat = filters // padded.shape[1]
    taps = weight.reshape(filters, -1)
    for tap, index in enumerate(windows.offsets(counts)):
        shifted = padded[index]
        if repeat > 1:
            shifted = np.repeat(shifted, repeat, axis=1)
        result += shifted * taps[:, tap].reshape(filters, *(1,) * rank)


def conv_shape(
    x: TensorType,
    weight: TensorType,
    group: int,
    kernel_shape: Ints | None,
    *,
    strides: Ints | None,
    dilations: Ints | None,
    pads: Ints | None,
    auto_pad: str,
) -> Shape | None:
    """The shape of a convolution; None while the rank is unknown."""
    if x.shape is None:
        if weight.shape is None:
            return None
        return (*unknown_shape(1), weight.shape[0], *unknown_shape(len(weight.shape) - 2))
    filters: Dim = unknown_shape(1)[0]
    kernel: list[Dim] | None = list(kernel_shape) if kernel_shape else None
    if weight.shape is not None:
        if len(weight.shape) != len(x.shape) or len(x.shape) < 3:
            raise ValueError(f"x has rank {len(x.shape)} and the weight {len(weight.shape)}")
        filters = weight.shape[0]
        agree(x.shape[1], weight.shape[1] * group, name="the number of channels")
        found = weight.shape[2:]
        kernel = [agree(a, b, name="kernel") for a, b in zip(kernel or found, found, strict=True)]
    if kernel is None or not all(isinstance(item, int) for item in kernel):
        return (x.shape[0], filters, *unknown_shape(len(x.shape) - 2))
    windows = Windows.of(
        [item for item in kernel if isinstance(item, int)],
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
    )
    return (x.shape[0], filters, *windows.output(x.shape[2:]))


@dataclass(frozen=True, slots=True)
class _Convolution(Operator):
    """The attributes that every convolution has."""

    auto_pad: str = "NOTSET"
    dilations: Ints | None = None
    group: int = 1
    kernel_shape: Ints | None = None
    pads: Ints | None = None
    strides: Ints | None = None

    def windows(self, weight: Array) -> Windows:
        """The windows of a convolution with this weight [M, C / group, *kernel]."""
        kernel = weight.shape[2:]
        if filled(self.kernel_shape, len(kernel), 0, name="kernel_shape") not in (
            kernel,
            (0,) * len(kernel),
        ):
            raise ValueError(f"kernel_shape is {self.kernel_shape}, the weight's is {kernel}")
        return Windows.of(
            kernel,
            strides=self.strides,
            dilations=self.dilations,
            pads=self.pads,
            auto_pad=self.auto_pad,
        )

    def shape(self, x: TensorType, weight: TensorType) -> Shape | None:
        """The shape of the output."""
        return conv_shape(
            x,
            weight,
            self.group,
            self.kernel_shape,
            strides=self.strides,
            dilations=self.dilations,
            pads=self.pads,
            auto_pad=self.auto_pad,
        )


def _per_channel(values: Array, rank: int) -> Array:
    """One value per channel, to be broadcast over [N, C, *spatial]."""
    return values.reshape(-1, *(1,) * (rank - 2))


@register("Conv", since=1)
@dataclass(frozen=True, slots=True)
class Conv(_Convolution):
    """Convolution of x [N, C, *spatial] with weight [M, C / group, *kernel], bias [M]."""

    def infer(
        self, x: Operand, weight: Operand, bias: Operand | None = None, /
    ) -> list[TensorType]:
        """[N, M, *windows]."""
        return [TensorType(x.dtype, self.shape(tensor(x, "X"), tensor(weight, "W")))]

    def meaning(self, x: Array, weight: Array, bias: Array | None = None, /) -> Array:
        """One matrix product per image and group."""
        result = convolve(widened(x), widened(weight), self.windows(weight), self.group)
        if bias is not None:
            result += _per_channel(widened(bias), result.ndim)
        return rounded(result, x)


def _exact(x: Array, x_zero: Array | None, w: Array, w_zero: Array | None) -> tuple[Array, Array]:
    """Both operands less their zero points, in a float type that holds every sum exactly."""
    narrow = w[0].size * 2**16 <= 2**24 if w.size else True
    wide = np.float32 if narrow else np.float64
    left, right = x.astype(wide), w.astype(wide)
    if x_zero is not None:
        left = left - x_zero.astype(wide)
    if w_zero is not None:
        right = np.subtract(right, w_zero.astype(wide).reshape(-1, *(1,) * (w.ndim - 1)))
    return left, right


@register("ConvInteger", since=10)
@dataclass(frozen=True, slots=True)
class ConvInteger(_Convolution):
    """The int32 convolution of 8-bit integers less their zero points."""

    def infer(
        self,
        x: Operand,
        weight: Operand,
        x_zero: Operand | None = None,
        w_zero: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """[N, M, *windows], int32."""
        return [TensorType(DType.INT32, self.shape(tensor(x, "x"), tensor(weight, "w")))]

    def meaning(
        self,
        x: Array,
        weight: Array,
        x_zero: Array | None = None,
        w_zero: Array | None = None,
        /,
    ) -> Array:
        """A convolution in floats that hold every sum exactly; it wraps to 32 bits."""
        left, right = _exact(x, x_zero, weight, w_zero)
        exact = convolve(left, right, self.windows(weight), self.group)
        return exact.astype(np.int64).astype(np.int32)


@register("QLinearConv", since=10)
@dataclass(frozen=True, slots=True)
class QLinearConv(_Convolution):
    """A convolution of 8-bit integers, rescaled to 8 bits; the bias is int32."""

    def infer(
        self,
        x: Operand,
        x_scale: Operand,
        x_zero: Operand,
        weight: Operand,
        w_scale: Operand,
        w_zero: Operand,
        y_scale: Operand,
        y_zero: Operand,
        bias: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """[N, M, *windows] of the type of y's zero point."""
        return [TensorType(y_zero.dtype, self.shape(tensor(x, "x"), tensor(weight, "w")))]

    def meaning(
        self,
        x: Array,
        x_scale: Array,
        x_zero: Array,
        weight: Array,
        w_scale: Array,
        w_zero: Array,
        y_scale: Array,
        y_zero: Array,
        bias: Array | None = None,
        /,
    ) -> Array:
        """An exact convolution plus bias, times x_scale * w_scale / y_scale, rounded once."""
        left, right = _exact(x, x_zero, weight, w_zero)
        total = convolve(left, right, self.windows(weight), self.group).astype(np.int64)
        if bias is not None:
            total += _per_channel(bias.astype(np.int64), total.ndim)
        scale = widened(x_scale).reshape(()) * widened(w_scale).reshape(-1) / widened(y_scale)
        factor = _per_channel(scale, total.ndim)
        return requantize(total.astype(np.float32) * factor, y_zero)
