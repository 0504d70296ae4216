"""Transposed convolutions side by side: a product of channels, then blocks become pixels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.passes import canonicalise, run_pipeline
from tests.engine.small_models import assert_close, check, graph_of, random_feeds

RNG = np.random.default_rng(3)
UP = """(float[N, 6, H, 5] x) => (float[] y) {
    y = ConvTranspose <strides = [2, 2], kernel_shape = [2, 2]> (x, w, b) }"""
#: One step of a U-Net: convolution, up-convolution, concatenation with what was kept, convolution.
STEP = """(float[N, 4, H, 8] x, float[N, 8, H, 8] k) => (float[] y) {
    kept = Conv <pads = [1, 1, 1, 1]> (k, a)
    deep = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (kept)
    low = Relu (deep)
    up = ConvTranspose <strides = [2, 2]> (low, w, b)
    both = Concat <axis = 1> (kept, up)
    c = Conv <pads = [1, 1, 1, 1]> (both, d)
    y = Relu (c) }"""


def weight(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def pipelined(body: str, weights: dict[str, Any]) -> Graph:
    graph = graph_of(body, weights=weights)
    run_pipeline(graph, checked=True)
    return graph


@pytest.mark.parametrize("sizes", [{"N": 1, "H": 1}, {"N": 2, "H": 3}])
def test_up_convolutions_mean_the_same(sizes: dict[str, int]) -> None:
    weights = {"w": weight(6, 7, 2, 2), "b": weight(7)}
    check(UP, sizes=sizes, weights=weights)
    kinds = [node.kind for node in pipelined(UP, weights).nodes]
    assert "ConvTranspose" not in kinds and "FusedConv" in kinds


def test_a_step_of_a_u_net_has_no_transposes_inside() -> None:
    weights = {
        "a": weight(6, 8, 3, 3),
        "w": weight(6, 6, 2, 2),
        "b": weight(6),
        "d": weight(5, 12, 3, 3),
    }
    body = STEP.replace("float[N, 4, H, 8] x, ", "").replace("H, 8]", "8, 8]")
    check(body, sizes={"N": 2}, weights=weights)
    graph = pipelined(body, weights)
    kinds = [node.kind for node in graph.nodes]
    turned = [node for node in graph.nodes if node.kind == "Transpose"]
    assert all(
        node.inputs[0] in graph.inputs or graph.is_output(node.outputs[0]) for node in turned
    )
    assert kinds.count("FusedConv") == 3 and "BlocksToPixels" not in kinds, kinds


FORMS = {
    "a square of two": ("strides = [2, 2], pads = [1, 1, 1, 1]", (6, 4, 4, 4)),
    "no stride": ("pads = [1, 0, 2, 1]", (6, 4, 3, 3)),
    "a kernel of three": ("strides = [2, 2], pads = [1, 1, 1, 1]", (6, 4, 3, 3)),
    "one more pixel": (
        "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
        (6, 4, 3, 3),
    ),
    "groups": ("strides = [2, 2], group = 2, pads = [1, 1, 0, 0]", (6, 4, 4, 4)),
    "each channel by itself": ("strides = [2, 2], group = 6, pads = [1, 1, 1, 1]", (6, 1, 4, 4)),
    "another stride for rows": ("strides = [3, 1], pads = [0, 1, 1, 1]", (6, 4, 4, 3)),
    "another stride for rows, in groups": ("strides = [1, 2], group = 3", (6, 2, 2, 3)),
    "gaps between windows": ("strides = [3, 3], pads = [0, 0, 0, 0]", (6, 4, 2, 3)),
    "the same sizes": ('strides = [2, 2], auto_pad = "SAME_UPPER"', (6, 4, 3, 3)),
    "a given size": ("strides = [2, 2], output_shape = [7, 8]", (6, 4, 4, 4)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_a_convolution(name: str) -> None:
    attributes, shape = FORMS[name]
    body = f"(float[N, 6, 4, 5] x) => (float[] y) {{ y = ConvTranspose <{attributes}> (x, w, b) }}"
    outputs = shape[1] * int((re.findall(r"group = (\d)", attributes) or ["1"])[0])
    weights = {"w": weight(*shape), "b": weight(outputs)}
    graph, plain = pipelined(body, weights), graph_of(body, weights=weights)
    assert "ConvTranspose" not in [node.kind for node in graph.nodes]
    feeds = random_feeds(plain, N=2)
    assert_close(interpret(graph, feeds), interpret(plain, feeds))


@pytest.mark.parametrize(
    ("attributes", "shape", "reason"),
    [
        ("strides = [2, 2], dilations = [1, 2]", (6, 4, 2, 2), "dilated"),
        ("strides = [2, 2], output_padding = [1, 1]", (6, 4, 2, 2), "wider"),
    ],
)
def test_others_stay_and_say_why(attributes: str, shape: Any, reason: str) -> None:
    body = f"(float[1, 6, 3, 3] x) => (float[] y) {{ y = ConvTranspose <{attributes}> (x, w) }}"
    weights = {"w": weight(*shape)}
    graph = graph_of(body, weights=weights)
    feeds = random_feeds(graph)
    canonicalise(graph)
    expected = interpret(graph, feeds)
    run_pipeline(graph)
    assert "ConvTranspose" in [node.kind for node in graph.nodes]
    assert any(reason in item.reason for item in graph.decisions if not item.made)
    assert_close(interpret(graph, feeds), expected)


def test_depth_to_space_behind_a_convolution_stays_channels_last() -> None:
    for mode in ("DCR", "CRD"):
        body = f"""(float[N, 3, 4, 5] x) => (float[] y) {{
            a = Conv (x, w) y = DepthToSpace <blocksize = 2, mode = "{mode}"> (a) }}"""
        weights = {"w": weight(12, 3, 1, 1)}
        check(body, sizes={"N": 2}, weights=weights)
        graph = pipelined(body, weights)
        assert "DepthToSpace" not in [node.kind for node in graph.nodes]
