"""Matrix products and 1x1 convolutions by cuBLASLt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.cuda.cublaslt import MatmulCall, MatmulSizes
from engine.cuda.cublaslt_search import heuristics
from engine.cuda.library_epilogue import EpilogueForm, epilogue_form
from engine.errors import PlanCorruptError
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim
from engine.ir.types import DType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv, FusedMatMul
from engine.plan.device import Operand
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["CublasLtGemm"]

_DTYPES = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
_ACTIVATIONS = ("none", "relu", "gelu_tanh")


class _NoProductError(Exception):
    """Why a layer is no product that the library computes."""


class CublasLtGemm:
    """Serves FusedMatMul and 1x1 FusedConv in float16, bfloat16 and float32 (never TF32).

    Sums are float32. The epilogue is alpha, a bias per column, a residual, then nothing, ReLU or
    the tanh form of GELU: the library has no exact GELU. A choice is an algorithm of one version of
    the library for fixed sizes, so layers with symbolic sizes are refused.
    """

    name = "cublaslt.gemm"
    kinds = ("FusedMatMul", "FusedConv")

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """The library's own algorithms for the layer, its likeliest first."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "cuBLASLt needs an NVIDIA GPU")
        try:
            product = _Product.of(node)
        except _NoProductError as error:
            return Refusal(self.name, str(error))
        found = heuristics(product.call, product.sizes, target)
        if isinstance(found, str):
            return Refusal(self.name, found)
        return [self._candidate(product, item.to_json()) for item in found]

    def restore(self, node: Node, choice: Mapping[str, Any], target: Target) -> Candidate | None:
        """The candidate that a timing record names, made without a device.

        None when the record does not fit the layer.
        """
        if not isinstance(target, CudaTarget):
            return None
        try:
            candidate = self._candidate(_Product.of(node), choice)
        except (_NoProductError, PlanCorruptError, KeyError):
            return None
        return candidate

    def _candidate(self, product: _Product, choice: Mapping[str, Any]) -> Candidate:
        fields = {name: choice[name] for name in ("algorithm", "workspace_nbytes", "version")}
        call = dataclasses.replace(product.call, **fields)
        MatmulCall.from_json(call.to_json())  # a record may be damaged
        return Candidate(self.name, dict(choice), lambda b, _, layer: product.emit(b, call, layer))


@dataclasses.dataclass(frozen=True, slots=True)
class _Product:
    """A layer as one call: what is computed, over which sizes, from which values."""

    call: MatmulCall
    sizes: MatmulSizes
    operands: tuple[Value, ...]

    @staticmethod
    def of(node: Node) -> _Product:
        """The product that a layer is; _NoProductError says why it is none."""
        a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
        assert a is not None and b is not None
        dtype, result = a.tensor.dtype, y.tensor.dtype
        if dtype not in _DTYPES or b.tensor.dtype is not dtype or result not in (dtype, _DTYPES[2]):
            raise _NoProductError(
                f"found {dtype.value} times {b.tensor.dtype.value} to {result.value}, expected "
                "one of float16, bfloat16 and float32, to itself or to float32"
            )
        op = node.op
        assert isinstance(op, (FusedConv, FusedMatMul))
        form, bias, residual = _epilogue(op, node)
        if isinstance(op, FusedConv):
            transpose_b, shape = True, _convolution(op, a, b, y)
        else:
            transpose_b, shape = op.transpose_b, _matmul(op, a, b, y)
        rows, columns, inner, matrices, a_matrix, b_matrix = shape
        sizes = MatmulSizes(
            rows=rows,
            columns=columns,
            inner=inner,
            matrices=matrices,
            a_row=inner,
            b_row=inner if transpose_b else columns,
            residual_row=columns,
            y_row=columns,
            a_matrix=a_matrix,
            b_matrix=b_matrix,
            residual_matrix=rows * columns,
            y_matrix=rows * columns,
        )
        call = MatmulCall(
            dtype=dtype.value,
            result=result.value,
            transpose_b=transpose_b,
            alpha=form.alpha,
            bias=bias is not None,
            residual=residual is not None,
            activation=form.activation,
        )
        extra = tuple(value for value in (bias, residual) if value is not None)
        return _Product(call, sizes, (a, b, *extra, y))

    def emit(self, builder: ProgramBuilder, call: MatmulCall, layer: int) -> None:
        """The one step."""
        *read, written = (builder.slot(value) for value in self.operands)
        builder.library(
            "cublaslt",
            call.to_json(),
            [*(Operand(slot) for slot in read), Operand(written, writes=True)],
            self.sizes.to_list(),
            workspace_nbytes=call.workspace_nbytes,
            layer=layer,
        )


