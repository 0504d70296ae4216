"""Matrix products and 1x1 convolutions by Triton, with any epilogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.cuda.kernel import DeviceKernel
from engine.cuda.triton_compiler import ELEMENT_NAMES
from engine.cuda.triton_expression import check_epilogue
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, evaluate, minimum, modulo, product
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused import FusedConv, FusedMatMul
from engine.plan.device import Pointer, TensorMap
from engine.plan.recipes import RecipeStep
from engine.tactics.tactic import Candidate, Refusal, register
from engine.tactics.triton_launch import Argument, parameters
from engine.target import CudaTarget, Target
from engine.templates.epilogue import Extra, Tail, operand_name
from engine.templates.gemm import Gemm, Tile, gemm_kernel, tile_count
from engine.templates.gemm_tiles import Problem, ranked_tiles

__all__ = ["TritonGemm", "emit_product", "read_product"]

_FACTORS = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
_Pair = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """What a node asks for, before it is known where its tensors lie.

    ``batches`` are up to two batch axes that B has; ``a_strides`` and ``b_strides`` are the
    elements between matrices along them.
    """

    m: Dim
    n: Dim
    k: Dim
    transposed: bool
    kinds: tuple[str, ...]
    batches: _Pair = ()
    a_strides: _Pair = ()
    b_strides: _Pair = ()


class TritonGemm:
    """Serves FusedMatMul, and FusedConv with 1x1 filters, in float16, bfloat16 and float32."""

    name = "triton.gemm"
    kinds = ("FusedMatMul", "FusedConv")

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile worth measuring."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "it makes kernels for NVIDIA GPUs")
        if target.capability < (8, 0):
            return Refusal(self.name, "it needs compute capability 8.0")
        asked = read_product(node)
        if isinstance(asked, str):
            return Refusal(self.name, asked)
        a = node.inputs[0]
        assert a is not None
        nbytes = a.tensor.dtype.nbytes
        m, n, k = (evaluate(dim, point) for dim in (asked.m, asked.n, asked.k))
        if min(m, n, k) < 1:
            return Refusal(self.name, "the product is empty")
        can = _in_boxes(asked, nbytes, node.outputs[0].tensor.dtype.nbytes, target)
        problem = Problem(
            m,
            n,
            k,
            nbytes,
            {"a", "b"} <= can,
            "y" in can,
            fulls=asked.kinds.count("full"),
            batches=evaluate(product(asked.batches), point),
            ahead=target.capability >= (9, 0) and _ahead(node, asked),
        )
        return [self._candidate(tile, target, asked) for tile in ranked_tiles(problem, target)]

    def _candidate(self, tile: Tile, target: CudaTarget, asked: Product) -> Candidate:
        return Candidate(
            self.name,
            tile.to_json(),
            lambda b, node, layer: emit_product(b, node, layer, tile, target),
            strided=not asked.batches,
        )


def read_product(node: Node) -> Product | str:
    """The product that a node is, or the reason why it is none that kernels here compute."""
    op, a, b, y = node.op, node.inputs[0], node.inputs[1], node.outputs[0]
    assert isinstance(op, (FusedConv, FusedMatMul)) and a is not None and b is not None
    if a.tensor.dtype not in _FACTORS or b.tensor.dtype is not a.tensor.dtype:
        found = f"{a.tensor.dtype.value} and {b.tensor.dtype.value}"
        return f"the factors are {found}, expected both float16, bfloat16 or float32"
    for value in node.inputs[2:]:
        assert value is not None
        if value.tensor.dtype not in ELEMENT_NAMES:
            return f"kernels do not read {value.tensor.dtype.value}"
    reason = check_epilogue(op.epilogue, op.kinds)
    if reason:
        return reason
    found_product = _convolution(op, a, b, y) if isinstance(op, FusedConv) else _matmul(op, a, b, y)
    if isinstance(found_product, str):
        return found_product
    return replace(found_product, kinds=_kinds(op.kinds, node.inputs[2:], found_product.n))


def _kinds(kinds: Sequence[str], values: Sequence[Value | None], n: Dim) -> tuple[str, ...]:
    """The kinds of operands; a column of one element is a scalar."""
    found = []
    for kind, value in zip(kinds, values):
        assert value is not None
        single = kind == "column" and product(value.tensor.dims) != n
        found.append("scalar" if single else kind)
    return tuple(found)


def _convolution(op: FusedConv, x: Value, filters: Value, y: Value) -> Product | str:
    outputs, inputs, *taps = filters.tensor.dims
    if taps != [1, 1] or op.group != 1:
        return "the filters are not 1x1 over all channels"
    if op.strides != (1, 1) or any(op.pads):
        return "a 1x1 convolution with strides or padding is no matrix product"
    if op.input_layout != "NHWC":
        return "the input is not NHWC"
    return Product(product(y.tensor.dims[:-1]), outputs, inputs, True, ())


def _matmul(op: FusedMatMul, a: Value, b: Value, y: Value) -> Product | str:
    left, right, out = a.tensor.dims, b.tensor.dims, y.tensor.dims
    m, n, k = left[-2], out[-1], left[-1]
    if right[-1 if op.transpose_b else -2] != k:
        return "the inner sizes are not known to agree"
    if all(dim == 1 for dim in right[:-2]):
        return Product(product(left[:-1]), n, k, op.transpose_b, ())
    batch, matrix_a, matrix_b = out[:-2], m * k, k * n
    whole = Product(m, n, k, op.transpose_b, (), (product(batch),), (matrix_a,), (matrix_b,))
    if left[:-2] == batch and right[:-2] == batch:
        return whole
    if len(batch) > 2:
        return "more than two batch axes that broadcast"
    outer, inner = (1, *batch)[-2:]
    one, other = (1, 1, *left[:-2])[-2:], (1, 1, *right[:-2])[-2:]
    if any(size not in (1, full) for size, full in (*zip(one, (outer, inner)), *zip(other, batch))):
        return "batch axes whose equality is not known"
    return replace(
        whole,
        batches=(outer, inner),
        a_strides=_steps(one, matrix_a),
        b_strides=_steps(other, matrix_b),
    )


def _steps(sizes: Sequence[Dim], matrix: Dim) -> _Pair:
    """Elements between matrices along two batch axes, 0 along one that broadcasts."""
    outer, inner = sizes
    return (0 if outer == 1 else matrix * inner, 0 if inner == 1 else matrix)


def _fits(elements: Dim, nbytes: int) -> bool:
    """Whether an offset or pitch is a multiple of 16 bytes for every value of the symbols."""
    return modulo(elements * nbytes, 16) == 0


def _in_boxes(
    asked: Product, nbytes: int, result_nbytes: int, target: CudaTarget
) -> frozenset[str]:
    """Which of "a", "b" and "y" tensor maps deliver when each lies packed in a slot of its own."""
    if not target.has_tensor_maps or asked.batches or nbytes != 2:
        return frozenset()
    pitches = {"a": (asked.k, nbytes), "b": (asked.k, nbytes), "y": (asked.n, result_nbytes)}
    if not asked.transposed:
        pitches["b"] = (asked.n, nbytes)
    return frozenset(
        name
        for name, (pitch, size) in pitches.items()
        if isinstance(pitch, int) and _fits(pitch, size)
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a matrix lies: slot, offset and pitch in elements, and bytes of an element."""

    slot: int
    offset: Dim
    pitch: Dim
    nbytes: int

    @property
    def boxable(self) -> bool:
        """Whether a tensor map can describe it."""
        if not isinstance(self.pitch, int):
            return False
        return _fits(self.offset, self.nbytes) and _fits(self.pitch, self.nbytes)

    def map(self, rows: Dim, columns: Dim, writes: bool = False) -> TensorMap:
        """The tensor map over it."""
        return TensorMap(self.slot, self.offset, (rows, columns), (self.pitch, 1), 0, writes=writes)


