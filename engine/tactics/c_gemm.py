"""Matrix products by generated C: blocked, B packed when it is a constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, evaluate, product
from engine.ir.types import DType, TensorType
from engine.kernels.blocked import Split
from engine.kernels.epilogue import Epilogue
from engine.kernels.gemm import Gemm, candidates
from engine.kernels.packing import packed_columns_size
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedMatMul
from engine.plan.recipes import RecipeStep
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["CGemm"]


class CGemm:
    """Serves FusedMatMul in float32."""

    name = "c.gemm"
    kinds = ("FusedMatMul",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile and order worth measuring."""
        op = node.op
        assert isinstance(op, FusedMatMul)
        a, b = node.inputs[0], node.inputs[1]
        assert a is not None and b is not None
        values = [value for value in node.inputs if value is not None] + node.outputs
        if any(value.tensor.dtype is not DType.FLOAT32 for value in values):
            return Refusal(self.name, "only float32 is generated")
        layout = _Layout(op, a, b, node.outputs[0])
        if layout.reason:
            return Refusal(self.name, layout.reason)
        m, n, k = (evaluate(dim, point) for dim in (layout.m, layout.n, layout.k))
        epilogue = Epilogue(op.epilogue, op.kinds)
        offered = candidates(m, n, k, packed=layout.packed, epilogue=epilogue)
        return [self._candidate(kernel, split, layout) for kernel, split in offered]

    def _candidate(self, kernel: Gemm, split: Split, layout: _Layout) -> Candidate:
        choice = {**kernel.to_json(), **split.to_json()}
        del choice["epilogue"], choice["packed"]
        return Candidate(
            self.name, choice, lambda b, node, layer: layout.emit(b, node, layer, kernel, split)
        )


class _Layout:
    """Sizes and strides of a product: batch axes merged into rows where B has none."""

    def __init__(self, op: FusedMatMul, a: Value, b: Value, y: Value) -> None:
        left, right, out = a.tensor.dims, b.tensor.dims, y.tensor.dims
        self.op, self.b = op, b
        self.k, self.n = left[-1], out[-1]
        self.packed = b.constant is not None and len(right) == 2
        self.outer: Dim = 1
        self.inner: Dim = 1
        self.m: Dim = left[-2]
        self.reason = ""
        self.a_outer: Dim = 0
        self.a_inner: Dim = 0
        self.b_outer: Dim = 0
        self.b_inner: Dim = 0
        if right[-1 if op.transpose_b else -2] != self.k:
            self.reason = "the inner sizes are not known to agree"
            return
        if all(dim == 1 for dim in right[:-2]):
            self.m = product(left[:-1])
            return
        batch = out[:-2]
        if len(batch) > 2 and (left[:-2] != batch or right[:-2] != batch):
            self.reason = "more than two batch axes that broadcast"
            return
        if left[:-2] == batch and right[:-2] == batch:
            self.inner = product(batch)
            self.a_inner, self.b_inner = self.m * self.k, self.k * self.n
            return
        self._batch(left[:-2], right[:-2], batch)

    def _batch(self, left: Sequence[Dim], right: Sequence[Dim], batch: Sequence[Dim]) -> None:
        """Up to two batch axes, each of which either operand may broadcast."""
        two = [1] * (2 - len(batch)) + list(batch)
        self.outer, self.inner = two
        a = [1] * (2 - len(left)) + list(left)
        b = [1] * (2 - len(right)) + list(right)
        for size, whole in (*zip(a, two), *zip(b, two)):
            if size not in (1, whole):
                self.reason = "batch axes whose equality is not known"
        matrix_a, matrix_b = self.m * self.k, self.k * self.n
        self.a_inner = 0 if a[1] == 1 else matrix_a
        self.a_outer = 0 if a[0] == 1 else matrix_a * a[1]
        self.b_inner = 0 if b[1] == 1 else matrix_b
        self.b_outer = 0 if b[0] == 1 else matrix_b * b[1]

    def emit(
        self, builder: ProgramBuilder, node: Node, layer: int, kernel: Gemm, split: Split
    ) -> None:
        """The one step: operands, then dimensions and strides as the kernel lists them."""
        a, b = node.inputs[0], node.inputs[1]
        assert a is not None and b is not None
        rows, columns = self.m, self.n
        if self.packed:
            width = kernel.tile.columns
            name = "rows" if self.op.transpose_b else "columns"
            elements = packed_columns_size(_number(self.k), _number(self.n), width)
            weight = builder.weight(
                b,
                [RecipeStep("pack", (0,), {"name": name, "numbers": [width]})],
                TensorType(DType.FLOAT32, (elements,)),
            )
        else:
            weight = builder.slot(b)
        operands: list[tuple[int, Dim]] = [(builder.slot(a), 0), (weight, 0)]
        b_row, b_column = (1, self.k) if self.op.transpose_b else (columns, 1)
        sizes: list[Dim] = [*split.sizes, self.outer, self.inner, rows, columns, self.k]
        sizes += [self.a_outer, self.a_inner, self.k, 1]
        sizes += [self.b_outer, self.b_inner, b_row, b_column]
        sizes += [rows * columns * self.inner, rows * columns, columns]
        for kind, value in zip(self.op.kinds, node.inputs[2:]):
            assert value is not None
            operands.append((builder.slot(value), 0))
            if kind == "full":
                sizes += [rows * columns * self.inner, rows * columns, columns]
            elif kind == "row":
                sizes += [rows * self.inner, rows, 1]
            else:
                sizes += [0, 0, 0]
        operands.append((builder.slot(node.outputs[0]), 0))
        builder.kernel(kernel, operands, sizes, layer)


def _number(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim


register(CGemm())
