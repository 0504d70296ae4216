"""ConvTranspose: the transpose of a convolution as a linear map ("deconvolution")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.sizes import Dim, maximum
from engine.ir.types import Array, Operand, Shape, TensorType
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import agree, unknown_shape
from engine.ops.sliding import AUTO_PADS, filled

__all__ = ["ConvTranspose"]

Ints = tuple[int, ...]


def _spread(x: Array, weight: Array, group: int, strides: Ints, dilations: Ints) -> Array:
    """Every element of x [N, C, *in] times its kernel, added up: [N, M, *full]."""
    batch, channels, *sizes = x.shape
    kernel = weight.shape[2:]
    filters = weight.shape[1] * group
    full = [
        max((n - 1) * s + (k - 1) * d + 1, 0) if n else 0
        for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    result = np.zeros((batch, filters, *full), np.result_type(x, weight))
    if x.size == 0:
        return result
    matrix = weight.reshape(group, channels // group, -1).transpose(0, 2, 1)
    columns = np.matmul(matrix, x.reshape(batch, group, channels // group, -1))
    columns = columns.reshape(batch, filters, *kernel, *sizes)
    for place in np.ndindex(*kernel):
        target: tuple[Any, ...] = (
            ...,
            *(
                slice(p * d, p * d + (n - 1) * s + 1, s)
                for p, d, n, s in zip(place, dilations, sizes, strides, strict=True)
            ),
        )
        result[target] += columns[(slice(None), slice(None), *place)]
    return result


@register("ConvTranspose", since=1)
@dataclass(frozen=True, slots=True)
class ConvTranspose(Operator):
    """Transposed convolution of x [N, C, *spatial], weight [C, M / group, *kernel], bias [M]."""

    auto_pad: str = "NOTSET"
    dilations: Ints | None = None
    group: int = 1
    kernel_shape: Ints | None = None
    output_padding: Ints | None = None
    output_shape: Ints | None = None
    pads: Ints | None = None
    strides: Ints | None = None

    def _sizes(self, spatial: Sequence[Dim], kernel: Sequence[int]) -> tuple[Shape, Shape]:
        """The sizes of the output and how much is cut off before each axis."""
        rank = len(kernel)
        auto_pad = self.auto_pad or "NOTSET"
        if auto_pad not in AUTO_PADS:
            raise ValueError(f"auto_pad is {auto_pad!r}, expected one of {', '.join(AUTO_PADS)}")
        strides = filled(self.strides, rank, 1, name="strides")
        dilations = filled(self.dilations, rank, 1, name="dilations")
        extra = filled(self.output_padding, rank, 0, name="output_padding")
        pads = filled(self.pads, 2 * rank, 0, name="pads")
        # Some exporters give the batch and the channels as well.
        given = self.output_shape[-rank:] if self.output_shape else None
        sizes: list[Dim] = []
        cuts: list[Dim] = []
        for axis, size in enumerate(spatial):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            full = (size - 1) * strides[axis] + reach + extra[axis]
            if given is None and not auto_pad.startswith("SAME"):
                low, high = (pads[axis], pads[rank + axis]) if auto_pad == "NOTSET" else (0, 0)
                sizes.append(full - low - high)
                cuts.append(low)
                continue
            target = size * strides[axis] if given is None else given[axis]
            total = maximum(full - target, 0)
            sizes.append(target)
            cuts.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
        if any(isinstance(item, int) and item < 0 for item in sizes):
            raise ValueError(f"the output would have the sizes {[str(item) for item in sizes]}")
        return tuple(sizes), tuple(cuts)

    def infer(
        self, x: Operand, weight: Operand, bias: Operand | None = None, /
    ) -> list[TensorType]:
        """[N, M, strides * (in - 1) + output padding + kernel - pads]."""
        shape, filters = tensor(x, "X").shape, tensor(weight, "W").shape
        if shape is None or filters is None:
            known = shape or filters
            return [TensorType(x.dtype, None if known is None else unknown_shape(len(known)))]
        if len(shape) != len(filters) or len(shape) < 3:
            raise ValueError(f"x has rank {len(shape)} and the weight {len(filters)}")
        agree(shape[1], filters[0], name="the number of channels")
        kernel = [k for k in (self.kernel_shape or filters[2:]) if isinstance(k, int)]
        lead = (shape[0], filters[1] * self.group)
        if len(kernel) != len(shape) - 2:
            return [TensorType(x.dtype, (*lead, *unknown_shape(len(shape) - 2)))]
        return [TensorType(x.dtype, (*lead, *self._sizes(shape[2:], kernel)[0]))]

    def meaning(self, x: Array, weight: Array, bias: Array | None = None, /) -> Array:
        """One matrix product, then one strided addition per place of the kernel."""
        kernel = weight.shape[2:]
        rank = len(kernel)
        if x.shape[1] != weight.shape[0] or x.shape[1] % self.group:
            raise ValueError(
                f"{x.shape[1]} channels and a weight for {weight.shape[0]} in {self.group} groups"
            )
        full = _spread(
            widened(x),
            widened(weight),
            self.group,
            filled(self.strides, rank, 1, name="strides"),
            filled(self.dilations, rank, 1, name="dilations"),
        )
        sizes, cuts = self._sizes(x.shape[2:], kernel)
        targets = [int(n) for n in sizes if isinstance(n, int)]
        starts = [int(n) for n in cuts if isinstance(n, int)]
        result = np.zeros((*full.shape[:2], *targets), full.dtype)
        inside: tuple[Any, ...] = (
            ...,
            *(slice(a, a + n) for a, n in zip(starts, targets, strict=True)),
        )
        kept = full[inside]
        result[tuple(slice(n) for n in kept.shape)] = kept
        if bias is not None:
            result += widened(bias).reshape(-1, *(1,) * rank)
        return rounded(result, x)