def _epilogue(
    op: FusedConv | FusedMatMul, node: Node
) -> tuple[EpilogueForm, Value | None, Value | None]:
    """The epilogue's form with its bias and its residual."""
    form = epilogue_form(op.epilogue)
    if form is None or form.activation not in _ACTIVATIONS or form.after:
        raise _NoProductError(f"cuBLASLt has no epilogue for {str(op.epilogue)[:200]}")
    if not math.isfinite(form.alpha):
        raise _NoProductError(f"the sums are scaled by {form.alpha}")
    by_kind: dict[str, Value] = {}
    for position in form.before:
        kind, value = op.kinds[position - 1], node.inputs[1 + position]
        assert value is not None
        if kind not in ("column", "full") or kind in by_kind:
            raise _NoProductError("cuBLASLt adds one bias per column and one residual at most")
        if value.tensor.dtype is not node.outputs[0].tensor.dtype:
            raise _NoProductError(
                f"the {kind} operand is {value.tensor.dtype.value}, cuBLASLt wants the result's "
                f"{node.outputs[0].tensor.dtype.value}"
            )
        by_kind[kind] = value
    return form, by_kind.get("column"), by_kind.get("full")


def _numbers(*dims: Dim) -> tuple[int, ...]:
    if not all(isinstance(dim, int) for dim in dims):
        raise _NoProductError("an algorithm holds for fixed sizes only, a size is symbolic")
    numbers = tuple(int(dim) for dim in dims)  # type: ignore[arg-type]
    if any(number < 1 for number in numbers):
        raise _NoProductError("a size is zero")
    return numbers


_Shape = tuple[int, int, int, int, int, int]


def _matmul(op: FusedMatMul, a: Value, b: Value, y: Value) -> _Shape:
    """Rows, columns, inner, matrices; elements between matrices of A and of B."""
    left, right = _numbers(*a.tensor.dims), _numbers(*b.tensor.dims)
    whole = _numbers(*y.tensor.dims)
    rows, inner, columns = left[-2], left[-1], whole[-1]
    if right[-1 if op.transpose_b else -2] != inner:
        raise _NoProductError("the inner sizes do not agree")
    batch = whole[:-2]
    if all(dim == 1 for dim in right[:-2]):
        return math.prod(left[:-1]), columns, inner, 1, 0, 0
    strides = []
    for dims, matrix in ((left[:-2], rows * inner), (right[:-2], inner * columns)):
        if all(dim == 1 for dim in dims):
            strides.append(0)
        elif dims == batch:
            strides.append(matrix)
        else:
            raise _NoProductError("some of the batch axes broadcast, others do not")
    return rows, columns, inner, math.prod(batch), strides[0], strides[1]


def _convolution(op: FusedConv, x: Value, filters: Value, y: Value) -> _Shape:
    """A 1x1 convolution over NHWC is a product: pixels are rows, filters are columns."""
    outputs, inputs, high, wide = _numbers(*filters.tensor.dims)
    if (high, wide) != (1, 1) or op.strides != (1, 1) or any(op.pads) or op.group != 1:
        raise _NoProductError("only a 1x1 convolution without stride, pads and groups is a product")
    if op.input_layout != "NHWC":
        raise _NoProductError("the input is not NHWC")
    pixels = math.prod(_numbers(*y.tensor.dims[:-1]))
    return pixels, outputs, inputs, 1, 0, 0


register(CublasLtGemm())
