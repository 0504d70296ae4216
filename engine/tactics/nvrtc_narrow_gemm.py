"""Products of many rows with a small matrix on a GPU by generated CUDA C."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from engine.cuda.narrow_gemm import FRAGMENT, NarrowGemm, NarrowTile
from engine.cuda.window_tiles import bandwidth
from engine.cuda.windows import FLOATS, Ending, Sizes, divides, widest
from engine.ir.graph import Node
from engine.ir.sizes import ceildiv, evaluate, minimum
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv, FusedMatMul
from engine.plan.device import Parameter, Pointer
from engine.plan.recipes import RecipeStep
from engine.tactics.nvrtc_depthwise import ending_operands
from engine.tactics.nvrtc_hopper_gemm import emit_plain
from engine.tactics.tactic import Candidate, Refusal, register
from engine.tactics.triton_gemm import Product, read_product
from engine.target import CudaTarget, Target

__all__ = ["NvrtcNarrowGemm"]

#: Below so many rows other kernels are as good; the matrix is read anew by every warp.
_LEAST_ROWS = 2048
#: What a thread may need, at a rough count, and be compiled without spilling.
_MOST_REGISTERS = 208
_OFFERED = 5
#: Seconds from memory to a busy multiprocessor, and until a warp has the matrix.
_TRIP, _BEGIN = 0.9e-6, 1.2e-6


class NvrtcNarrowGemm:
    """Serves FusedMatMul, and FusedConv with 1x1 filters, whose matrix fits into registers."""

    name = "nvrtc.narrow_gemm"
    kinds = ("FusedMatMul", "FusedConv")
    specialised = True

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile worth measuring."""
        if not isinstance(target, CudaTarget) or target.capability < (8, 0):
            return Refusal(self.name, "the target is no NVIDIA GPU of compute capability 8.0 or up")
        asked = read_product(node)
        reason = asked if isinstance(asked, str) else _reason(node, asked)
        if isinstance(asked, str) or reason:
            return Refusal(self.name, reason)
        rows = evaluate(asked.m, point)
        if rows < _LEAST_ROWS:
            return Refusal(self.name, f"it is for {_LEAST_ROWS} rows and more, not for {rows}")
        found = []
        for fragments, ahead in itertools.product((1, 2, 4), (True, False)):
            gemm = _kernel(node, asked, NarrowTile(fragments, 4, ahead), _widest_store(asked))
            if gemm.registers <= _MOST_REGISTERS:
                found.append((_seconds(gemm, rows, target), gemm.tile))
        if not found:
            size = f"{asked.k} x {asked.n}"
            return Refusal(self.name, f"a matrix of {size} does not fit into registers")
        found.sort(key=lambda item: (item[0], str(item[1])))
        return [_candidate(tile, target) for _, tile in found[:_OFFERED]]


def _reason(node: Node, asked: Product) -> str:
    """Why the kernel cannot compute this product, or nothing."""
    matrix = node.inputs[1]
    assert matrix is not None
    if matrix.tensor.dtype not in (DType.FLOAT16, DType.BFLOAT16):
        return f"the factors are {matrix.tensor.dtype.value}, expected float16 or bfloat16"
    values = [*(value for value in node.inputs[2:] if value is not None), *node.outputs]
    other = next((v for v in values if v.tensor.dtype not in FLOATS), None)
    if other is not None:
        return f"%{other.name} is {other.tensor.dtype.value}, expected a float"
    if asked.batches or matrix.constant is None:
        return "the matrix is not one constant"
    if not isinstance(asked.n, int) or not isinstance(asked.k, int):
        return "the matrix has a size that is not fixed"
    if asked.k % 8 or asked.n % 2 or min(asked.n, asked.k) < 8:
        return f"{asked.k} x {asked.n} is not made of 8 rows and of pairs of columns"
    return ""


def _widest_store(asked: Product) -> int:
    """Adjacent results of a thread: with few columns fewer, so that none are made in vain."""
    assert isinstance(asked.n, int)
    return widest(8 if asked.n > FRAGMENT else 4, [asked.n])


