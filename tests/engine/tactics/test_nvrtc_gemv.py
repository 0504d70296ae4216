"""Products of few rows on a GPU: against their meaning, by the host shim."""

from __future__ import annotations

import re

import numpy as np
import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.gemv import Gemv, ranked_gemvs
from engine.cuda.kernel import Compiled
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.ops.expression import Expression, call, cast, constant, load
from engine.ops.fused import FusedConv, FusedMatMul
from engine.tactics import nvrtc_gemv
from engine.tactics.nvrtc_gemv import NvrtcGemv
from engine.tactics.tactic import Candidate, Refusal
from engine.target import describe
from tests import cuda_layer as layers

TARGET = describe("cuda:sm90")
RNG = np.random.default_rng(11)
HALF, BRAIN, FULL = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32


def random(*shape: int, dtype: DType = HALF) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32).astype(dtype.numpy)


def widened(position: int, dtype: DType) -> Expression:
    return cast(load(position, dtype), FULL)


def epilogue(dtype: DType) -> tuple[Expression, tuple[str, ...]]:
    total = call("add", call("add", load(0, FULL), widened(1, dtype)), widened(2, dtype))
    return cast(call("add", call("max", total, constant(0.0, FULL)), widened(3, dtype)), dtype), (
        "column",
        "row",
        "full",
    )


def product(
    m: int, n: int, k: int, *, dtype: DType = HALF, transposed: bool = False, fixed: bool = True
) -> tuple[Graph, Node]:
    expression, kinds = epilogue(dtype)
    b = random(n, k, dtype=dtype) if transposed else random(k, n, dtype=dtype)
    return layers.layer(
        FusedMatMul(transposed, expression, kinds),
        [
            layers.feed(random(m, k, dtype=dtype), (symbol("M"), k)),
            layers.constant(b) if fixed else layers.feed(b),
            layers.constant(random(n, dtype=dtype)),
            layers.feed(random(m, dtype=dtype), (symbol("M"),)),
            layers.feed(random(m, n, dtype=dtype), (symbol("M"), n)),
        ],
    )


def candidate_of(node: Node, cut: Gemv) -> Candidate:
    view = nvrtc_gemv._view(node)
    assert not isinstance(view, str), view
    return NvrtcGemv()._candidate(view, cut)


def check(
    graph: Graph, node: Node, candidate: Candidate, *, rtol: float = 2e-3, **point: int
) -> None:
    (expected,) = layers.meaning(node)
    (found,) = layers.run_candidate(graph, node, candidate, point)
    assert found.dtype == expected.dtype
    wide = expected.astype(np.float32)
    np.testing.assert_allclose(
        found.astype(np.float32), wide, rtol=rtol, atol=rtol * np.abs(wide).max()
    )


CUTS = [
    Gemv(warps=4, tiles=1, splits=1, unroll=1, rows=8),
    Gemv(warps=4, tiles=2, splits=1, unroll=3, rows=16),
    Gemv(warps=8, tiles=4, splits=1, unroll=2, rows=8),
    Gemv(warps=4, tiles=2, splits=4, unroll=1, rows=8),
    Gemv(warps=4, tiles=1, splits=2, unroll=2, rows=16),
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 67, 328), (7, 16, 1024), (21, 40, 40)])
def test_every_cut_is_right_at_any_number_of_rows(cut: Gemv, m: int, n: int, k: int) -> None:
    graph, node = product(m, n, k, transposed=k == 40)
    check(graph, node, candidate_of(node, cut), M=m)


@pytest.mark.parametrize("k", [4, 20, 333])
def test_rows_that_do_not_begin_on_sixteen_bytes(k: int) -> None:
    graph, node = product(3, 19, k)
    check(graph, node, candidate_of(node, CUTS[0]), M=3)


def test_bfloat16_and_a_matrix_that_changes() -> None:
    graph, node = product(9, 24, 96, dtype=BRAIN, transposed=True, fixed=False)
    check(graph, node, candidate_of(node, CUTS[1]), rtol=1.6e-2, M=9)
    source = layers.emitted(graph, node, candidate_of(node, CUTS[1])).device_kernels[0].source
    assert source.index("ef_wait();\n") < source.index("    load_weights(first);"), (
        "a matrix that another kernel writes is read before that kernel has ended"
    )


