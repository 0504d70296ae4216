"""Contractions and attention by plain CUDA C: what serves on a GPU where nothing better does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.cuda.contraction import SumStore
from engine.cuda.kernel import DeviceKernel
from engine.cuda.plain import (
    TILES,
    ConvForm,
    Tile,
    direct_convolution,
    tiled_convolution,
    tiled_matmul,
)
from engine.cuda.plain_attention import plain_attention, query_rows
from engine.ir.graph import Node, Value
from engine.ir.sizes import ceildiv, evaluate, product
from engine.ir.types import TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import CONTRACTED, FusedConv, FusedMatMul
from engine.ops.fused_attention import FusedAttention
from engine.plan.device import Parameter, Pointer, Scalar
from engine.plan.recipes import RecipeStep
from engine.tactics.matmul_view import MatMulView
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcPlain", "epilogue_pointers", "sum_store"]

Offers = Sequence[Candidate] | Refusal


class NvrtcPlain:
    """Serves every contraction and attention in float32, float16 and bfloat16."""

    name = "nvrtc.plain"
    kinds = ("FusedMatMul", "FusedConv", "FusedAttention")
    last_resort = True

    def offers(self, node: Node, point: Mapping[str, int], target: Target) -> Offers:
        """The kernel for the layer, with the likeliest tile first."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "the target is no CUDA device")
        if any(value is None for value in node.inputs):
            return Refusal(self.name, "an input is missing")
        narrow = [value for value in node.inputs[: 3 if _is_attention(node) else 2] if value]
        wrong = [value.tensor.dtype for value in narrow if value.tensor.dtype not in CONTRACTED]
        if wrong:
            return Refusal(self.name, f"{wrong[0].value} is no type of an operand")
        try:
            if isinstance(node.op, FusedMatMul):
                return self._matmul(node, point, target)
            if isinstance(node.op, FusedConv):
                return self._convolution(node, point, target)
            return self._attention(node)
        except ValueError as error:
            return Refusal(self.name, str(error))

    def _candidate(
        self,
        choice: Mapping[str, int | str],
        kernel: DeviceKernel,
        emit: Callable[[ProgramBuilder, Node, int, DeviceKernel], None],
        *,
        strided: bool = True,
    ) -> Candidate:
        return Candidate(
            self.name, choice, lambda b, node, layer: emit(b, node, layer, kernel), strided=strided
        )

    def _matmul(self, node: Node, point: Mapping[str, int], target: CudaTarget) -> Offers:
        op, view = node.op, MatMulView.of(node)
        assert isinstance(op, FusedMatMul)
        a, b = _tensor(node.inputs[0]), _tensor(node.inputs[1])
        store = sum_store(node)
        sizes = [evaluate(dim, point) for dim in (view.m, view.n, view.batches)]
        found = []
        for tile in _ranked((sizes[0], sizes[1], sizes[2]), target):
            kernel = tiled_matmul(
                a.dtype, b.dtype, store, transposed=op.transpose_b, axes=len(view.axes), tile=tile
            )
            found.append(self._candidate(_choice(tile), kernel, _emit_matmul(view, tile)))
        return found

    def _convolution(self, node: Node, point: Mapping[str, int], target: CudaTarget) -> Offers:
        op, filters = node.op, _tensor(node.inputs[1])
        assert isinstance(op, FusedConv)
        if any(not isinstance(dim, int) for dim in filters.dims):
            return Refusal(self.name, "the filters have a size that is not fixed")
        a, store = _tensor(node.inputs[0]), sum_store(node)
        images, height, width, outputs = (evaluate(d, point) for d in node.outputs[0].tensor.dims)
        direct = self._candidate(
            {"form": "direct"},
            direct_convolution(a.dtype, filters.dtype, store, _form(node, direct=True)),
            _emit_convolution(None),
        )
        form = _form(node, direct=False)
        sizes = (images * height * width, outputs // op.group, op.group)
        found = [
            self._candidate(
                _choice(tile),
                tiled_convolution(a.dtype, filters.dtype, store, form, tile),
                _emit_convolution(tile),
            )
            for tile in _ranked(sizes, target)
        ]
        # A tile of few columns is mostly empty.
        return [direct, *found] if form.outputs < 16 else [*found, direct]

    def _attention(self, node: Node) -> Offers:
        op = node.op
        assert isinstance(op, FusedAttention)
        kernel = plain_attention(op, [_tensor(value).dtype for value in node.inputs])
        return [self._candidate({"form": "rows"}, kernel, _emit_attention, strided=False)]


def _is_attention(node: Node) -> bool:
    return isinstance(node.op, FusedAttention)


def _tensor(value: Value | None) -> TensorType:
    assert value is not None
    return value.tensor


def _choice(tile: Tile) -> dict[str, int | str]:
    return {"rows": tile.rows, "columns": tile.columns, "depth": tile.depth}


def sum_store(node: Node) -> SumStore:
    """What a contraction does to its sums; ValueError where CUDA C cannot do it."""
    op = node.op
    assert isinstance(op, FusedConv | FusedMatMul)
    dtypes = tuple(_tensor(value).dtype for value in node.inputs[2:])
    store = SumStore(op.epilogue, op.kinds, dtypes)
    store.statements("sum", "row", "column")
    store.pointers()
    return store


def _ranked(sizes: tuple[int, int, int], target: CudaTarget) -> list[Tile]:
    """Tiles by the waves that they need: rows, columns, repetitions."""

    def cost(tile: Tile) -> float:
        blocks = -(-sizes[0] // tile.rows) * -(-sizes[1] // tile.columns) * sizes[2]
        at_once = target.multiprocessors * (2048 // tile.threads // 2)
        # A smaller tile reads more from shared memory per product.
        area = tile.rows * tile.columns
        return -(-blocks // at_once) * area * (1 + 16 / tile.rows + 16 / tile.columns)

    return sorted(TILES, key=cost)


def epilogue_pointers(
    builder: ProgramBuilder, node: Node
) -> tuple[list[Parameter], list[Parameter]]:
    """The parameters of `SumStore`: its pointers and its strides."""
    op = node.op
    assert isinstance(op, FusedConv | FusedMatMul)
    pointers: list[Parameter] = []
    strides: list[Parameter] = []
    for kind, value in zip(op.kinds, node.inputs[2:]):
        assert value is not None
        if kind == "full":
            slot, offset, pixel = builder.location(value)
            pointers.append(Pointer(slot, offset))
            strides.append(Scalar("i64", pixel))
        else:
            pointers.append(Pointer(builder.slot(value)))
    slot, offset, pixel = builder.location(node.outputs[0])
    pointers.append(Pointer(slot, offset, writes=True))
    strides.insert(0, Scalar("i64", pixel))
    return pointers, strides


def _emit_matmul(
    view: MatMulView, tile: Tile
) -> Callable[[ProgramBuilder, Node, int, DeviceKernel], None]:
    def emit(builder: ProgramBuilder, node: Node, layer: int, kernel: DeviceKernel) -> None:
        a, b = node.inputs[0], node.inputs[1]
        assert a is not None and b is not None
        slot, offset, pixel = builder.location(a)
        pointers, strides = epilogue_pointers(builder, node)
        parameters: list[Parameter] = [
            Pointer(slot, offset),
            Pointer(builder.slot(b)),
            *pointers,
            *(Scalar("i32", dim) for dim in (view.m, view.n, view.k)),
            Scalar("i64", pixel),
        ]
        for axis in view.axes:
            parameters += [
                Scalar("i32", axis.size),
                Scalar("i64", axis.a_rows * pixel),
                Scalar("i64", axis.b_elements),
            ]
        tiles = ceildiv(view.m, tile.rows) * ceildiv(view.n, tile.columns)
        builder.launch(kernel, (tiles * view.batches,), [*parameters, *strides], layer)

    return emit


def _shape(node: Node) -> tuple[int, int, int, int]:
    outputs, inputs, high, wide = (int(d) for d in _tensor(node.inputs[1]).dims)  # type: ignore[arg-type]
    return outputs, inputs, high, wide


def _order(node: Node, direct: bool) -> tuple[int, int, int, int] | None:
    """The order into which constant filters are brought; None leaves them as they are.

    Neighbours in memory are what neighbouring threads read: filters, or channels of one tap.
    """
    filters = node.inputs[1]
    if filters is None or filters.constant is None:
        return None
    return (2, 3, 1, 0) if direct else (0, 2, 3, 1)


def _form(node: Node, *, direct: bool) -> ConvForm:
    op, shape = node.op, _shape(node)
    assert isinstance(op, FusedConv)
    outputs, inputs, high, wide = shape
    order = _order(node, direct) or (0, 1, 2, 3)
    strides = [0, 0, 0, 0]
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return ConvForm(
        groups=op.group,
        outputs=outputs // op.group,
        inputs=inputs,
        taps=(high, wide),
        strides=(op.strides[0], op.strides[1]),
        pads=(op.pads[0], op.pads[1]),
        dilations=(op.dilations[0], op.dilations[1]),
        filter_strides=(strides[0], strides[1], strides[2], strides[3]),
    )


def _emit_convolution(
    tile: Tile | None,
) -> Callable[[ProgramBuilder, Node, int, DeviceKernel], None]:
    def emit(builder: ProgramBuilder, node: Node, layer: int, kernel: DeviceKernel) -> None:
        op, source = node.op, node.inputs[0]
        assert isinstance(op, FusedConv) and source is not None
        images, height, width, channels = op.image(source.tensor.dims)
        _, out_height, out_width, outputs = node.outputs[0].tensor.dims
        slot, offset, pixel = builder.location(source)
        if op.input_layout == "NCHW":  # then the last axis is the width
            steps = [channels * height * pixel, pixel, 1, height * pixel]
        else:
            steps = [height * width * pixel, width * pixel, pixel, 1]
        rows = images * out_height * out_width
        pointers, strides = epilogue_pointers(builder, node)
        parameters: list[Parameter] = [
            Pointer(slot, offset),
            Pointer(_filters(builder, node, tile is None)),
            *pointers,
            *(Scalar("i32", dim) for dim in (rows, height, width, out_height, out_width)),
            *(Scalar("i64", dim) for dim in steps),
            *strides,
        ]
        blocks = ceildiv(rows * outputs, 256)
        if tile is not None:
            columns = -(-_shape(node)[0] // op.group // tile.columns)
            blocks = ceildiv(rows, tile.rows) * (columns * op.group)
        builder.launch(kernel, (blocks,), parameters, layer)

    return emit


def _filters(builder: ProgramBuilder, node: Node, direct: bool) -> int:
    filters, order = node.inputs[1], _order(node, direct)
    assert filters is not None
    if order is None:
        return builder.slot(filters)
    shape = _shape(node)
    kind = TensorType(filters.tensor.dtype, tuple(shape[axis] for axis in order))
    return builder.weight(filters, [RecipeStep("transpose", (0,), {"order": list(order)})], kind)


def _emit_attention(builder: ProgramBuilder, node: Node, layer: int, kernel: DeviceKernel) -> None:
    op = node.op
    assert isinstance(op, FusedAttention)
    accesses = [op.query, op.key, op.value]
    offsets = [access.offset for access in accesses]
    if op.mask_place is not None:
        offsets.append(op.mask_access.offset)
    if op.position_place is not None:
        offsets.append(0)
    parameters: list[Parameter] = [
        Pointer(builder.slot(value), offset)
        for value, offset in zip(node.inputs, offsets, strict=True)
        if value is not None
    ]
    parameters.append(Pointer(builder.slot(node.outputs[0]), op.out.offset, writes=True))
    batch, heads, queries, keys = op.sizes
    parameters += [Scalar("i32", dim) for dim in (heads, queries, keys, op.past)]
    masks = [] if op.mask_place is None else [op.mask_access]
    for access in (*accesses, op.out, *masks):
        parameters += [Scalar("i64", dim) for dim in (access.batch, access.head, access.row)]
    blocks = product((ceildiv(queries, query_rows(op.head_size)), heads, batch))
    builder.launch(kernel, (blocks,), parameters, layer)


register(NvrtcPlain())
