"""Hopper's matrix product against its meaning, under a model of the hardware."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.cuda.hopper_gemm import HopperTail, HopperTile, check_tile
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.ops.expression import Expression, call, cast, constant, load
from engine.ops.fused import FusedConv, FusedMatMul
from engine.plan.device import LaunchStep
from engine.tactics.nvrtc_hopper_gemm import NvrtcHopperGemm
from engine.tactics.tactic import Candidate, Refusal
from engine.target import CudaTarget, describe
from tests import cuda_layer as layers
from tests.cuda_shim import ShimError
from tests.hopper_shim import run_layer, run_product

FOUND = describe("cuda:sm90")
assert isinstance(FOUND, CudaTarget)
TARGET = FOUND
RNG = np.random.default_rng(3)
HALF, BRAIN, FULL = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32


def random(*shape: int, dtype: DType = HALF, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32).astype(dtype.numpy)


def widened(position: int, dtype: DType = HALF) -> Expression:
    return cast(load(position, dtype), FULL)


SUM = load(0, FULL)
BIAS = call("add", SUM, widened(1))
GELU = call(
    "multiply",
    call("multiply", BIAS, constant(0.5, FULL)),
    call("add", constant(1.0, FULL), call("erf", call("multiply", BIAS, constant(0.5**0.5, FULL)))),
)
CUBE = call("multiply", call("power", BIAS, constant(3.0, FULL)), constant(0.044715, FULL))
TANH = call("tanh", call("multiply", call("add", BIAS, CUBE), constant(0.797884583, FULL)))
TANH_GELU = call(
    "multiply",
    call("multiply", BIAS, constant(0.5, FULL)),
    call("add", TANH, constant(1.0, FULL)),
)
SILU = call("multiply", BIAS, call("sigmoid", BIAS))
RESIDUAL = call("max", call("add", BIAS, widened(2)), constant(0.0, FULL))
MIXED = call(
    "add",
    call("multiply", call("add", RESIDUAL, widened(3)), load(4, FULL)),
    call("multiply", widened(5, BRAIN), load(6, FULL)),
)
#: Expression, kinds and types of the operands.
EPILOGUES: dict[str, tuple[Expression, tuple[str, ...], tuple[DType, ...]]] = {
    "sum": (SUM, (), ()),
    "bias": (BIAS, ("column",), (HALF,)),
    "gelu": (GELU, ("column",), (HALF,)),
    "tanh": (TANH_GELU, ("column",), (HALF,)),
    "silu": (SILU, ("column",), (HALF,)),
    "residual": (RESIDUAL, ("column", "full"), (HALF, HALF)),
    "mixed": (
        MIXED,
        ("column", "full", "full", "column", "row", "scalar"),
        (HALF, HALF, HALF, FULL, BRAIN, FULL),
    ),
}


def product(
    name: str,
    m: int,
    n: int,
    k: int,
    *,
    dtype: DType = HALF,
    result: DType | None = None,
    transposed: bool = True,
    fixed: bool = True,
) -> tuple[Graph, Node]:
    """A product with an epilogue, its rows a symbol."""
    expression, kinds, dtypes = EPILOGUES[name]
    result = result or dtype
    epilogue = expression if result is FULL else cast(expression, result)
    shapes = {"column": (n,), "row": (m,), "scalar": (1,), "full": (m, n)}
    feeds = [layers.feed(random(m, k, dtype=dtype), (symbol("M"), k))]
    b = random(*((n, k) if transposed else (k, n)), dtype=dtype, scale=0.2)
    feeds.append(layers.constant(b) if fixed else layers.feed(b))
    for kind, item in zip(kinds, dtypes):
        array = random(*shapes[kind], dtype=item)
        dims = tuple(symbol("M") if kind in ("row", "full") and i == 0 else size
                     for i, size in enumerate(array.shape))  # fmt: skip
        feeds.append(layers.feed(array, dims))
    return layers.layer(FusedMatMul(transposed, epilogue, kinds), feeds)


def candidate_of(tile: HopperTile) -> Candidate:
    return NvrtcHopperGemm()._candidate(tile, TARGET)


def check(
    graph: Graph,
    node: Node,
    tile: HopperTile,
    *,
    blocks: int | None = None,
    placed: dict[int, Placement] | None = None,
    **point: int,
) -> None:
    found = run_layer(graph, node, candidate_of(tile), point, placed=placed, blocks=blocks)
    (expected,) = layers.meaning(node)
    assert found.dtype == expected.dtype
    rtol = 1.6e-2 if DType.of(found.dtype) is BRAIN else 2e-3
    wide = expected.astype(np.float32)
    np.testing.assert_allclose(found.astype(np.float32), wide, rtol=rtol, atol=rtol)


TILES = [
    HopperTile(64, 64, True, stages=2),
    HopperTile(64, 128, True, stages=3, buffers=3),
    HopperTile(128, 64, True, stages=4, buffers=4, group=2),
    HopperTile(128, 64, False, stages=3),
    HopperTile(128, 128, False, stages=2, buffers=3, group=1),
    HopperTile(64, 64, True, stages=2, cluster=2),
    HopperTile(128, 128, False, stages=2, cluster=2),
    HopperTile(192, 64, False, stages=2, buffers=3),
    HopperTile(64, 96, True, stages=2, buffers=3),
    HopperTile(128, 32, True, stages=3),
    HopperTile(192, 96, False, stages=2),
    HopperTile(128, 160, False, stages=2, cluster=2),
    HopperTile(64, 128, False, stages=3, blocks=2),
    HopperTile(128, 64, False, stages=2, buffers=3, blocks=2),
    HopperTile(64, 96, False, stages=2, cluster=2, blocks=2),
]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_every_way_of_cutting_is_right_at_all_edges(tile: HopperTile) -> None:
    """Rows, columns and depth that fill no tile; three tiles per block and more."""
    graph, node = product("residual", 269, 136, 136)
    check(graph, node, tile, blocks=2, M=269)


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name: str) -> None:
    check(*product(name, 130, 136, 72), TILES[0], blocks=1, M=130)


@pytest.mark.parametrize("n", [77, 130])
def test_rows_of_the_result_that_begin_anywhere(n: int) -> None:
    check(*product("bias", 75, n, 64), TILES[0], blocks=2, M=75)
    check(*product("residual", 75, n, 64), TILES[3], blocks=1, M=75)


def test_other_types() -> None:
    check(*product("sum", 140, 72, 200, dtype=BRAIN), TILES[2], blocks=1, M=140)
    check(*product("residual", 140, 72, 64, result=FULL), TILES[3], blocks=1, M=140)
    check(*product("residual", 140, 75, 64, result=FULL), TILES[0], blocks=1, M=140)


def test_a_matrix_that_is_turned_and_one_that_changes() -> None:
    check(*product("bias", 100, 64, 64, transposed=False), TILES[0], M=100)
    graph, node = product("bias", 100, 64, 64, fixed=False)
    check(graph, node, TILES[0], M=100)
    source = layers.emitted(graph, node, candidate_of(TILES[0])).device_kernels[0].source
    assert "#define CONSTANT_B 0" in source, "a matrix that others write is read before the wait"


def test_a_convolution_of_single_pixels() -> None:
    graph, node = layers.layer(
        FusedConv(epilogue=cast(call("max", SUM, constant(0.0, FULL)), HALF)),
        [
            layers.feed(random(2, 7, 9, 72), (symbol("N"), 7, 9, 72)),
            layers.constant(random(40, 72, 1, 1)),
        ],
    )
    check(graph, node, TILES[0], N=2)


@pytest.mark.parametrize("offset", [80, 77])
def test_slices_of_wider_tensors(offset: int) -> None:
    """An output at any element; operands at multiples of sixteen bytes."""
    graph, node = product("residual", 70, 72, 64)
    wide = graph.value("wide", TensorType(HALF, (symbol("M"), 400)))
    places = [(node.inputs[0], 8), (node.inputs[3], 320), (node.outputs[0], offset)]
    placed = {id(value): Placement(wide, start, 400) for value, start in places}
    check(graph, node, TILES[0], placed=placed, blocks=1, M=70)


def test_a_slice_that_no_tensor_map_describes_is_computed_by_the_plain_kernel() -> None:
    graph, node = product("bias", 70, 72, 64)
    wide = graph.value("wide", TensorType(HALF, (symbol("M"), 100)))
    placed = {id(node.inputs[0]): Placement(wide, 3, 100)}
    candidate = candidate_of(TILES[0])
    (found,) = layers.run_candidate(graph, node, candidate, {"M": 70}, placed=placed)
    np.testing.assert_allclose(found, layers.meaning(node)[0], rtol=2e-3, atol=2e-3)


def test_what_is_not_served_says_why() -> None:
    offers = NvrtcHopperGemm().offers
    _, node = product("bias", 100, 64, 64)
    cases = {
        "no CUDA device": offers(node, {"M": 100}, describe("cpu")),
        "capability 9.0": offers(node, {"M": 100}, describe("cuda:sm100")),
        "33 rows and more, not for 16": offers(node, {"M": 16}, TARGET),
        "multiple of 16 bytes": offers(product("bias", 64, 64, 60)[1], {"M": 64}, TARGET),
        "not constant": offers(
            product("bias", 64, 64, 64, transposed=False, fixed=False)[1], {"M": 64}, TARGET
        ),
        "expected float16": offers(product("sum", 64, 64, 64, dtype=FULL)[1], {"M": 64}, TARGET),
    }
    for told, refused in cases.items():
        assert isinstance(refused, Refusal), told
        assert told in refused.reason, refused.reason


def test_impossible_tiles_are_refused() -> None:
    tail = HopperTail(cast(SUM, HALF), (), (), "boxes")
    for tile in (
        HopperTile(256, 64, True, 3),
        HopperTile(128, 80, False, 3),
        HopperTile(192, 128, True, 3),
        HopperTile(192, 256, False, 3),
        HopperTile(64, 128, True, 3, blocks=2),
        HopperTile(64, 128, False, 3),
        HopperTile(128, 256, True, 3),
        HopperTile(128, 128, True, 1),
        HopperTile(128, 128, True, 3, buffers=1),
    ):
        with pytest.raises(ValueError, match=r"tile|thread|buffers"):
            check_tile(tile, tail)


#: What is left out or changed in the text, and with how many stages of k a run shows it.
FAULTS = {
    "loads ahead of the release": ("ef_await(empty + 8 * turn.stage, turn.phase ^ 1);", ""),
    "products ahead of the loads": ("ef_await(full + 8 * turn.stage, turn.phase);", ""),
    "a stage released while it is read": ("ef_wgmma_wait<1>();", "ef_wgmma_wait<2>();"),
    "sums used before they are done": ("ef_wgmma_wait<0>();", "ef_wgmma_wait<1>();"),
    "a buffer written while it is read": ("ef_await_reads<BUFFERS - 1>();", ""),
    "results that the store does not see": ("ef_publish();", ""),
    "a stage that is never released": ("            release(before);\n            tile", "tile"),
    "a wrong swizzle": ("(spot ^ p << 5)", "(spot + (p << 5))"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_model_of_the_hardware_shows_faults(fault: str) -> None:
    graph, node = product("bias", 200, 136, 200)
    builder = layers.emitted(graph, node, candidate_of(TILES[0]))
    (step,), (kernel,) = builder.steps, builder.device_kernels
    assert isinstance(step, LaunchStep)
    text, instead = FAULTS[fault]
    assert text in kernel.source
    broken = dataclasses.replace(kernel, source=kernel.source.replace(text, instead))
    arrays = layers.filled(builder, node, {"M": 200})
    (expected,) = layers.meaning(node)

    def run() -> None:
        run_product(broken, step, arrays, {"M": 200}, 1)
        found = arrays[builder.slot(node.outputs[0])].reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)

    with pytest.raises((AssertionError, ShimError)):
        run()