def test_a_convolution_of_single_pixels() -> None:
    graph, node = layers.layer(
        FusedConv(epilogue=cast(load(0, FULL), HALF)),
        [
            layers.feed(random(2, 2, 1, 48), (symbol("N"), 2, 1, 48)),
            layers.constant(random(10, 48, 1, 1)),
        ],
    )
    found = NvrtcGemv().offers(node, {"N": 2}, TARGET)
    assert not isinstance(found, Refusal)
    check(graph, node, found[0], N=2)


@pytest.mark.parametrize("offset", [8, 12])
def test_slices_of_wider_tensors(offset: int) -> None:
    graph, node = product(5, 24, 64)
    wide = graph.value("wide", TensorType(HALF, (symbol("M"), 200)))
    places = [(node.inputs[0], offset), (node.inputs[4], 80), (node.outputs[0], 120)]
    placed = {id(value): Placement(wide, start, 200) for value, start in places}
    candidate = candidate_of(node, CUTS[3])
    (found,) = layers.run_candidate(graph, node, candidate, {"M": 5}, placed=placed)
    (expected,) = layers.meaning(node)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=5e-2)


def test_offers_are_different_and_the_first_is_right() -> None:
    graph, node = product(2, 100, 768)
    found = NvrtcGemv().offers(node, {"M": 2}, TARGET)
    assert not isinstance(found, Refusal)
    assert len({tuple(item.choice.values()) for item in found}) == len(found) >= 4
    assert all(item.strided for item in found)
    check(graph, node, found[0], M=2)


@pytest.mark.parametrize(
    ("n", "k"), [(768, 768), (2304, 768), (768, 3072), (50257, 768), (1000, 2048)]
)
@pytest.mark.parametrize("m", [1, 8, 16])
def test_the_first_cuts_fill_the_device_and_read_weights_once(m: int, n: int, k: int) -> None:
    cuts = ranked_gemvs(m, n, k, 132, 4.3e12)[:3]
    assert max(-(-n // cut.columns) * cut.splits for cut in cuts) >= 90
    for cut in cuts:
        assert cut.rows >= m, "weights are read more than once"
        assert cut.unroll * cut.tiles <= 8, "more registers for loads than a thread should hold"
        assert cut.unroll * 32 * cut.warps * cut.splits < 2 * max(k, 128), "most loads are empty"


def test_what_is_not_served_says_why() -> None:
    cases = {
        "rows, not for 17": (product(17, 8, 64), {"M": 17}),
        "not constant": (product(2, 8, 64, fixed=False), {"M": 2}),
        "not both float16": (product(2, 8, 64, dtype=FULL), {"M": 2}),
    }
    for told, ((_, node), point) in cases.items():
        refused = NvrtcGemv().offers(node, point, TARGET)
        assert isinstance(refused, Refusal)
        assert told in refused.reason
    refused = NvrtcGemv().offers(product(2, 8, 64)[1], {"M": 2}, describe("cpu"))
    assert isinstance(refused, Refusal)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_the_cuts_offered_for_decoders_compile_without_spills(capability: tuple[int, int]) -> None:
    kernels = {}
    for m, n, k in (
        (1, 768, 768),
        (1, 2304, 768),
        (8, 768, 3072),
        (16, 1000, 2048),
        (1, 5025, 768),
    ):
        graph, node = product(m, n, k, transposed=True)
        found = NvrtcGemv().offers(node, {"M": m}, TARGET)
        assert not isinstance(found, Refusal)
        for candidate in found[:3]:
            (kernel,) = layers.emitted(graph, node, candidate).device_kernels
            kernels[kernel.digest] = kernel
    results = compile_kernels(list(kernels.values()), capability)
    for kernel, result in zip(kernels.values(), results):
        head = re.search(r"__launch_bounds__.*", kernel.source)
        assert isinstance(result, Compiled), f"{head}: {result}"
        assert result.waits == (capability >= (9, 0))
