"""Pooling, channel shuffle and local response normalisation over NHWC; made by the layout pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.operator import DOMAIN, Operator, find, register
from engine.ops.sliding import Windows

__all__ = ["ChannelShuffle", "Pool"]


@register("Pool", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class Pool(Operator):
    """Maximum or average over two-dimensional windows of an NHWC tensor.

    ``kind`` is "max" or "average"; ``pads`` are top, left, bottom, right. ``counts_padding`` says
    that an average divides by the whole window, padding included.
    """

    kind: str = "max"
    kernel: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    ceil: bool = False
    counts_padding: bool = False

    @property
    def windows(self) -> Windows:
        """The windows over height and width."""
        return Windows.of(
            self.kernel,
            strides=self.strides,
            dilations=self.dilations,
            pads=self.pads,
            ceil=self.ceil,
        )

    def output_shape(self, x: Sequence[Dim]) -> tuple[Dim, ...]:
        """The NHWC shape of the result."""
        return x[0], *self.windows.output(x[1:3]), x[3]

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        (x,) = operands
        assert x is not None
        return [TensorType(x.dtype, self.output_shape(x.tensor.dims))]

    def meaning(self, *inputs: Array) -> Array:
        fields = {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "pads": self.pads,
            "dilations": self.dilations,
            "ceil_mode": int(self.ceil),
        }
        if self.kind == "average":
            fields["count_include_pad"] = int(self.counts_padding)
        name = "MaxPool" if self.kind == "max" else "AveragePool"
        op = find("", name, 22).from_attributes(fields)
        planar = np.ascontiguousarray(inputs[0].transpose(0, 3, 1, 2))
        result = op.meaning(planar)
        first = result[0] if isinstance(result, tuple) else result
        return np.ascontiguousarray(as_array(first).transpose(0, 2, 3, 1))


@register("ChannelShuffle", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class ChannelShuffle(Operator):
    """Channels read as [groups, each] and written as [each, groups], over NCHW or NHWC."""

    groups: int = 1
    axis: int = 1

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        (x,) = operands
        assert x is not None
        channels = x.tensor.dims[self.axis]
        if isinstance(channels, int) and channels % self.groups:
            raise ValueError(f"{channels} channels do not make {self.groups} groups")
        return [x.tensor]

    def meaning(self, *inputs: Array) -> Array:
        x = inputs[0]
        channels = x.shape[self.axis]
        shape = (
            *x.shape[: self.axis],
            self.groups,
            channels // self.groups,
            *x.shape[self.axis + 1 :],
        )
        turned = np.swapaxes(x.reshape(shape), self.axis, self.axis + 1)
        return np.ascontiguousarray(turned).reshape(x.shape)


@register("ChannelNorm", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class ChannelNorm(Operator):
    """Local response normalisation across the last axis (ONNX LRN over NHWC)."""

    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0
    size: int = 1

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        (x,) = operands
        assert x is not None
        return [TensorType(DType.FLOAT32, x.tensor.dims)]

    def meaning(self, *inputs: Array) -> Array:
        x = inputs[0]
        before, after = (self.size - 1) // 2, self.size // 2
        squares = np.pad(x * x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
        total = np.zeros_like(x)
        for shift in range(self.size):
            total += squares[..., shift : shift + x.shape[-1]]
        return as_array(x / (self.bias + (self.alpha / self.size) * total) ** self.beta, x.dtype)
