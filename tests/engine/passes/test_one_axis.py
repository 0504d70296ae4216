"""Networks over one axis: their layers fuse as those over images do, and mean the same."""

from __future__ import annotations

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.passes import run_pipeline
from engine.passes.lift_unit_axes import lift_unit_axes
from tests.engine.small_models import assert_close, check, graph_of, random_feeds

RNG = np.random.default_rng(2)
BODIES = {
    "a residual block": (
        """c = Conv <pads = [1, 1]> (x, w) r = Relu (c) d = Conv <pads = [1, 1]> (r, v)
        n = Mul (d, g) e = Add (n, c) f = Relu (e) y = Conv <pads = [1, 1]> (f, v)""",
        ["FusedConv", "Region", "FusedConv", "FusedConv"],
    ),
    "an upsampling": (
        """c = Conv <pads = [1, 1]> (x, w) r = LeakyRelu (c)
        d = ConvTranspose <strides = [2], pads = [1, 1]> (r, u) f = LeakyRelu (d)
        y = Conv <pads = [1, 1]> (f, v)""",
        ["FusedConv", "FusedConv", "Region", "FusedConv"],
    ),
    "a gate": (
        """c = Conv <pads = [1, 1]> (x, w) a, b = Split <axis = 1> (c) s = Sigmoid (b)
        g2 = Mul (a, s) y = Conv <pads = [1, 1]> (g2, z)""",
        ["FusedConv", "Region", "FusedConv"],
    ),
}
WEIGHTS = {
    name: (RNG.standard_normal(shape) / 4).astype(np.float32)
    for name, shape in {
        "w": (8, 6, 3),
        "v": (8, 8, 3),
        "u": (8, 8, 4),
        "z": (5, 4, 3),
        "g": (8, 1),
    }.items()
}


@pytest.mark.parametrize("name", BODIES)
def test_layers_join_and_only_the_edges_are_turned(name: str) -> None:
    body, expected = BODIES[name]
    text = f"(float[N, 6, L] x) => (float[] y) {{ {body} }}"
    graph, plain = (graph_of(text, weights=WEIGHTS) for _ in range(2))
    run_pipeline(graph, checked=True)
    feeds = random_feeds(plain, N=2, L=9)
    assert_close(interpret(graph, feeds), interpret(plain, feeds))
    kinds = [node.kind for node in graph.nodes if node.kind not in ("View", "Transpose")]
    assert kinds == expected
    assert sum(node.kind == "Transpose" for node in graph.nodes) == 2


def test_compiled_they_mean_the_same() -> None:
    body, _ = BODIES["an upsampling"]
    text = f"(float[N, 6, L] x) => (float[] y) {{ {body} }}"
    check(text, sizes={"N": 2, "L": 9}, weights=WEIGHTS)


def test_views_of_what_is_no_convolution_stay() -> None:
    text = """(float[N, 1, 5, 6] x) => (float[] y) <int64[1] a = {1}> {
        v = Squeeze (x, a) y = Relu (v) }"""
    graph = graph_of(text)
    assert not lift_unit_axes(graph)
