"""Pooling and depthwise convolution as CUDA C: under the shim candidates give the meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.ops.channels_last import Pool
from engine.ops.expression import Expression, call, cast, load
from engine.ops.expression import constant as number
from engine.ops.fused import FusedConv
from engine.tactics.nvrtc_depthwise import NvrtcDepthwise
from engine.tactics.nvrtc_pool import NvrtcMapReduction, NvrtcPooling
from engine.tactics.tactic import Candidate, Refusal
from engine.target import describe
from tests.cuda_layer import Feed, constant, emitted, feed, layer, meaning, run_candidate

HALF, SINGLE, BRAIN = DType.FLOAT16, DType.FLOAT32, DType.BFLOAT16
H200 = describe("cuda:sm90")
RNG = np.random.default_rng(5)
N = symbol("N")
TOLERANCE = {HALF: 2e-3, BRAIN: 2e-2, SINGLE: 2e-5}


def array(dtype: DType, *shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32).astype(dtype.numpy)


def offered(tactic: Any, node: Node, point: dict[str, int] | None = None) -> Sequence[Candidate]:
    found = tactic.offers(node, point or {}, H200)
    assert not isinstance(found, Refusal), found.reason
    assert len({str(dict(item.choice)) for item in found}) == len(found) >= 1
    return list(found)


def check(
    graph: Graph,
    node: Node,
    tactic: Any,
    point: dict[str, int] | None = None,
    *,
    most: int = 2,
    placed: dict[int, Placement] | None = None,
) -> None:
    """Some candidates, the first and the last among them, give what the node means."""
    candidates = offered(tactic, node, point)
    picked = candidates[:: max(1, (len(candidates) - 1) // max(most - 1, 1))][:most]
    (expected,) = meaning(node)
    for candidate in picked:
        (found,) = run_candidate(graph, node, candidate, point, placed=placed)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        close(found, expected, dict(candidate.choice))


def close(found: Any, expected: Any, choice: Any) -> None:
    limit = TOLERANCE[DType.of(expected.dtype)]
    wide, wanted = found.astype(np.float32), expected.astype(np.float32)
    scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-3)
    np.testing.assert_allclose(wide, wanted, rtol=limit, atol=limit * scale, err_msg=str(choice))


def ending(dtype: DType, kinds: Sequence[str]) -> Expression:
    """Bias, then ReLU6, then a residual; as the fusions write it, in float32 with one rounding."""
    total = load(0, SINGLE)
    for place, kind in enumerate(kinds, 1):
        total = call("add", total, cast(load(place, dtype), SINGLE))
        if kind == "column":
            clipped = call("max", total, number(0.0, SINGLE))
            total = call("min", clipped, number(6.0, SINGLE))
    return cast(total, dtype)


def depthwise(
    dtype: DType,
    size: tuple[int, int, int],
    channels: int,
    kernel: tuple[int, int],
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    kinds: tuple[str, ...] = ("column",),
    batch: Any = None,
) -> tuple[Graph, Node]:
    op = FusedConv(strides, pads, dilations, channels, "NHWC", ending(dtype, kinds), kinds)
    x, w = array(dtype, *size, channels), array(dtype, channels, 1, *kernel)
    out = tuple(int(dim) for dim in op.output_shape(x.shape, w.shape))  # type: ignore[arg-type]
    feeds: list[Feed] = [feed(x, (batch or size[0], *x.shape[1:])), constant(w)]
    for kind in kinds:
        if kind == "column":
            feeds.append(constant(array(dtype, channels)))
        elif kind == "full":
            feeds.append(feed(array(dtype, *out), (batch or size[0], *out[1:])))
        elif kind == "row":
            feeds.append(feed(array(dtype, *out[:3], 1), (batch or size[0], *out[1:3], 1)))
        else:
            feeds.append(constant(array(dtype, 1)))
    return layer(op, feeds)


@pytest.mark.parametrize(
    ("dtype", "size", "channels", "kernel", "details"),
    [
        (HALF, (2, 9, 13), 32, (3, 3), {}),
        (HALF, (1, 7, 7), 40, (3, 3), {"strides": (2, 2), "kinds": ("column", "full")}),
        (HALF, (1, 11, 10), 24, (5, 5), {"pads": (2, 2, 2, 2)}),
        (HALF, (1, 12, 9), 16, (5, 5), {"strides": (2, 2), "pads": (1, 2, 2, 1)}),
        (HALF, (1, 6, 8), 13, (3, 3), {"kinds": ("column", "row", "scalar")}),
        (HALF, (1, 9, 9), 12, (3, 3), {"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
        (BRAIN, (1, 8, 9), 24, (3, 3), {"kinds": ("column", "full")}),
        (SINGLE, (1, 8, 9), 20, (3, 2), {"pads": (1, 0, 1, 1), "kinds": ()}),
        (HALF, (1, 20, 19), 8, (11, 9), {"pads": (5, 4, 5, 4)}),
    ],
)
def test_depthwise_convolutions(
    dtype: DType, size: Any, channels: int, kernel: Any, details: dict[str, Any]
) -> None:
    check(*depthwise(dtype, size, channels, kernel, **details), NvrtcDepthwise())


def test_one_kernel_serves_a_profile() -> None:
    graph, node = depthwise(HALF, (3, 6, 7), 16, (3, 3), kinds=("column", "full"), batch=N)
    check(graph, node, NvrtcDepthwise(), {"N": 3})
    candidate = offered(NvrtcDepthwise(), node, {"N": 3})[0]
    (step,) = emitted(graph, node, candidate).steps
    assert step.grid[0] == symbol("N") * (step.grid[0] // N)  # type: ignore[union-attr]


def test_depthwise_between_slices_of_wider_tensors() -> None:
    """Pixels 20 elements apart, 4 elements in: vectors of 8 do not fit, and are not used."""
    graph, node = depthwise(HALF, (1, 6, 7), 16, (3, 3), kinds=("column", "full"))
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    wide = graph.value("wide", TensorType(HALF, (1, 6, 7, 20)))
    other = graph.value("other", TensorType(HALF, (1, 6, 7, 24)))
    placed = {id(x): Placement(wide, 4, 20), id(output): Placement(other, 8, 24)}
    check(graph, node, NvrtcDepthwise(), placed=placed, most=2)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(
    ("dtype", "size", "kernel", "strides", "pads", "dilations", "ceil"),
    [
        (HALF, (2, 9, 12, 16), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False),
        (BRAIN, (1, 8, 7, 12), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), True),
        (HALF, (1, 9, 8, 5), (3, 2), (1, 2), (1, 0, 1, 1), (2, 3), False),
        (SINGLE, (1, 9, 8, 8), (3, 3), (2, 1), (1, 1, 1, 1), (1, 1), True),
        (HALF, (1, 10, 11, 8), (9, 8), (1, 1), (4, 3, 4, 3), (1, 1), False),
    ],
)
def test_poolings(
    dtype: DType, kind: str, size: Any, kernel: Any, strides: Any, pads: Any, dilations: Any,
    ceil: bool,
) -> None:  # fmt: skip
    for counts in (False, True) if kind == "average" else (False,):
        op = Pool(kind, kernel, strides, pads, dilations, ceil, counts)
        check(*layer(op, [feed(array(dtype, *size))]), NvrtcPooling(), most=2)


def test_maxima_hand_on_what_is_no_number() -> None:
    x = array(HALF, 1, 6, 6, 16)
    x[0, 2, 2, 3], x[0, 4, 4, 5], x[0, :2, :2, 7] = np.nan, np.inf, -np.inf
    graph, node = layer(Pool("max", (2, 2), (2, 2)), [feed(x)])
    (expected,) = meaning(node)
    assert np.isnan(expected).sum() == 1
    for candidate in offered(NvrtcPooling(), node)[:2]:
        np.testing.assert_array_equal(run_candidate(graph, node, candidate)[0], expected)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (HALF, (2, 7, 7, 40)),
        (HALF, (1, 16, 17, 24)),
        (SINGLE, (3, 5, 3, 7)),
        (BRAIN, (1, 2, 2, 16)),
    ],
)
def test_whole_maps(kind: str, dtype: DType, size: Any) -> None:
    x = feed(array(dtype, *size), (N, *size[1:]))
    graph, node = layer(Pool(kind, size[1:3]), [x])
    check(graph, node, NvrtcMapReduction(), {"N": size[0]})
    check(graph, node, NvrtcPooling(), {"N": size[0]}, most=1)


def test_a_map_shared_by_several_blocks() -> None:
    graph, node = layer(Pool("average", (48, 40)), [feed(array(HALF, 1, 48, 40, 16))])
    shares = [c for c in offered(NvrtcMapReduction(), node) if c.choice["parts"] > 1]
    assert shares, "one block for a large map of few channels leaves a GPU idle"
    (expected,) = meaning(node)
    for candidate in shares[:2]:
        assert len(emitted(graph, node, candidate).steps) == 2
        close(run_candidate(graph, node, candidate)[0], expected, dict(candidate.choice))


@pytest.mark.parametrize("name", ["cuda:sm80", "cuda:sm90", "cuda:sm100"])
def test_first_candidates_compile_without_spilling(name: str) -> None:
    target = describe(name)
    cases: list[tuple[Any, tuple[Graph, Node]]] = [
        (NvrtcDepthwise(), depthwise(HALF, (1, 14, 14), 96, (3, 3))),
        (NvrtcDepthwise(), depthwise(HALF, (1, 14, 14), 48, (5, 5), pads=(2, 2, 2, 2))),
        (NvrtcPooling(), layer(Pool("max", (3, 3), (2, 2)), [feed(array(HALF, 1, 15, 15, 64))])),
        (NvrtcPooling(), layer(Pool("average", (3, 3)), [feed(array(BRAIN, 1, 9, 9, 16))])),
        (NvrtcMapReduction(), layer(Pool("average", (7, 7)), [feed(array(HALF, 1, 7, 7, 64))])),
    ]
    for tactic, (graph, node) in cases:
        found = tactic.offers(node, {}, target)
        assert not isinstance(found, Refusal)
        for kernel in emitted(graph, node, found[0]).device_kernels:
            compiled = compile_nvrtc(kernel, target.capability)  # type: ignore[union-attr]
            assert compiled.spilled_nbytes == 0
            assert compiled.waits == (target.capability >= (9, 0))  # type: ignore[union-attr]


def test_refusals_have_reasons() -> None:
    _, node = depthwise(HALF, (1, 6, 6), 8, (3, 3))
    refused = NvrtcDepthwise().offers(node, {}, describe("cpu"))
    assert isinstance(refused, Refusal) and "GPU" in refused.reason
    _, node = layer(Pool("max", (2, 2)), [feed(array(HALF, 1, 4, 4, 8))])
    refused = NvrtcMapReduction().offers(node, {}, H200)
    assert isinstance(refused, Refusal) and "whole map" in refused.reason
    assert ml_dtypes.bfloat16 is BRAIN.numpy.type