def _kernel(node: Node, asked: Product, tile: NarrowTile, vector: int) -> NarrowGemm:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, (FusedConv, FusedMatMul)) and x is not None
    assert isinstance(asked.n, int) and isinstance(asked.k, int)
    dtypes = tuple(value.tensor.dtype for value in node.inputs[2:] if value is not None)
    ending = Ending(op.epilogue, asked.kinds, dtypes, op.epilogue.dtype)
    return NarrowGemm(x.tensor.dtype, asked.k, asked.n, vector, tile, ending)


def _resident(gemm: NarrowGemm) -> int:
    """Blocks of a multiprocessor at a time, about."""
    registers = -(-gemm.registers // 8) * 8
    return max(1, min(2048, 65536 // registers) // (32 * gemm.tile.warps))


def _seconds(gemm: NarrowGemm, rows: int, target: CudaTarget) -> float:
    """Memory bounds the time where enough of it is on its way to each multiprocessor."""
    tile, processors = gemm.tile, target.multiprocessors
    warps = processors * _resident(gemm) * tile.warps
    read = gemm.depth * gemm.dtype.nbytes
    full = gemm.ending.kinds.count("full")
    moved = rows * (read + gemm.columns * gemm.ending.out.nbytes * (1 + full))
    units = -(-rows // (tile.fragments * FRAGMENT))
    uneven = max(1.0, -(-units // warps) * warps / units)
    flying = min(warps, units) * tile.fragments * FRAGMENT * read
    waiting = rows * read * _TRIP / flying * (1.0 if tile.ahead else 2.0)
    # Instructions of a warp for 16 rows: products, then two rows of each group of columns.
    issued = gemm.groups * (gemm.steps * gemm.vector + 8 * gemm.vector + 20)
    computing = rows / FRAGMENT * issued / (4 * processors * 1.6e9)
    bound = max(moved / bandwidth(target), waiting, computing)
    return 1.5e-6 + _BEGIN + bound * (1 + (uneven - 1) / 2) + 0.1 * waiting


def _candidate(tile: NarrowTile, target: CudaTarget) -> Candidate:
    return Candidate(
        NvrtcNarrowGemm.name,
        tile.to_json(),
        lambda builder, node, layer: _emit(builder, node, layer, tile, target),
        strided=True,
    )


def _emit(
    builder: ProgramBuilder, node: Node, layer: int, tile: NarrowTile, target: CudaTarget
) -> None:
    """One launch; slices whose rows lie at odd places are left to the plain kernel."""
    asked, x, matrix = read_product(node), node.inputs[0], node.inputs[1]
    assert isinstance(asked, Product) and x is not None and matrix is not None
    slot, offset, pixel = builder.location(x)
    out_slot, out_offset, out_pixel = builder.location(node.outputs[0])
    pointers, pixels, aligned = ending_operands(builder, node, asked.kinds)
    vector = widest(_widest_store(asked), [out_offset, out_pixel, *aligned])
    gemm = _kernel(node, asked, tile, vector)
    if vector < 2 or not divides(8, offset) or not divides(8, pixel):
        emit_plain(builder, node, layer, target)
        return
    if asked.transposed:
        weights = builder.slot(matrix)
    else:
        steps = [
            RecipeStep("reshape", (0,), {"shape": [gemm.depth, gemm.columns]}),
            RecipeStep("transpose", (1,), {"order": [1, 0]}),
        ]
        kind = TensorType(matrix.tensor.dtype, (gemm.columns, gemm.depth))
        weights = builder.weight(matrix, steps, kind)
    sizes = Sizes()
    sizes.add(rows=asked.m, x_pixel=pixel, y_pixel=out_pixel, **pixels)
    parameters: list[Parameter] = [
        Pointer(slot, offset),
        Pointer(weights),
        *pointers,
        Pointer(out_slot, out_offset, writes=True),
        *sizes.scalars,
    ]
    blocks = minimum(ceildiv(asked.m, tile.rows), target.multiprocessors * _resident(gemm))
    builder.launch(gemm.kernel(sizes), (blocks,), parameters, layer)


register(NvrtcNarrowGemm())
