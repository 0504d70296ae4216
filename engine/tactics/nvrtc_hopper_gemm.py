"""Matrix products and 1x1 convolutions on Hopper by generated CUDA C, with any epilogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.cuda.hopper_gemm import FACTORS, HopperTail, HopperTile, hopper_kernel
from engine.cuda.hopper_gemm_tiles import HopperProblem, ranked_hopper_tiles
from engine.cuda.hopper_prelude import hopper_target
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, ceildiv, evaluate, minimum, modulo, symbols
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.plan.device import Parameter, Pointer, Scalar, TensorMap
from engine.plan.recipes import RecipeStep
from engine.tactics.nvrtc_plain import NvrtcPlain
from engine.tactics.tactic import Candidate, Refusal, register
from engine.tactics.triton_gemm import Product, read_product
from engine.target import CudaTarget, Target

__all__ = ["NvrtcHopperGemm", "Place", "emit_plain", "tail_at"]

#: Below this many rows most of every product is thrown away.
_LEAST_ROWS = 33


class NvrtcHopperGemm:
    """Serves FusedMatMul, and FusedConv with 1x1 filters, in 16-bit floats on Hopper."""

    name = "nvrtc.hopper_gemm"
    kinds = ("FusedMatMul", "FusedConv")

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile worth measuring."""
        hopper = hopper_target(target)
        if isinstance(hopper, str):
            return Refusal(self.name, hopper)
        asked = read_product(node)
        reason = asked if isinstance(asked, str) else _reason(node, asked)
        if isinstance(asked, str) or reason:
            return Refusal(self.name, reason)
        m, n, k = (evaluate(dim, point) for dim in (asked.m, asked.n, asked.k))
        if m < _LEAST_ROWS:
            return Refusal(self.name, f"it is for {_LEAST_ROWS} rows and more, not for {m}")
        packed = _packed(node, asked)
        try:
            packed.function()
            packed.pointers()
        except ValueError as error:
            return Refusal(self.name, str(error))
        tiles = ranked_hopper_tiles(HopperProblem(m, n, k, packed), hopper)
        return [self._candidate(tile, hopper) for tile in tiles]

    def _candidate(self, tile: HopperTile, target: CudaTarget) -> Candidate:
        return Candidate(
            self.name,
            tile.to_json(),
            lambda builder, node, layer: _emit(builder, node, layer, tile, target),
            strided=True,
        )


def _reason(node: Node, asked: Product) -> str:
    """Why the kernel cannot compute this product, or nothing."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    if a.tensor.dtype not in FACTORS:
        return f"the factors are {a.tensor.dtype.value}, expected float16 or bfloat16"
    if asked.batches:
        return "there is a matrix per batch"
    if not isinstance(asked.n, int) or not isinstance(asked.k, int):
        return "the matrix has a size that is not fixed"
    if not asked.transposed and b.constant is None:
        return "the matrix has no row per column of the result and is not constant"
    if min(asked.n, asked.k) < 1:
        return "the product is empty"
    if asked.k % 8:
        return f"rows of {asked.k} elements are no multiple of 16 bytes"
    return ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix lies: slot, offset and pitch in elements, and its element type."""

    slot: int
    offset: Dim
    pitch: Dim
    dtype: DType

    @property
    def boxable(self) -> bool:
        """Whether a tensor map of boxes of 64 elements can describe it."""
        if self.dtype not in FACTORS or not isinstance(self.pitch, int):
            return False
        return self.pitch % 8 == 0 and modulo(self.offset, 8) == 0

    def map(self, rows: Dim, columns: Dim, form: int, *, writes: bool = False) -> TensorMap:
        """The tensor map over it."""
        return TensorMap(
            self.slot, self.offset, (rows, columns), (self.pitch, 1), form, writes=writes
        )


def tail_at(node: Node, kinds: tuple[str, ...], y: Place, fulls: Mapping[int, Place]) -> HopperTail:
    """How operands and result are passed when they lie in these places."""
    store = "elements"
    if y.dtype in FACTORS:
        store = "boxes" if y.boxable else "rows"
    staged = next((place for place, where in fulls.items() if where.boxable), 0)
    dtypes = tuple(value.tensor.dtype for value in node.inputs[2:] if value is not None)
    epilogue = node.op.epilogue  # type: ignore[attr-defined]
    return HopperTail(epilogue, kinds, dtypes, store, staged if store == "boxes" else 0)


