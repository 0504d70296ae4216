"""Hopper's convolution split along k inside a cluster, and what is offered for real layers."""

from __future__ import annotations

import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.hopper_split import SplitTail, SplitTile
from engine.cuda.hopper_split_tiles import SplitProblem, predicted
from engine.cuda.kernel import Compiled
from engine.ir.sizes import symbol
from engine.ir.types import TensorType
from engine.lower.placement import Placement
from engine.ops.expression import cast
from engine.tactics.nvrtc_hopper_split import NvrtcHopperSplit
from engine.tactics.tactic import Refusal
from tests import cuda_layer as layers
from tests.engine.tactics.test_nvrtc_hopper_convolution import convolution
from tests.engine.tactics.test_nvrtc_hopper_gemm import SUM, product
from tests.engine.tactics.test_nvrtc_hopper_split import (
    BRAIN,
    HALF,
    TARGET,
    boxed,
    check,
    rows,
    swapped,
)


@pytest.mark.parametrize(
    ("tile", "box"),
    [
        (rows(24, 64, 2), (1, 7, 9)),
        (rows(16, 64, 3), (3, 3, 7)),
        (swapped(64, 40, 4), (1, 4, 9)),
        (swapped(64, 16, 2, 2), (1, 3, 5)),
        (swapped(64, 64, 1), (2, 5, 6)),
    ],
    ids=str,
)
def test_boxes_of_all_shapes(tile: SplitTile, box: tuple[int, int, int]) -> None:
    graph, node = convolution("residual", (3, 5, 9), (40, 72), taps=(2, 3))
    check(graph, node, boxed(tile, box), N=3)


@pytest.mark.parametrize(
    "how",
    [
        {"strides": (2, 2)},
        {"strides": (2, 1), "taps": (1, 1), "pads": (0, 0, 0, 0)},
        {"dilations": (2, 3), "pads": (2, 3, 2, 3)},
        {"taps": (2, 5), "pads": (0, 3, 1, 1)},
        {"dtype": BRAIN},
    ],
    ids=str,
)
def test_windows_of_all_kinds(how: dict[str, object]) -> None:
    graph, node = convolution("bias", (2, 11, 10), (40, 72), **how)  # type: ignore[arg-type]
    split = 1 if how.get("taps") == (1, 1) else 2
    turned = "strides" in how or "dtype" in how
    tile = swapped(64, 40, split) if turned else rows(24, 64, split)
    check(graph, node, boxed(tile, (1, 5, 8)), N=2)


def test_an_image_in_a_slice() -> None:
    graph, node = convolution("residual", (2, 6, 7), (64, 64))
    wide = graph.value("wide", TensorType(HALF, (symbol("N"), 6, 7, 400)))
    places = [(node.inputs[0], 16), (node.inputs[3], 121), (node.outputs[0], 201)]
    placed = {id(value): Placement(wide, start, 400) for value, start in places}
    check(graph, node, boxed(swapped(64, 24, 3), (1, 3, 7)), placed=placed, N=2)


LAYERS = {
    "qkv": product("bias", 128, 2304, 768),
    "up": product("gelu", 128, 3072, 768),
    "down": product("residual", 197, 768, 3072),
    "decode": product("residual", 8, 768, 3072),
    "1x1": product("residual", 49, 2048, 512),
    "3x3": convolution("residual", (1, 14, 14), (256, 256)),
    "stride": convolution("bias", (1, 28, 28), (128, 128), strides=(2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_offers_for_real_layers_compile_without_spills(name: str) -> None:
    graph, node = LAYERS[name]
    first = layers._data(node.inputs[0]).shape[0]  # type: ignore[arg-type]
    found = NvrtcHopperSplit().offers(node, {"M": first, "N": first}, TARGET)
    assert not isinstance(found, Refusal), found
    assert len({str(item.choice) for item in found}) == len(found) >= 3
    assert all(item.strided for item in found)
    kernels = [layers.emitted(graph, node, item).device_kernels[0] for item in found]
    for candidate, result in zip(found, compile_kernels(kernels, (9, 0))):
        assert isinstance(result, Compiled), f"{candidate.choice}: {result}"
        assert result.waits and result.spilled_nbytes == 0
        assert result.shared_nbytes <= TARGET.shared_nbytes


def test_the_model_prefers_a_split_where_k_is_long_and_the_result_small() -> None:
    tail = SplitTail(cast(SUM, HALF), (), ())
    problem = SplitProblem((1, 1, 8), 768, 3072, tail)
    split, whole = (predicted(problem, swapped(64, 8, split), TARGET).ns for split in (8, 2))
    assert split < whole
    assert predicted(problem, swapped(64, 8, 8), TARGET).waves == 1
