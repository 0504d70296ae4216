"""A matrix product as a kernel sees it: rows, columns, depth, and batch axes with their strides."""

from __future__ import annotations

from dataclasses import dataclass

from engine.ir.graph import Node
from engine.ir.sizes import Dim, minimum, product
from engine.ops.fused import FusedMatMul

__all__ = ["BatchAxis", "MatMulView"]


@dataclass(frozen=True, slots=True)
class BatchAxis:
    """An axis over which products are repeated.

    ``a_rows`` are the rows of A, ``b_elements`` the elements of B, from one product to the next; 0
    where the operand is the same for all.
    """

    size: Dim
    a_rows: Dim
    b_elements: Dim


@dataclass(frozen=True, slots=True)
class MatMulView:
    """``batches`` products of [m, k] and [k, n]; rows of the result are numbered through.

    Where B has no batch axes those of A are rows.
    """

    m: Dim
    n: Dim
    k: Dim
    axes: tuple[BatchAxis, ...]

    @property
    def batches(self) -> Dim:
        """How many products there are."""
        return product(axis.size for axis in self.axes)

    @staticmethod
    def of(node: Node) -> MatMulView:
        """The view of a FusedMatMul, for all sizes that its symbols may have."""
        op, a, b = node.op, node.inputs[0], node.inputs[1]
        assert isinstance(op, FusedMatMul) and a is not None and b is not None
        left, right, out = a.tensor.dims, b.tensor.dims, node.outputs[0].tensor.dims
        m, k, n = left[-2], left[-1], out[-1]
        if all(dim == 1 for dim in right[:-2]):
            return MatMulView(product(left[:-1]), n, k, ())
        batch = out[:-2]
        a_dims = (*(1,) * (len(batch) - len(left) + 2), *left[:-2])
        b_dims = (*(1,) * (len(batch) - len(right) + 2), *right[:-2])
        axes: list[BatchAxis] = []
        a_step, b_step = m, k * n
        for size, a_size, b_size in reversed(list(zip(batch, a_dims, b_dims))):
            if size != 1:
                axes.insert(
                    0, BatchAxis(size, _step(a_size, size, a_step), _step(b_size, size, b_step))
                )
            a_step, b_step = a_step * a_size, b_step * b_size
        return MatMulView(m, n, k, _merged(axes))


def _step(own: Dim, whole: Dim, step: Dim) -> Dim:
    """The step along an axis of an operand, 0 where it has one element there."""
    if own == 1:
        return 0
    if own == whole:
        return step
    return step * minimum(own - 1, 1)  # whether the axis is broadcast shows only at run time


def _merged(axes: list[BatchAxis]) -> tuple[BatchAxis, ...]:
    """Neighbouring axes that both operands walk through as one."""
    merged: list[BatchAxis] = []
    for axis in axes:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.a_rows == axis.a_rows * axis.size
            and last.b_elements == axis.b_elements * axis.size
        ):
            merged[-1] = BatchAxis(last.size * axis.size, axis.a_rows, axis.b_elements)
        else:
            merged.append(axis)
    return tuple(merged)
