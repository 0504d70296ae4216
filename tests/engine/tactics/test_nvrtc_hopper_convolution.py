"""Hopper's convolution against its meaning under a model of the hardware, and as machine code."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.hopper_gemm import HopperTile
from engine.cuda.kernel import Compiled
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.ops.expression import cast
from engine.ops.fused import FusedConv
from engine.tactics import nvrtc_hopper_convolution
from engine.tactics.nvrtc_hopper_convolution import NvrtcHopperConvolution
from engine.tactics.tactic import Candidate, Refusal
from engine.target import CudaTarget, describe
from tests import cuda_layer as layers
from tests.engine.tactics.test_nvrtc_hopper_gemm import EPILOGUES, random
from tests.hopper_shim import run_layer

FOUND = describe("cuda:sm90")
assert isinstance(FOUND, CudaTarget)
TARGET = FOUND
HALF = DType.FLOAT16


def convolution(
    name: str,
    image: tuple[int, int, int],
    channels: tuple[int, int],
    *,
    taps: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    dtype: DType = HALF,
) -> tuple[Graph, Node]:
    """A convolution with an epilogue, its images a symbol."""
    expression, kinds, _ = EPILOGUES[name]
    op = FusedConv(strides, pads, dilations, 1, "NHWC", cast(expression, dtype), kinds)
    filters = random(channels[1], channels[0], *taps, dtype=dtype, scale=0.1)
    shape = op.output_shape((*image, channels[0]), filters.shape)
    feeds = [
        layers.feed(
            random(*image, channels[0], dtype=dtype), (symbol("N"), *image[1:], channels[0])
        ),
        layers.constant(filters),
    ]
    for kind in kinds:
        if kind == "column":
            feeds.append(layers.constant(random(channels[1])))
        else:
            feeds.append(layers.feed(random(*shape), (symbol("N"), *shape[1:])))  # type: ignore[arg-type]
    return layers.layer(op, feeds)


def candidate_of(node: Node, tile: HopperTile, box: tuple[int, int, int]) -> Candidate:
    window = dataclasses.replace(nvrtc_hopper_convolution._window(node), box=box)
    return NvrtcHopperConvolution()._candidate(tile, window, TARGET)


def check(graph: Graph, node: Node, candidate: Candidate, n: int, blocks: int = 1) -> None:
    found = run_layer(graph, node, candidate, {"N": n}, blocks=blocks)
    (expected,) = layers.meaning(node)
    rtol = 2e-3 if found.dtype == np.float16 else 1.6e-2
    wide = expected.astype(np.float32)
    np.testing.assert_allclose(found.astype(np.float32), wide, rtol=rtol, atol=rtol)


PINGPONG = HopperTile(64, 64, True, stages=2, buffers=3)
SHARED = HopperTile(128, 64, False, stages=3)


@pytest.mark.parametrize("box", [(1, 8, 8), (1, 1, 64), (4, 4, 4), (16, 2, 2), (2, 32, 1)], ids=str)
def test_boxes_of_all_shapes(box: tuple[int, int, int]) -> None:
    graph, node = convolution("residual", (3, 5, 9), (72, 40), taps=(2, 3))
    check(graph, node, candidate_of(node, PINGPONG, box), 3)


@pytest.mark.parametrize(
    "how",
    [
        {"strides": (2, 2)},
        {"strides": (2, 1), "taps": (1, 1), "pads": (0, 0, 0, 0)},
        {"dilations": (2, 3), "pads": (2, 3, 2, 3)},
        {"taps": (2, 5), "pads": (0, 3, 1, 1)},
        {"dtype": DType.BFLOAT16},
    ],
    ids=str,
)
def test_windows_of_all_kinds(how: dict[str, object]) -> None:
    graph, node = convolution("bias", (3, 11, 10), (40, 72), **how)  # type: ignore[arg-type]
    check(graph, node, candidate_of(node, SHARED, (2, 8, 8)), 3)


@pytest.mark.parametrize("box", [(1, 8, 8), (8, 2, 4)], ids=str)
def test_tiles_that_are_stored_32_columns_at_once(box: tuple[int, int, int]) -> None:
    graph, node = convolution("residual", (3, 5, 9), (72, 136))
    tile = HopperTile(64, 96, True, stages=2, buffers=4)
    check(graph, node, candidate_of(node, tile, box), 3)


def test_blocks_of_a_cluster_share_filters() -> None:
    graph, node = convolution("residual", (3, 9, 9), (64, 72))
    tile = HopperTile(64, 64, True, stages=2, buffers=2, cluster=2)
    check(graph, node, candidate_of(node, tile, (1, 8, 8)), 3, blocks=2)


@pytest.mark.parametrize("offset", [16, 20])
def test_slices_of_wider_tensors(offset: int) -> None:
    """The plain kernel serves a slice that does not begin at sixteen bytes."""
    graph, node = convolution("residual", (2, 6, 7), (64, 64))
    wide = graph.value("wide", TensorType(HALF, (symbol("N"), 6, 7, 400)))
    places = [(node.inputs[0], offset), (node.inputs[3], 120), (node.outputs[0], 200)]
    placed = {id(value): Placement(wide, start, 400) for value, start in places}
    candidate = candidate_of(node, PINGPONG, (1, 8, 8))
    if offset % 8:
        (found,) = layers.run_candidate(graph, node, candidate, {"N": 2}, placed=placed)
    else:
        found = run_layer(graph, node, candidate, {"N": 2}, placed=placed)
    np.testing.assert_allclose(found, layers.meaning(node)[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("image", "channels", "strides"),
    [((32, 56, 56), (64, 64), (1, 1)), ((32, 14, 14), (256, 256), (1, 1)),
     ((8, 28, 28), (256, 512), (2, 2))],
)  # fmt: skip
def test_the_offers_for_real_layers_compile_without_spills(
    image: tuple[int, int, int], channels: tuple[int, int], strides: tuple[int, int]
) -> None:
    graph, node = convolution("residual", (1, *image[1:]), channels, strides=strides)
    found = NvrtcHopperConvolution().offers(node, {"N": image[0]}, TARGET)
    assert not isinstance(found, Refusal), found
    assert len({str(item.choice) for item in found}) == len(found) >= 4
    kernels = [layers.emitted(graph, node, item).device_kernels[0] for item in found]
    for candidate, result in zip(found, compile_kernels(kernels, (9, 0))):
        assert isinstance(result, Compiled), f"{candidate.choice}: {result}"


def test_what_is_not_served_says_why() -> None:
    def offers(channels: tuple[int, int] = (64, 64), **how: object) -> object:
        _, node = convolution("bias", (1, 6, 7), channels, **how)  # type: ignore[arg-type]
        return NvrtcHopperConvolution().offers(node, {"N": 1}, TARGET)

    cases = {
        "a matrix product": offers(taps=(1, 1), pads=(0, 0, 0, 0)),
        "multiples of 16 bytes": offers((12, 64)),
        "strides above 8": offers(strides=(9, 1)),
    }
    for told, refused in cases.items():
        assert isinstance(refused, Refusal), told
        assert told in refused.reason
