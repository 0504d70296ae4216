"""Small products and convolutions on Hopper, split along k inside a cluster, with any epilogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.hopper_prelude import hopper_target
from engine.cuda.hopper_split import SplitTail, SplitTile, SplitWindow, split_kernel
from engine.cuda.hopper_split_tiles import SplitProblem, ranked_split_tiles
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, ceildiv, evaluate, modulo
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv
from engine.plan.device import Parameter, Pointer, Scalar, TensorMap
from engine.plan.recipes import RecipeStep
from engine.tactics.nvrtc_hopper_gemm import Place, emit_plain
from engine.tactics.tactic import Candidate, Refusal, register
from engine.tactics.triton_gemm import Product, read_product
from engine.target import CudaTarget, Target

__all__ = ["NvrtcHopperSplit"]

#: Rows of a result above which a layer fills the GPU without a split.
_MOST_ROWS = 3200
_FACTORS = (DType.FLOAT16, DType.BFLOAT16)


class NvrtcHopperSplit:
    """Serves FusedMatMul and FusedConv of few rows in 16-bit floats on Hopper."""

    name = "nvrtc.hopper_split"
    kinds = ("FusedMatMul", "FusedConv")

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile worth measuring."""
        hopper = hopper_target(target)
        if isinstance(hopper, str):
            return Refusal(self.name, hopper)
        read = _read(node)
        if isinstance(read, str):
            return Refusal(self.name, read)
        product, window = read
        rows = evaluate(product.m, point)
        if not 1 <= rows <= _MOST_ROWS:
            return Refusal(self.name, f"it is for 1 to {_MOST_ROWS} rows, not for {rows}")
        assert isinstance(product.n, int) and isinstance(product.k, int)
        extent = (1, 1, rows)
        if window is not None:
            images, height, width = node.outputs[0].tensor.dims[:-1]
            extent = (evaluate(images, point), evaluate(height, point), evaluate(width, point))
        tail = _packed(node, product)
        try:
            tail.function()
            tail.pointers()
        except ValueError as error:
            return Refusal(self.name, str(error))
        problem = SplitProblem(extent, product.n, product.k, tail, window)
        tiles = ranked_split_tiles(problem, hopper)
        if not tiles:
            return Refusal(
                self.name, "its tiles fill the GPU more than once, or k fits into no memory"
            )
        return [self._candidate(tile, hopper) for tile in tiles]

    def _candidate(self, tile: SplitTile, target: CudaTarget) -> Candidate:
        return Candidate(
            self.name,
            tile.to_json(),
            lambda builder, node, layer: _emit(builder, node, layer, tile, target),
            strided=True,
        )


def _read(node: Node) -> tuple[Product, SplitWindow | None] | str:
    """The product that a node is, its window if it is a true convolution, or why it is none."""
    asked = read_product(node)
    window = None
    if isinstance(asked, str) and isinstance(node.op, FusedConv):
        found = _convolution(node, node.op)
        if isinstance(found, str):
            return found
        asked, window = found
    if isinstance(asked, str):
        return asked
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    if a.tensor.dtype not in _FACTORS or b.tensor.dtype is not a.tensor.dtype:
        return f"the factors are {a.tensor.dtype.value}, expected float16 or bfloat16"
    if asked.batches:
        return "there is a matrix per batch"
    if not isinstance(asked.n, int) or not isinstance(asked.k, int):
        return "the matrix has a size that is not fixed"
    if not asked.transposed and b.constant is None:
        return "the matrix has no row per column of the result and is not constant"
    if min(asked.n, asked.k) < 1 or asked.k % 8:
        return f"rows of {asked.k} elements are no multiple of 16 bytes"
    return asked, window


def _convolution(node: Node, op: FusedConv) -> tuple[Product, SplitWindow] | str:
    """A convolution with more than single pixels as a product over taps and channels."""
    source, filters = node.inputs[0], node.inputs[1]
    assert source is not None and filters is not None
    if op.input_layout != "NHWC" or op.group != 1:
        return "the input is not NHWC in one group"
    if filters.constant is None:
        return "the filters are not constant, so they cannot be packed beforehand"
    outputs, channels, high, wide = (int(size) for size in filters.constant.shape)
    if source.tensor.dims[-1] != channels:
        return f"the image has not the {channels} channels of the filters"
    if max(op.strides) > 8:
        return "no tensor map has strides above 8"
    if "row" in op.kinds:
        return "it reads no operand with a value per row"
    window = SplitWindow(
        (high, wide),
        (op.strides[0], op.strides[1]),
        (op.dilations[0], op.dilations[1]),
        (op.pads[0], op.pads[1]),
    )
    images, height, width, _ = node.outputs[0].tensor.dims
    kinds = []
    for kind, value in zip(op.kinds, node.inputs[2:]):
        assert value is not None
        single = kind == "column" and outputs != 1 and all(d == 1 for d in value.tensor.dims)
        kinds.append("scalar" if single else kind)
    product = Product(images * height * width, outputs, channels, True, tuple(kinds))
    return product, window


