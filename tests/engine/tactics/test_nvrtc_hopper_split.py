"""Hopper's product split along k inside a cluster against its meaning, under a model of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.cuda.hopper_split import SplitTile, check_split
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.plan.device import LaunchStep
from engine.tactics.nvrtc_hopper_split import NvrtcHopperSplit
from engine.tactics.tactic import Candidate, Refusal
from engine.target import CudaTarget, describe
from tests import cuda_layer as layers
from tests.cuda_shim import ShimError
from tests.engine.tactics.test_nvrtc_hopper_convolution import convolution
from tests.engine.tactics.test_nvrtc_hopper_gemm import product
from tests.hopper_shim import run_layer, run_product

FOUND = describe("cuda:sm90")
assert isinstance(FOUND, CudaTarget)
TARGET = FOUND
HALF, BRAIN, FULL = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32


def rows(features: int, pixels: int, split: int, share: int = 1) -> SplitTile:
    """Pixels are the rows of the product; a tile may have fewer than its groups."""
    groups = -(-pixels // 64)
    return SplitTile(features, 64 * groups, groups, split, False, (1, 1, pixels), share)


def swapped(features: int, pixels: int, split: int, share: int = 1) -> SplitTile:
    """Features are the rows of the product."""
    wide = -(-pixels // 8) * 8
    return SplitTile(features, wide, features // 64, split, True, (1, 1, pixels), share)


def ring(tile: SplitTile) -> SplitTile:
    """Two stages, through which every part of k goes several times."""
    return dataclasses.replace(tile, stages=2)


def boxed(tile: SplitTile, box: tuple[int, int, int]) -> SplitTile:
    return dataclasses.replace(tile, box=box)


def candidate_of(tile: SplitTile) -> Candidate:
    return NvrtcHopperSplit()._candidate(tile, TARGET)


def check(
    graph: Graph,
    node: Node,
    tile: SplitTile,
    *,
    placed: dict[int, Placement] | None = None,
    **point: int,
) -> None:
    found = run_layer(graph, node, candidate_of(tile), point, placed=placed)
    (expected,) = layers.meaning(node)
    assert found.dtype == expected.dtype
    rtol = 1.6e-2 if DType.of(found.dtype) is BRAIN else 2e-3
    wide = expected.astype(np.float32)
    np.testing.assert_allclose(found.astype(np.float32), wide, rtol=rtol, atol=rtol)


TILES = [
    rows(24, 64, 1),
    rows(16, 64, 2),
    rows(40, 40, 3),
    rows(16, 128, 2),
    rows(8, 64, 4, 2),
    rows(24, 64, 1, 2),
    swapped(64, 8, 1),
    swapped(64, 24, 3),
    swapped(64, 30, 2, 2),
    swapped(128, 16, 2),
    swapped(64, 16, 1, 4),
    swapped(64, 8, 8),
    ring(swapped(64, 24, 2, 2)),
    ring(rows(16, 128, 1)),
]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: str(tuple(tile.to_json().values())))
def test_every_way_of_cutting_is_right_at_all_edges(tile: SplitTile) -> None:
    """Rows, columns and depth that fill no tile, parts of k of unequal length."""
    steps = max(tile.split, 4) + (tile.split == 3)
    k = steps * 64 - 24 if tile.split < 8 else 8 * 64
    k += 448 if tile.stages else 0
    graph, node = product("residual", 75, 136, k)
    check(graph, node, tile, M=75)


@pytest.mark.parametrize("name", ["sum", "gelu", "mixed"])
def test_epilogues(name: str) -> None:
    check(*product(name, 50, 72, 136), swapped(64, 24, 2), M=50)
    if name == "mixed":
        check(*product(name, 50, 72, 136), rows(16, 64, 2), M=50)
        check(*product(name, 50, 72, 136), swapped(64, 16, 1), M=50)


@pytest.mark.parametrize("n", [77, 130])
def test_rows_of_the_result_that_begin_anywhere(n: int) -> None:
    check(*product("residual", 21, n, 136), swapped(64, 24, 2), M=21)
    check(*product("bias", 21, n, 136), rows(24, 64, 2), M=21)


def test_other_types() -> None:
    check(*product("sum", 40, 72, 200, dtype=BRAIN), swapped(64, 16, 2), M=40)
    check(*product("residual", 40, 72, 136, result=FULL), rows(16, 64, 3), M=40)
    check(*product("residual", 40, 75, 136, result=FULL), swapped(64, 16, 3), M=40)


def test_a_matrix_that_is_turned_and_one_that_changes() -> None:
    check(*product("bias", 20, 64, 128, transposed=False), swapped(64, 24, 2), M=20)
    graph, node = product("bias", 20, 64, 128, fixed=False)
    tile = swapped(64, 24, 2)
    check(graph, node, tile, M=20)
    source = layers.emitted(graph, node, candidate_of(tile)).device_kernels[0].source
    assert "#define CONSTANT 0" in source, "a matrix that others write is read before the wait"


@pytest.mark.parametrize("offset", [16, 77])
def test_slices_of_wider_tensors(offset: int) -> None:
    """A result and an operand at any element; activations at multiples of sixteen bytes."""
    graph, node = product("residual", 20, 72, 128)
    wide = graph.value("wide", TensorType(HALF, (symbol("M"), 500)))
    aligned = graph.value("aligned", TensorType(HALF, (symbol("M"), 400)))
    placed = {id(node.inputs[0]): Placement(aligned, 8, 400)}
    placed[id(node.inputs[3])] = Placement(wide, offset + 150, 500)
    placed[id(node.outputs[0])] = Placement(wide, offset, 500)
    check(graph, node, swapped(64, 24, 2), placed=placed, M=20)


def test_activations_that_no_tensor_map_describes_are_served_by_the_plain_kernel() -> None:
    graph, node = product("bias", 20, 72, 64)
    wide = graph.value("wide", TensorType(HALF, (symbol("M"), 100)))
    placed = {id(node.inputs[0]): Placement(wide, 3, 100)}
    candidate = candidate_of(swapped(64, 24, 1))
    (found,) = layers.run_candidate(graph, node, candidate, {"M": 20}, placed=placed)
    np.testing.assert_allclose(found, layers.meaning(node)[0], rtol=2e-3, atol=2e-3)


#: What is left out or changed in the text.
FAULTS = {
    "products ahead of the loads": ("ef_await(full + 8 * stage, phase);", ""),
    "sums used before they are done": ("ef_wgmma_wait<0>();", "ef_wgmma_wait<1>();"),
    "sums read before they are sent": ("    ef_await_sent(sent);", ""),
    "a barrier that expects too many": ("own * (SPLIT * 512)", "own * (SPLIT * 1024)"),
    "a barrier that expects too little": ("F_NBYTES + BOX * 128", "F_NBYTES"),
    "a part that is not sent": ("owner * SHARE + mate", "owner"),
    "values in wrong lanes": ("lane % 4 * 8 + lane / 8", "lane % 4 * 8 + lane / 4 % 4"),
}
#: The same of a ring.
RING_FAULTS = {
    "loads ahead of the release": ("ef_await(empty + 8 * stage, phase);", ""),
    "a stage that is never released": ("if (lane < SHARE) ef_arrive_at(", "if (0) ef_arrive_at("),
    "a stage released to one block": ("part * SHARE + lane)", "part * SHARE)"),
}


@pytest.mark.parametrize("fault", [*FAULTS, *RING_FAULTS])
def test_the_model_of_the_hardware_shows_faults(fault: str) -> None:
    graph, node = product("bias", 20, 136, 200 if fault in FAULTS else 600)
    tile = swapped(64, 24, 2, 2)
    builder = layers.emitted(graph, node, candidate_of(tile if fault in FAULTS else ring(tile)))
    (step,), (kernel,) = builder.steps, builder.device_kernels
    assert isinstance(step, LaunchStep)
    text, instead = (FAULTS | RING_FAULTS)[fault]
    assert text in kernel.source
    broken = dataclasses.replace(kernel, source=kernel.source.replace(text, instead))
    arrays = layers.filled(builder, node, {"M": 20})
    (expected,) = layers.meaning(node)

    def run() -> None:
        run_product(broken, step, arrays, {"M": 20})
        found = arrays[builder.slot(node.outputs[0])].reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)

    with pytest.raises((AssertionError, ShimError)):
        run()


def test_what_is_not_served_says_why() -> None:
    offers = NvrtcHopperSplit().offers
    _, node = product("bias", 100, 64, 64)
    cases = {
        "no CUDA device": offers(node, {"M": 100}, describe("cpu")),
        "capability 9.0": offers(node, {"M": 100}, describe("cuda:sm100")),
        "1 to 3200 rows, not for 6304": offers(node, {"M": 6304}, TARGET),
        "multiple of 16 bytes": offers(product("bias", 64, 64, 60)[1], {"M": 64}, TARGET),
        "not constant": offers(
            product("bias", 64, 64, 64, transposed=False, fixed=False)[1], {"M": 64}, TARGET
        ),
        "expected float16": offers(product("sum", 64, 64, 64, dtype=FULL)[1], {"M": 64}, TARGET),
        "strides above 8": offers(
            convolution("bias", (1, 20, 20), (64, 64), strides=(9, 1))[1], {"N": 1}, TARGET
        ),
        "more than once": offers(
            convolution("bias", (1, 56, 56), (8, 2048), taps=(11, 11))[1], {"N": 1}, TARGET
        ),
    }
    for told, refused in cases.items():
        assert isinstance(refused, Refusal), told
        assert told in refused.reason, refused.reason


def test_impossible_tiles_are_refused() -> None:
    for tile in (
        SplitTile(64, 96, 1, 1, False, (1, 1, 96)),
        SplitTile(20, 64, 1, 1, False, (1, 1, 64)),
        SplitTile(64, 264, 1, 1, True, (1, 1, 264)),
        SplitTile(64, 64, 1, 9, True, (1, 1, 64)),
        SplitTile(64, 64, 1, 4, True, (1, 1, 64), 4),
        SplitTile(64, 64, 1, 1, True, (1, 9, 8)),
    ):
        with pytest.raises(ValueError, match=r"rows|columns|steps|box"):
            check_split(tile, 12)
