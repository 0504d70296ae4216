"""Products with a small matrix as CUDA C: under the shim candidates give the meaning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.cuda.narrow_gemm import NarrowTile
from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.graph import Graph, Node
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.ops.expression import cast
from engine.ops.fused import FusedConv, FusedMatMul
from engine.tactics import nvrtc_narrow_gemm
from engine.tactics.nvrtc_narrow_gemm import NvrtcNarrowGemm
from engine.tactics.tactic import Candidate, Refusal
from engine.target import CudaTarget, describe
from tests.cuda_layer import constant, emitted, feed, layer, meaning, run_candidate
from tests.engine.tactics.test_nvrtc_windows import BRAIN, HALF, SINGLE, N, array, close, ending

H200 = describe("cuda:sm90")
assert isinstance(H200, CudaTarget)
#: So few blocks that each takes several steps.
SMALL = replace(H200, multiprocessors=1)


def product(
    rows: int,
    k: int,
    n: int,
    *,
    dtype: DType = HALF,
    kinds: tuple[str, ...] = ("column",),
    transposed: bool = True,
    result: DType | None = None,
) -> tuple[Graph, Node]:
    """A product with an epilogue, its rows a symbol."""
    expression = ending(dtype, kinds)
    epilogue = cast(expression.operands[0], result) if result else expression
    w = array(dtype, *((n, k) if transposed else (k, n)))
    feeds = [feed(array(dtype, rows, k), (N, k)), constant(w)]
    shapes = {"column": (n,), "full": (rows, n), "row": (rows, 1), "scalar": (1,)}
    for kind in kinds:
        made = array(dtype, *shapes[kind])
        rowed = kind in ("full", "row")
        feeds.append(feed(made, (N, *made.shape[1:])) if rowed else constant(made))
    return layer(FusedMatMul(transposed, epilogue, kinds), feeds)


def of(tile: NarrowTile, target: CudaTarget = SMALL) -> Candidate:
    return nvrtc_narrow_gemm._candidate(tile, target)


def check(
    graph: Graph,
    node: Node,
    tile: NarrowTile,
    rows: int,
    placed: dict[int, Placement] | None = None,
) -> None:
    (expected,) = meaning(node)
    (found,) = run_candidate(graph, node, of(tile), {"N": rows}, placed=placed)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    close(found, expected, tile)


@pytest.mark.parametrize(
    ("rows", "k", "n", "tile", "details"),
    [
        (600, 16, 96, NarrowTile(1, 4, True), {}),
        (130, 24, 144, NarrowTile(1, 4, True), {}),
        (75, 32, 16, NarrowTile(2, 4, False), {}),
        (1, 96, 24, NarrowTile(1, 4, True), {"kinds": ()}),
        (300, 144, 24, NarrowTile(1, 4, False), {"kinds": ("column", "full")}),
        (50, 40, 10, NarrowTile(1, 4, True), {"kinds": ("row", "scalar")}),
        (90, 8, 20, NarrowTile(4, 4, True), {"dtype": BRAIN}),
        (60, 56, 40, NarrowTile(1, 8, False), {"transposed": False, "result": SINGLE}),
    ],
)
def test_products(rows: int, k: int, n: int, tile: NarrowTile, details: dict[str, Any]) -> None:
    graph, node = product(rows, k, n, **details)
    check(graph, node, tile, rows)


def convolution(images: int, side: int, k: int, n: int, kinds: tuple[str, ...]) -> Any:
    op = FusedConv((1, 1), (0, 0, 0, 0), (1, 1), 1, "NHWC", ending(HALF, kinds), kinds)
    feeds = [feed(array(HALF, images, side, side, k), (N, side, side, k))]
    feeds.append(constant(array(HALF, n, k, 1, 1)))
    for kind in kinds:
        full = feed(array(HALF, images, side, side, n), (N, side, side, n))
        feeds.append(constant(array(HALF, n)) if kind == "column" else full)
    return layer(op, feeds)


@pytest.mark.parametrize(("start", "pixel"), [(8, 40), (4, 44), (3, 37)])
def test_results_in_slices(start: int, pixel: int) -> None:
    """At multiples of fewer elements they are stored in narrower parts, or by another kernel."""
    graph, node = convolution(2, 9, 16, 24, ("column",))
    wide = graph.value("wide", TensorType(HALF, (N, 9, 9, pixel)))
    placed = {id(node.outputs[0]): Placement(wide, start, pixel)}
    check(graph, node, NarrowTile(2, 4, True), 2, placed)


@pytest.mark.parametrize(("start", "pixel"), [(8, 40), (4, 20)])
def test_rows_in_slices(start: int, pixel: int) -> None:
    graph, node = convolution(1, 9, 16, 24, ("column", "full"))
    wide = graph.value("wide", TensorType(HALF, (N, 9, 9, pixel)))
    placed = {id(node.inputs[0]): Placement(wide, start, pixel)}
    check(graph, node, NarrowTile(1, 4, True), 1, placed)


def test_what_lies_beside_a_row_takes_no_part() -> None:
    graph, node = product(40, 24, 16, kinds=())
    x = node.inputs[0]
    assert x is not None and x.content is not None
    x.content[7, 3] = np.inf  # its neighbours in memory are other rows
    (expected,) = meaning(node)
    (found,) = run_candidate(graph, node, of(NarrowTile(1, 4, True)), {"N": 40})
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


@pytest.mark.parametrize("name", ["cuda:sm80", "cuda:sm90", "cuda:sm100"])
def test_candidates_for_small_matrices_compile_without_spilling(name: str) -> None:
    target = describe(name)
    sizes = [(112, 16, 96, ()), (56, 24, 144, ()), (56, 144, 24, ("full",)), (28, 32, 192, ())]
    for side, k, n, more in sizes:
        graph, node = convolution(1, side, k, n, ("column", *more))
        found = NvrtcNarrowGemm().offers(node, {"N": 32}, target)
        assert not isinstance(found, Refusal), found.reason
        for candidate in found[: 2 if name == "cuda:sm90" else 1]:
            (kernel,) = emitted(graph, node, candidate).device_kernels
            assert kernel.waits
            compiled = compile_nvrtc(kernel, target.capability)  # type: ignore[union-attr]
            assert compiled.spilled_nbytes == 0, candidate.choice


def test_refusals_have_reasons() -> None:
    def refused(made: tuple[Graph, Node], rows: int) -> str:
        found = NvrtcNarrowGemm().offers(made[1], {"N": rows}, H200)
        assert isinstance(found, Refusal)
        return found.reason

    assert "2048 rows" in refused(product(4, 16, 96), 100)
    assert "registers" in refused(product(4, 256, 512), 5000)
    assert "8 rows" in refused(product(4, 20, 32), 5000)
    assert "float16" in refused(product(4, 16, 32, dtype=SINGLE), 5000)
