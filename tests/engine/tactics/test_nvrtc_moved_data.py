"""What cuts, pads, repeats, picks or masks elements has kernels on a GPU that give the meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.ir.graph import Graph, Node, Value
from engine.onnx_io import read
from engine.passes import run_pipeline
from engine.tactics import candidates
from engine.target import describe
from tests.cuda_layer import Feed, constant, feed, layer, meaning, run_candidate
from tests.engine.small_models import model, random_feeds

TARGET = describe("cuda:sm90")
POINT = {"N": 3}
RNG = np.random.default_rng(11)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


AROUND = numbers(0, 0, 2, 1, 0, 0, 1, 2)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "filled": ("y = Pad (x, p)", {"p": numbers(0, -1, 2, 1, 1, 3, -1, 2)}),
    "reflected": ('y = Pad <mode = "reflect"> (x, p)', {"p": AROUND}),
    "continued": ('y = Pad <mode = "edge"> (x, p)', {"p": AROUND}),
    "repeated": ("y = Tile (x, p)", {"p": numbers(1, 2, 1, 3)}),
    "a triangle": ("y = Trilu <upper = 0> (x)", {}),
    "backwards": (
        "y = Slice (x, s, e, a, d)",
        {"s": numbers(-1), "e": numbers(-99), "a": numbers(0), "d": numbers(-1)},
    ),
    "pixels": ('y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)', {}),
    "channels": ("y = SpaceToDepth <blocksize = 2> (x)", {}),
    "planes": (
        "y = InstanceNormalization (x, s, b)",
        {"s": np.arange(4, dtype=np.float32), "b": np.ones(4, np.float32)},
    ),
    "gates": ("a, b = Split <axis = 1> (x) s = Tanh (a) y = Mul (s, b)", {}),
    "one on": (
        "y = OneHot (x, d, v)",
        {"d": np.array(3, np.int64), "v": np.array([-1, 2], np.float32)},
    ),
    "by index": (
        "y = GatherElements <axis = 2> (x, i)",
        {"i": RNG.integers(-6, 6, (2, 4, 5, 8))},
    ),
}


def single_layer(graph: Graph, feeds: dict[str, Any]) -> tuple[Graph, Node]:
    """The only node of a graph of views beside it, as a layer of its own."""
    (node,) = [node for node in graph.nodes if node.kind != "View"]

    def given(value: Value | None) -> Feed | None:
        if value is None:
            return None
        if value.constant is not None:
            return constant(value.constant)
        while value.producer is not None:
            (source,) = value.producer.inputs
            assert source is not None
            value = source
        return feed(feeds[value.name], value.tensor.dims)

    return layer(node.op, [given(value) for value in node.inputs])


def optimised(name: str, precision: str = "fp32") -> Graph:
    body, weights = MODELS[name]
    text = f"(float[N, 4, 6, 8] x) => (float[] y) {{ {body} }}"
    graph = read(model(text, opset=17, weights=weights))
    run_pipeline(graph, precision=precision)
    return graph


@pytest.mark.parametrize("name", MODELS)
def test_kernels_give_the_meaning(name: str) -> None:
    graph = optimised(name)
    graph, node = single_layer(graph, random_feeds(graph, **POINT))
    offered, _ = candidates(node, ("nvrtc",), POINT, TARGET)
    (expected,) = meaning(node)
    for candidate in (offered[0], offered[-1]):
        (found,) = run_candidate(graph, node, candidate, POINT)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_no_node_is_left_to_the_host(name: str, precision: str) -> None:
    for node in optimised(name, precision).nodes:
        if node.kind != "View":
            offered, refused = candidates(node, ("triton", "nvrtc"), POINT, TARGET)
            assert offered, (node.kind, refused)
