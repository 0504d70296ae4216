"""Products of few rows on a GPU: decoders, classifiers and squeezed channels at small batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.cuda.gemv import MOST_ROWS, Gemv, gemv_kernel, ranked_gemvs
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, evaluate, modulo, product
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv, FusedMatMul
from engine.plan.device import Parameter, Pointer, Scalar
from engine.plan.recipes import RecipeStep
from engine.tactics.nvrtc_plain import epilogue_pointers, sum_store
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcGemv"]

_DTYPES = (DType.FLOAT16, DType.BFLOAT16)
_OFFERED = 8
#: Bytes per second that a device of the class reaches: only the order of candidates hangs on it.
_BANDWIDTH = {(8, 0): 1.4e12, (8, 6): 0.55e12, (8, 9): 0.28e12, (9, 0): 4.3e12, (10, 0): 7e12}


@dataclass(frozen=True, slots=True)
class _View:
    """A [m, k] times B, which has a row per column of the result, or gets one when it is packed."""

    m: Dim
    n: int
    k: int
    transposed: bool


class NvrtcGemv:
    """Serves FusedMatMul, and FusedConv with 1x1 filters, of up to 16 rows in 16-bit floats."""

    name = "nvrtc.gemv"
    kinds = ("FusedMatMul", "FusedConv")

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per cut worth measuring."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "the target is no CUDA device")
        if target.capability < (8, 0):
            return Refusal(self.name, "it needs compute capability 8.0")
        view = _view(node)
        if isinstance(view, str):
            return Refusal(self.name, view)
        rows = evaluate(view.m, point)
        if not 1 <= rows <= MOST_ROWS:
            return Refusal(self.name, f"it is for 1 to {MOST_ROWS} rows, not for {rows}")
        if not view.n or not view.k:
            return Refusal(self.name, "the product is empty")
        try:
            sum_store(node)
        except ValueError as error:
            return Refusal(self.name, str(error))
        bandwidth = _BANDWIDTH.get(target.capability, 1e12)
        cuts = ranked_gemvs(rows, view.n, view.k, target.multiprocessors, bandwidth)
        return [self._candidate(view, cut) for cut in cuts[:_OFFERED]]

    def _candidate(self, view: _View, cut: Gemv) -> Candidate:
        return Candidate(
            self.name,
            cut.to_json(),
            lambda builder, node, layer: _emit(builder, node, layer, view, cut),
            strided=True,
        )


def _view(node: Node) -> _View | str:
    """What a node multiplies, or why this is no product of rows with one matrix."""
    op, a, b = node.op, node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    if a.tensor.dtype not in _DTYPES or b.tensor.dtype is not a.tensor.dtype:
        return "the operands are not both float16 or both bfloat16"
    dims, left = b.tensor.dims, a.tensor.dims
    if any(not isinstance(dim, int) for dim in dims):
        return "the matrix has a size that is not fixed"
    whole = [int(dim) for dim in dims]  # type: ignore[arg-type]
    if isinstance(op, FusedConv):
        outputs, inputs, *taps = whole
        if op.group != 1 or taps != [1, 1] or set(op.strides) != {1} or any(op.pads):
            return "the filters are not 1x1 with stride 1 in one group"
        if op.input_layout != "NHWC":
            return "the input is not NHWC"
        return _View(product(left[:-1]), outputs, inputs, transposed=True)
    assert isinstance(op, FusedMatMul)
    if any(size != 1 for size in whole[:-2]):
        return "there is a matrix per batch"
    if not op.transpose_b and b.constant is None:
        return "the matrix has no row per column of the result and is not constant"
    n, k = whole[-2:] if op.transpose_b else whole[-1:-3:-1]
    return _View(product(left[:-1]), n, k, op.transpose_b)


def _weight(builder: ProgramBuilder, value: Value, view: _View) -> int:
    """The matrix with a row per column of the result."""
    if view.transposed:
        return builder.slot(value)
    steps = [RecipeStep("transpose", (0,), {"order": [1, 0]})]
    if value.tensor.rank > 2:
        steps.insert(0, RecipeStep("reshape", (0,), {"shape": [view.k, view.n]}))
        steps[1] = RecipeStep("transpose", (1,), {"order": [1, 0]})
    return builder.weight(value, steps, TensorType(value.tensor.dtype, (view.n, view.k)))


def _emit(builder: ProgramBuilder, node: Node, layer: int, view: _View, cut: Gemv) -> None:
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    slot, offset, pixel = builder.location(a)
    aligned = view.k % 8 == 0 and modulo(pixel, 8) == 0 and modulo(offset, 8) == 0
    kernel = gemv_kernel(
        a.tensor.dtype,
        sum_store(node),
        cut,
        constant=b.constant is not None,
        aligned_a=aligned,
        aligned_b=view.k % 8 == 0,
    )
    pointers, strides = epilogue_pointers(builder, node)
    parameters: list[Parameter] = [
        Pointer(slot, offset),
        Pointer(_weight(builder, b, view)),
        *pointers,
    ]
    blocks = -(-view.n // cut.columns)
    if cut.splits > 1:
        parts = builder.workspace(DType.FLOAT32, view.m * (view.n * cut.splits))
        parameters += [
            Pointer(parts, writes=True),
            Pointer(builder.zeros(blocks), writes=True),
        ]
    parameters += [Scalar("i32", size) for size in (view.m, view.n, view.k)]
    parameters += [Scalar("i64", pixel), *strides]
    builder.launch(kernel, (blocks, cut.splits), parameters, layer)


register(NvrtcGemv())
