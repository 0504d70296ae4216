"""Col2Im: overlapping blocks added up into an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.sizes import floordiv, product
from engine.ir.types import Array, Dim, DType, Operand, TensorType
from engine.ops.contents import element_count, integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import unknown

__all__ = ["Col2Im"]


@register("Col2Im", since=18)
@dataclass(frozen=True, slots=True)
class Col2Im(Operator):
    """Columns [N, C * block, L] to images [N, C, *image]; what meets on a pixel adds up.

    ``pads`` (all begins, then all ends) are cut off, ``strides`` lie between blocks and
    ``dilations`` between the elements of one.
    """

    shape_inputs = (1, 2)
    dilations: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def infer(self, data: Operand, image: Operand, block: Operand, /) -> list[TensorType]:
        """Channels divided by the block's size, then the image's sizes."""
        given = tensor(data, "input")
        if given.dtype is DType.STRING:
            raise ValueError("the input holds strings, which cannot be added up; expected numbers")
        tensor(image, "image_shape")
        tensor(block, "block_shape")
        batch: Dim = unknown()
        channels: Dim = unknown()
        if given.shape is not None:
            if len(given.shape) != 3:
                raise ValueError(f"the input has rank {len(given.shape)}, expected 3")
            batch = given.shape[0]
            if block.sizes is not None:
                channels = floordiv(given.shape[1], product(block.sizes))
        sizes: Sequence[Dim] | None = image.sizes
        if sizes is None:
            count = element_count(image)
            if count is None:
                return [TensorType(given.dtype, None)]
            sizes = [unknown()] * count
        return [TensorType(given.dtype, (batch, channels, *sizes))]

    def meaning(self, data: Array, image: Array, block: Array, /) -> Array:
        """One strided addition per element of the block."""
        sizes, kernel = integers(image), integers(block)
        rank = len(sizes)
        dilations, strides = self.dilations or (1,) * rank, self.strides or (1,) * rank
        pads = self.pads or (0,) * (2 * rank)
        framed = [size + pads[i] + pads[rank + i] for i, size in enumerate(sizes)]
        counts = [
            (framed[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(rank)
        ]
        batch, channels = data.shape[0], data.shape[1] // math.prod(kernel)
        if math.prod(counts) != data.shape[2]:
            raise ValueError(f"{data.shape[2]} blocks are given, expected {math.prod(counts)}")
        columns = widened(data).reshape((batch, channels, *kernel, *counts))
        result = np.zeros((batch, channels, *framed), columns.dtype)
        for place in np.ndindex(*kernel):
            begins = [p * d for p, d in zip(place, dilations, strict=True)]
            starts = zip(begins, counts, strides, strict=True)
            index: tuple[Any, ...] = (..., *(slice(b, b + n * s, s) for b, n, s in starts))
            result[index] += columns[(slice(None), slice(None), *place)]
        inside: tuple[Any, ...] = (..., *(slice(pads[i], pads[i] + sizes[i]) for i in range(rank)))
        cut: Array = result[inside]
        return cut.astype(data.dtype, copy=False)
