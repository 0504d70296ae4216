"""Contractions with what is done to their result: convolution and matrix product with an epilogue.

Only the engine's passes make these. The epilogue is an expression over load 0, the result, and
load i, extra operand i, which is one value per column (output channel), per row, per element, or
one scalar (``kinds``). Sums are float32 whatever the operands are; the epilogue's type is that of
the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.types import Array, Dim, DType, Operand, TensorType, Type
from engine.ops.expression import Expression, evaluate, load
from engine.ops.operator import DOMAIN, Operator, register
from engine.ops.shapes import broadcast

__all__ = ["CONTRACTED", "FusedConv", "FusedMatMul"]

#: Element types of the operands of a contraction.
CONTRACTED = frozenset({DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16})
_SUM = load(0, DType.FLOAT32)


@register("FusedMatMul", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class FusedMatMul(Operator):
    """A [..., M, K] times B [..., K, N] (or [..., N, K] with ``transpose_b``), then an epilogue.

    "column" operands are [N] or broadcast to it, "full" ones have the shape of the result.
    """

    transpose_b: bool = False
    epilogue: Expression = _SUM
    kinds: tuple[str, ...] = ()

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        a, b = operands[0], operands[1]
        assert a is not None and b is not None
        left, right = a.tensor.dims, b.tensor.dims
        columns = right[-2] if self.transpose_b else right[-1]
        batch = broadcast(left[:-2], right[:-2])
        assert batch is not None
        return [TensorType(self.epilogue.dtype, (*batch, left[-2], columns))]

    def meaning(self, *inputs: Array) -> Array:
        a, b = (item.astype(np.float32, copy=False) for item in inputs[:2])
        sums = np.matmul(a, np.swapaxes(b, -1, -2) if self.transpose_b else b)
        return apply_epilogue(self.epilogue, self.kinds, sums, inputs[2:])


def apply_epilogue(
    epilogue: Expression, kinds: Sequence[str], sums: Array, operands: Sequence[Array]
) -> Array:
    """An epilogue over sums [..., rows, columns]."""
    shaped: list[Array] = []
    for kind, operand in zip(kinds, operands):
        if kind == "column":
            shaped.append(operand.reshape(-1))
        elif kind == "row":
            shaped.append(operand.reshape(*sums.shape[:-1], 1))
        elif kind == "scalar":
            shaped.append(operand.reshape(()))
        else:
            shaped.append(operand)
    result = evaluate(epilogue, [sums, *shaped])
    return np.broadcast_to(result, sums.shape).astype(epilogue.dtype.numpy, copy=False)


@register("FusedConv", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class FusedConv(Operator):
    """A two-dimensional convolution that writes NHWC, then an epilogue.

    The input is NCHW or NHWC (``input_layout``), the filters are [K, C / group, R, S]; ``pads`` are
    top, left, bottom, right. "column" operands are [K], "full" ones are NHWC as the result.
    """

    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    group: int = 1
    input_layout: str = "NHWC"
    epilogue: Expression = _SUM
    kinds: tuple[str, ...] = ()

    def image(self, shape: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """Images, height, width and channels of an input shape."""
        if self.input_layout == "NCHW":
            return shape[0], shape[2], shape[3], shape[1]
        return shape[0], shape[1], shape[2], shape[3]

    def output_shape(self, x: Sequence[Dim], w: Sequence[Dim]) -> tuple[Dim, ...]:
        """The NHWC shape of the result."""
        images, height, width, _ = self.image(x)
        sizes = []
        for axis, size in enumerate((height, width)):
            reach = (w[2 + axis] - 1) * self.dilations[axis] + 1
            padded = size + self.pads[axis] + self.pads[axis + 2]
            sizes.append((padded - reach) // self.strides[axis] + 1)
        return images, sizes[0], sizes[1], w[0]

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        x, w = operands[0], operands[1]
        assert x is not None and w is not None
        return [TensorType(self.epilogue.dtype, self.output_shape(x.tensor.dims, w.tensor.dims))]

    def meaning(self, *inputs: Array) -> Array:
        x, w = (item.astype(np.float32, copy=False) for item in inputs[:2])
        if self.input_layout == "NCHW":
            x = x.transpose(0, 2, 3, 1)
        top, left, bottom, right = self.pads
        if any(self.pads):
            x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        sums = self._sums(x, w)
        return apply_epilogue(self.epilogue, self.kinds, sums, inputs[2:])

    def _sums(self, x: Array, w: Array) -> Array:
        """The convolution of a padded NHWC image, one matrix product per filter tap and group."""
        outputs, inputs, high, wide = w.shape
        down, across = self.strides
        out_height = (x.shape[1] - (high - 1) * self.dilations[0] - 1) // down + 1
        out_width = (x.shape[2] - (wide - 1) * self.dilations[1] - 1) // across + 1
        sums = np.zeros((x.shape[0], out_height, out_width, outputs), x.dtype)
        per_group = outputs // self.group
        for r in range(high):
            for s in range(wide):
                row, column = r * self.dilations[0], s * self.dilations[1]
                tap = x[
                    :,
                    row : row + (out_height - 1) * down + 1 : down,
                    column : column + (out_width - 1) * across + 1 : across,
                ]
                if self.group == x.shape[3] and per_group == 1:
                    sums += tap * w[:, 0, r, s]
                    continue
                for g in range(self.group):
                    part = tap[..., g * inputs : (g + 1) * inputs].reshape(-1, inputs)
                    filters = w[g * per_group : (g + 1) * per_group, :, r, s]
                    # One large product of contiguous matrices: many small ones miss BLAS.
                    products = part @ np.ascontiguousarray(filters.T)
                    group = sums[..., g * per_group : (g + 1) * per_group]
                    group += products.reshape(group.shape)
        return sums