def emit_product(
    builder: ProgramBuilder, node: Node, layer: int, tile: Tile, target: CudaTarget
) -> None:
    """The one launch of a product.

    A tile in boxes becomes one of pointers where the slice in which a factor lies is no multiple of
    16 bytes, and a split one is whole where the number of rows has no bound (its counters have).
    """
    asked = read_product(node)
    assert isinstance(asked, Product)
    places, transposed = _places(builder, node, asked)
    can = _in_boxes(replace(asked, transposed=transposed), places["a"].nbytes, 1, target)
    boxed = {name for name in ("a", "b", "y") if places[name].boxable and {"a", "b"} <= can}
    if not {"a", "b"} <= boxed:
        tile = replace(tile, style="pointers", halves=False, programs=0)
    if "y" not in boxed:
        tile = replace(tile, halves=False)
    extras = _extras(node, asked, places, tile)
    gemm = Gemm(
        dtype=node.inputs[0].tensor.dtype,  # type: ignore[union-attr]
        m=asked.m,
        n=asked.n,
        k=asked.k,
        a_pitch=places["a"].pitch,
        b_pitch=places["b"].pitch,
        y_pitch=places["y"].pitch,
        tail=Tail(node.op.epilogue, extras),  # type: ignore[attr-defined]
        transposed=transposed,
        batches=asked.batches,
        strides=_strides(asked, extras),
        boxed=frozenset(boxed),
        aligned=frozenset(n for n, place in places.items() if _fits(place.offset, place.nbytes)),
        fixed=frozenset(_constants(node)),
        early=target.capability >= (9, 0),
    )
    counters = _most_tiles(builder, gemm, tile) if tile.split > 1 else None
    if counters is None:
        tile = replace(tile, split=1)
    kernel = gemm_kernel(gemm, tile)
    arguments: dict[str, Argument] = {**gemm.sizes(), **_addresses(kernel, gemm, places)}
    if tile.split > 1 and counters is not None:
        elements = tile_count(gemm, tile) * (tile.split * tile.rows * tile.columns)
        partial = builder.workspace(DType.FLOAT32, elements)
        arguments["partial"] = Pointer(partial, 0, True)
        arguments["counters"] = Pointer(builder.zeros(counters), 0, True)
    if tile.ahead:
        arguments["b_ahead"] = Pointer(places["b"].slot, places["b"].offset)
    taken = {name: arguments[name] for name, _ in kernel.signature}
    blocks = tile_count(gemm, tile) * product(asked.batches)
    if tile.style == "persistent":
        blocks = minimum(blocks, tile.programs)
    builder.launch(kernel, (blocks, tile.split), parameters(kernel, taken), layer)


