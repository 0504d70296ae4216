"""The first convolution of a network as CUDA C: under the shim candidates give the meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ir.types import DType
from engine.ops.fused import FusedConv
from engine.tactics.nvrtc_stem import NvrtcStem
from engine.tactics.tactic import Refusal
from engine.target import describe
from tests.cuda_layer import constant, emitted, feed, layer, meaning, run_candidate
from tests.engine.tactics.test_nvrtc_windows import BRAIN, HALF, N, array, check, ending, offered


def stem(
    size: tuple[int, int, int],
    outputs: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    *,
    dtype: DType = HALF,
    channels: int = 3,
    planar: bool = True,
    kinds: tuple[str, ...] = ("column",),
    batch: Any = None,
) -> tuple[Graph, Node]:
    images, height, width = size
    layout = "NCHW" if planar else "NHWC"
    shape = (images, channels, height, width) if planar else (images, height, width, channels)
    op = FusedConv(strides, pads, (1, 1), 1, layout, ending(dtype, kinds), kinds)
    x, w = array(dtype, *shape), array(dtype, outputs, channels, *kernel)
    out = tuple(int(dim) for dim in op.output_shape(shape, w.shape))  # type: ignore[arg-type]
    feeds = [feed(x, (batch or images, *shape[1:])), constant(w)]
    if "column" in kinds:
        feeds.append(constant(array(dtype, outputs)))
    if "full" in kinds:
        feeds.append(feed(array(dtype, *out), (batch or images, *out[1:])))
    return layer(op, feeds)


@pytest.mark.parametrize(
    ("size", "outputs", "kernel", "strides", "pads", "details"),
    [
        ((1, 16, 40), 64, (7, 7), (2, 2), (3, 3, 3, 3), {}),
        ((2, 9, 24), 32, (3, 3), (2, 2), (1, 1, 1, 1), {"batch": N}),
        ((1, 7, 24), 32, (3, 3), (2, 2), (0, 0, 1, 1), {"kinds": ("column", "full")}),
        ((1, 6, 40), 64, (3, 3), (1, 1), (1, 1, 1, 1), {}),
        ((1, 9, 13), 40, (3, 3), (1, 1), (1, 1, 1, 1), {"channels": 1}),
        ((1, 11, 19), 36, (5, 4), (3, 3), (2, 1, 1, 2), {"planar": False}),
        ((1, 12, 17), 21, (4, 4), (4, 4), (0, 0, 0, 0), {"channels": 4, "kinds": ()}),
        ((1, 23, 32), 96, (11, 11), (4, 4), (2, 2, 2, 2), {"dtype": BRAIN}),
    ],
)
def test_first_convolutions(
    size: Any, outputs: int, kernel: Any, strides: Any, pads: Any, details: dict[str, Any]
) -> None:
    graph, node = stem(size, outputs, kernel, strides, pads, **details)
    check(graph, node, NvrtcStem(), {"N": size[0]}, most=2)


def test_what_lies_beside_a_filter_takes_no_part() -> None:
    """Pairs reach one column further than filters do; there infinity times zero would be NaN."""
    graph, node = stem((1, 8, 24), 32, (3, 3), (2, 2), (1, 1, 1, 1), kinds=())
    x = node.inputs[0]
    assert x is not None and x.content is not None
    x.content[0, 1, 3, 9] = np.inf
    (expected,) = meaning(node)
    for candidate in offered(NvrtcStem(), node)[:2]:
        (found,) = run_candidate(graph, node, candidate)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


@pytest.mark.parametrize("name", ["cuda:sm80", "cuda:sm90", "cuda:sm100"])
def test_first_candidates_compile_without_spilling(name: str) -> None:
    target = describe(name)
    cases = [
        stem((1, 64, 224), 64, (7, 7), (2, 2), (3, 3, 3, 3)),
        stem((1, 64, 224), 32, (3, 3), (2, 2), (1, 1, 1, 1)),
        stem((1, 32, 256), 64, (3, 3), (1, 1), (1, 1, 1, 1), dtype=BRAIN),
    ]
    for graph, node in cases:
        found = NvrtcStem().offers(node, {}, target)
        assert not isinstance(found, Refusal)
        (kernel,) = emitted(graph, node, found[0]).device_kernels
        compiled = compile_nvrtc(kernel, target.capability)  # type: ignore[union-attr]
        assert compiled.spilled_nbytes == 0


def test_refusals_have_reasons() -> None:
    _, node = stem((1, 8, 8), 8, (3, 3), (1, 1), (1, 1, 1, 1), channels=5)
    refused = NvrtcStem().offers(node, {}, describe("cuda:sm90"))
    assert isinstance(refused, Refusal) and "5 channels" in refused.reason
    _, node = stem((1, 8, 8), 8, (3, 3), (1, 1), (1, 1, 1, 1), dtype=DType.FLOAT32)
    refused = NvrtcStem().offers(node, {}, describe("cuda:sm90"))
    assert isinstance(refused, Refusal) and "float16" in refused.reason
    assert symbol("N") == N