def _packed(node: Node, asked: Product) -> HopperTail:
    """The same when every tensor is packed in memory of its own."""
    return tail_at(
        node,
        asked.kinds,
        Place(0, 0, asked.n, node.outputs[0].tensor.dtype),
        {
            place: Place(0, 0, asked.n, value.tensor.dtype)
            for place, (kind, value) in enumerate(zip(asked.kinds, node.inputs[2:]), 1)
            if kind == "full" and value is not None
        },
    )


def _place(builder: ProgramBuilder, value: Value | None) -> Place:
    assert value is not None
    return Place(*builder.location(value), value.tensor.dtype)


def _matrix(builder: ProgramBuilder, value: Value, asked: Product) -> int:
    """The slot of the matrix with a row per column of the result."""
    if asked.transposed:
        return builder.slot(value)
    assert isinstance(asked.n, int) and isinstance(asked.k, int)
    steps = [RecipeStep("reshape", (0,), {"shape": [asked.k, asked.n]})]
    steps.append(RecipeStep("transpose", (1,), {"order": [1, 0]}))
    return builder.weight(value, steps, TensorType(value.tensor.dtype, (asked.n, asked.k)))


def _emit(
    builder: ProgramBuilder, node: Node, layer: int, tile: HopperTile, target: CudaTarget
) -> None:
    """One launch.

    Where the slice that holds A begins or has rows at no multiple of 16 bytes, which no tensor map
    describes, the plain kernel of the same source computes the layer.
    """
    asked = read_product(node)
    assert isinstance(asked, Product)
    matrix = node.inputs[1]
    assert matrix is not None
    a, y = _place(builder, node.inputs[0]), _place(builder, node.outputs[0])
    if not a.boxable:
        emit_plain(builder, node, layer, target)
        return
    fulls = {
        place: _place(builder, value)
        for place, (kind, value) in enumerate(zip(asked.kinds, node.inputs[2:]), 1)
        if kind == "full"
    }
    tail = tail_at(node, asked.kinds, y, fulls)
    kernel = hopper_kernel(matrix.tensor.dtype, tail, tile, constant=matrix.constant is not None)
    b = Place(_matrix(builder, matrix, asked), 0, asked.k, matrix.tensor.dtype)
    parameters: list[Parameter] = [a.map(asked.m, asked.k, 0), b.map(asked.n, asked.k, 1)]
    if tail.store == "boxes":
        parameters.append(y.map(asked.m, asked.n, 2, writes=True))
    if tail.staged:
        parameters.append(fulls[tail.staged].map(asked.m, asked.n, len(parameters)))
    direct = {place: where for place, where in fulls.items() if place != tail.staged}
    for place, value in enumerate(node.inputs[2:], 1):
        if place in direct:
            parameters.append(Pointer(direct[place].slot, direct[place].offset))
        elif place not in fulls:
            assert value is not None
            parameters.append(Pointer(builder.slot(value)))
    strides = [where.pitch for where in direct.values()]
    if tail.store != "boxes":
        parameters.append(Pointer(y.slot, y.offset, writes=True))
        strides.insert(0, y.pitch)
    parameters += [Scalar("i32", size) for size in (asked.m, asked.n, asked.k)]
    parameters += [Scalar("i64", pitch) for pitch in strides]
    units = ceildiv(asked.m, tile.rows * tile.cluster) * ceildiv(asked.n, tile.columns)
    programs = tile.blocks * target.multiprocessors // tile.cluster
    builder.launch(kernel, (minimum(units, programs) * tile.cluster,), parameters, layer)


def emit_plain(builder: ProgramBuilder, node: Node, layer: int, target: CudaTarget) -> None:
    """What serves a layer whose tensors lie where no tensor map describes them."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    names = {name for value in values for dim in value.tensor.dims for name in symbols(dim)}
    found = NvrtcPlain().offers(node, dict.fromkeys(names, 1 << 10), target)
    assert not isinstance(found, Refusal), found.reason
    found[0].emit(builder, node, layer)


register(NvrtcHopperGemm())