def _tail(node: Node, kinds: tuple[str, ...], y: Place, fulls: Mapping[int, Place]) -> SplitTail:
    """The epilogue when operands and result lie in these places."""
    places = {0: y, **fulls}
    words = frozenset(
        place
        for place, where in places.items()
        if isinstance(where.pitch, int) and where.pitch % 2 == 0 and modulo(where.offset, 2) == 0
    )
    dtypes = tuple(value.tensor.dtype for value in node.inputs[2:] if value is not None)
    return SplitTail(node.op.epilogue, kinds, dtypes, words)  # type: ignore[attr-defined]


def _packed(node: Node, product: Product) -> SplitTail:
    """The same when every tensor is packed in memory of its own."""
    dtype = node.outputs[0].tensor.dtype
    here = Place(0, 0, product.n, dtype)
    fulls = {place: here for place, kind in enumerate(product.kinds, 1) if kind == "full"}
    return _tail(node, product.kinds, here, fulls)


def _place(builder: ProgramBuilder, value: Value | None) -> Place:
    assert value is not None
    return Place(*builder.location(value), value.tensor.dtype)


def _weights(builder: ProgramBuilder, value: Value, product: Product, taps: int) -> Place:
    """The matrix with a row per feature; filters have their channels last."""
    assert isinstance(product.n, int) and isinstance(product.k, int)
    n, length, dtype = product.n, product.k * taps, value.tensor.dtype
    if value.tensor.rank == 4 and taps > 1:
        steps = [RecipeStep("transpose", (0,), {"order": [0, 2, 3, 1]})]
        steps.append(RecipeStep("reshape", (1,), {"shape": [n, length]}))
        slot = builder.weight(value, steps, TensorType(dtype, (n, length)))
    elif product.transposed:
        slot = builder.slot(value)
    else:
        steps = [RecipeStep("reshape", (0,), {"shape": [product.k, n]})]
        steps.append(RecipeStep("transpose", (1,), {"order": [1, 0]}))
        slot = builder.weight(value, steps, TensorType(dtype, (n, length)))
    return Place(slot, 0, length, dtype)


def _images(place: Place, dims: Sequence[Dim], strides: tuple[int, int]) -> TensorMap:
    """The tensor map over images, rows, columns and channels that lie in a place."""
    images, height, width, channels = dims
    row = width * place.pitch
    return TensorMap(
        place.slot,
        place.offset,
        (images, height, width, channels),
        (height * row, row, place.pitch, 1),
        0,
        (1, *strides, 1),
    )


def _emit(
    builder: ProgramBuilder, node: Node, layer: int, tile: SplitTile, target: CudaTarget
) -> None:
    """One launch; of the plain kernel where the activations lie where no tensor map reaches."""
    read = _read(node)
    assert not isinstance(read, str)
    product, window = read
    source, matrix, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert source is not None and matrix is not None
    assert isinstance(product.n, int) and isinstance(product.k, int)
    x, y = _place(builder, source), _place(builder, result)
    if not x.boxable:
        emit_plain(builder, node, layer, target)
        return
    fulls = {
        place: _place(builder, value)
        for place, (kind, value) in enumerate(zip(product.kinds, node.inputs[2:]), 1)
        if kind == "full"
    }
    constant = matrix.constant is not None
    tail = _tail(node, product.kinds, y, fulls)
    kernel = split_kernel(
        source.tensor.dtype, tail, tile, product.k, constant=constant, window=window
    )
    taps = window.taps[0] * window.taps[1] if window else 1
    weights = _weights(builder, matrix, product, taps)
    extent: tuple[Dim, ...] = (product.m,)
    boxes = ceildiv(product.m, tile.box[2])
    pixels = x.map(product.m, product.k, 0)
    if window is not None:
        extent = result.tensor.dims[:-1]
        boxes = 1
        for size, part in zip(extent, tile.box):
            boxes = boxes * ceildiv(size, part)
        pixels = _images(x, source.tensor.dims, window.strides)
    parameters: list[Parameter] = [pixels, weights.map(product.n, product.k * taps, 1)]
    for place, value in enumerate(node.inputs[2:], 1):
        assert value is not None
        where = fulls.get(place)
        parameters.append(
            Pointer(builder.slot(value)) if where is None else Pointer(where.slot, where.offset)
        )
    parameters.append(Pointer(y.slot, y.offset, writes=True))
    parameters += [Scalar("i32", size) for size in (*extent, product.n, product.k)]
    parameters += [Scalar("i64", where.pitch) for where in (y, *fulls.values())]
    features = -(-product.n // (tile.features * tile.share)) * tile.share
    builder.launch(kernel, (features * tile.split, boxes), parameters, layer)


register(NvrtcHopperSplit())