def _addresses(
    kernel: DeviceKernel, gemm: Gemm, places: Mapping[str, _Place]
) -> dict[str, Argument]:
    """Pointers and tensor maps of the matrices, as the kernel takes each."""
    sizes = {"a": (gemm.m, gemm.k), "b": (gemm.k, gemm.n)}
    if gemm.transposed:
        sizes["b"] = (gemm.n, gemm.k)
    found: dict[str, Argument] = {}
    for name, form in kernel.signature:
        if name in places and form.startswith("tensordesc"):
            rows, columns = sizes.get(name, (gemm.m, gemm.n))
            found[name] = places[name].map(rows, columns, name == "y")
        elif name in places:
            found[name] = Pointer(places[name].slot, places[name].offset, name == "y")
    return found


def _places(builder: ProgramBuilder, node: Node, asked: Product) -> tuple[dict[str, _Place], bool]:
    """Where everything lies, by parameter name, and whether B is [N, K] there."""
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert a is not None and b is not None
    size = a.tensor.dtype.nbytes
    places: dict[str, _Place] = {}
    transposed = asked.transposed
    if b.constant is not None and not transposed and not asked.batches:
        n, k = int(asked.n), int(asked.k)  # type: ignore[arg-type]
        recipe = [RecipeStep("reshape", (0,), {"shape": [k, n]})]
        recipe.append(RecipeStep("transpose", (1,), {"order": [1, 0]}))
        weight = builder.weight(b, recipe, TensorType(b.tensor.dtype, (n, k)))
        transposed = True
    else:
        weight = builder.slot(b)
    places["b"] = _Place(weight, 0, asked.k if transposed else asked.n, size)
    if asked.batches:
        places["a"] = _Place(builder.slot(a), 0, asked.k, size)
        places["y"] = _Place(builder.slot(y), 0, asked.n, y.tensor.dtype.nbytes)
    else:
        places["a"] = _Place(*builder.location(a), size)
        places["y"] = _Place(*builder.location(y), y.tensor.dtype.nbytes)
    for place, (kind, value) in enumerate(zip(asked.kinds, node.inputs[2:]), 1):
        assert value is not None
        nbytes = value.tensor.dtype.nbytes
        if kind == "full" and not asked.batches:
            places[operand_name(place)] = _Place(*builder.location(value), nbytes)
        else:
            pitch = asked.n if kind == "full" else 0
            places[operand_name(place)] = _Place(builder.slot(value), 0, pitch, nbytes)
    return places, transposed


def _extras(
    node: Node, asked: Product, places: Mapping[str, _Place], tile: Tile
) -> tuple[Extra, ...]:
    """The operands of the epilogue; full ones come by tensor maps where the tile does."""
    boxes = tile.style != "pointers"
    extras = []
    for place, (kind, value) in enumerate(zip(asked.kinds, node.inputs[2:]), 1):
        assert value is not None
        where = places[operand_name(place)]
        boxed = boxes and kind == "full" and where.boxable and value.tensor.dtype in _FACTORS
        extras.append(Extra(kind, value.tensor.dtype, where.pitch, boxed))
    return tuple(extras)


def _ahead(node: Node, asked: Product) -> bool:
    """Whether B will lie [N, K] in a weight."""
    b = node.inputs[1]
    constant = b is not None and b.constant is not None
    return constant and not asked.batches and isinstance(asked.k, int)


def _constants(node: Node) -> list[str]:
    """The parameters that are weights."""
    names = ["a", "b", *(operand_name(place) for place in range(1, len(node.inputs) - 1))]
    return [
        name
        for name, value in zip(names, node.inputs)
        if value is not None and value.constant is not None
    ]


def _strides(asked: Product, extras: Sequence[Extra]) -> tuple[tuple[str, _Pair], ...]:
    """Elements between matrices of everything that differs between them."""
    if not asked.batches:
        return ()
    inner = asked.batches[-1]
    packed = (asked.m * asked.n * inner, asked.m * asked.n)
    count = len(asked.batches)
    found = [("a", asked.a_strides), ("b", asked.b_strides), ("y", packed[-count:])]
    for place, extra in enumerate(extras, 1):
        if extra.kind == "full":
            found.append((operand_name(place), packed[-count:]))
        elif extra.kind == "row":
            found.append((operand_name(place), (asked.m * inner, asked.m)[-count:]))
    return tuple(found)


def _most_tiles(builder: ProgramBuilder, gemm: Gemm, tile: Tile) -> int | None:
    """The most tiles that a run may have, or None without a bound."""
    greatest: dict[str, int] = {}
    for item in builder.symbols:
        if not isinstance(item.greatest, int):
            continue
        greatest[item.name] = item.greatest
    try:
        return evaluate(tile_count(gemm, tile), greatest)
    except KeyError:
        return None


register(TritonGemm())
