"""Matrix products: MatMul, Gemm and MatMulInteger.

Half and bfloat16 are multiplied and accumulated in float32 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType, Operand, Shape, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import agree, broadcast, unknown_shape

__all__ = ["Gemm", "MatMul", "MatMulInteger", "matmul_shape"]


def matmul_shape(left: Shape | None, right: Shape | None) -> Shape | None:
    """The shape of ``numpy.matmul``; ValueError when the inner sizes differ."""
    if left is None or right is None:
        return None
    if not left or not right:
        raise ValueError("a matrix product has a scalar operand, expected rank 1 or more")
    rows = left[-2:-1]
    columns = right[-1:] if len(right) > 1 else ()
    agree(left[-1], right[-2] if len(right) > 1 else right[-1], name="the inner size")
    batch = broadcast(left[:-2], right[:-2]) or ()
    return (*batch, *rows, *columns)


@register("MatMul", since=1)
@dataclass(frozen=True, slots=True)
class MatMul(Operator):
    """The matrix product over the last two axes, the others broadcast."""

    def infer(self, left: Operand, right: Operand, /) -> list[TensorType]:
        """NumPy's matmul shape."""
        a, b = tensor(left, "A"), tensor(right, "B")
        return [TensorType(a.dtype, matmul_shape(a.shape, b.shape))]

    def meaning(self, left: Array, right: Array, /) -> Array:
        """NumPy's matmul."""
        product: Array = as_array(np.matmul(widened(left), widened(right)))
        return product.astype(left.dtype, copy=False)


@register("Gemm", since=7)
@dataclass(frozen=True, slots=True)
class Gemm(Operator):
    """``alpha * A' @ B' + beta * C``: A [M, K] and B [K, N], or transposed; C broadcast."""

    alpha: float = 1.0
    beta: float = 1.0
    transA: int = 0  # noqa: N815 (ONNX's name)
    transB: int = 0  # noqa: N815 (ONNX's name)

    def infer(
        self, left: Operand, right: Operand, bias: Operand | None = None, /
    ) -> list[TensorType]:
        """A matrix [M, N]."""
        a, b = tensor(left, "A"), tensor(right, "B")
        for item, name in ((a, "A"), (b, "B")):
            if item.shape is not None and len(item.shape) != 2:
                raise ValueError(f"{name} has rank {len(item.shape)}, expected a matrix")
        rows, columns = unknown_shape(2)
        if a.shape is not None:
            rows = a.shape[1 if self.transA else 0]
        if b.shape is not None:
            columns = b.shape[0 if self.transB else 1]
        if a.shape is not None and b.shape is not None:
            agree(a.shape[0 if self.transA else 1], b.shape[1 if self.transB else 0], name="K")
        return [TensorType(a.dtype, (rows, columns))]

    def meaning(self, left: Array, right: Array, bias: Array | None = None, /) -> Array:
        """NumPy's matmul; factors of 1 are left out."""
        a = widened(left.T if self.transA else left)
        b = widened(right.T if self.transB else right)
        result: Array = np.matmul(a, b)
        if self.alpha != 1:
            result = result * self.alpha
        if bias is not None and self.beta != 0:
            scaled = widened(bias) if self.beta == 1 else widened(bias) * self.beta
            result = result + np.broadcast_to(scaled, result.shape)
        return result.astype(left.dtype, copy=False)


@register("MatMulInteger", since=10)
@dataclass(frozen=True, slots=True)
class MatMulInteger(Operator):
    """The int32 matrix product of 8-bit integers less their zero points.

    A zero point is a scalar, one per row of A, or one per column of B.
    """

    def infer(
        self,
        left: Operand,
        right: Operand,
        left_zero: Operand | None = None,
        right_zero: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """NumPy's matmul shape, int32."""
        a, b = tensor(left, "A"), tensor(right, "B")
        return [TensorType(DType.INT32, matmul_shape(a.shape, b.shape))]

    def meaning(
        self,
        left: Array,
        right: Array,
        left_zero: Array | None = None,
        right_zero: Array | None = None,
        /,
    ) -> Array:
        """A product in float64, exact as every sum stays below 2**53; it wraps to 32 bits."""
        a, b = left.astype(np.float64), right.astype(np.float64)
        if left_zero is not None:
            a -= left_zero[:, None] if left_zero.ndim == 1 and left_zero.size > 1 else left_zero
        if right_zero is not None:
            b -= right_zero
        return as_array(np.matmul(a, b)).astype(np.int64).astype(np.int32)
