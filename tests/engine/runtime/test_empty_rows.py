"""Reductions over rows without an element give what the operators mean, compiled too."""

from __future__ import annotations

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.onnx_io import read
from engine.passes import run_pipeline
from engine.tactics.nvrtc_region import NvrtcRegion
from engine.target import describe
from tests.cuda_layer import feed, layer, meaning, run_candidate
from tests.engine.small_models import assert_close, built, model

KINDS = ("Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare")


@pytest.mark.parametrize("kind", ["float", "float16", "double"])
@pytest.mark.parametrize("mode", ["wait", "never"])
def test_on_a_cpu(kind: str, mode: str) -> None:
    names = ", ".join(f"{kind}[] y{place}" for place in range(len(KINDS)))
    body = " ".join(
        f"y{place} = Reduce{name} <keepdims = 0> (x, a)" for place, name in enumerate(KINDS)
    )
    text = f"({kind}[4, N] x) => ({names}) {{ {body} }}"
    proto = model(text, opset=18, weights={"a": np.array([1], np.int64)})
    net = built(proto, compile=mode)
    dtype = {"float": np.float32, "float16": np.float16, "double": np.float64}[kind]
    for length in (5, 0):
        feeds = {"x": np.ones((4, length), dtype)}
        assert_close(net(feeds), interpret(read(proto), feeds))


def test_what_else_reads_the_row_sees_nothing() -> None:
    text = """(float[4, N] x, float[4, 1] s) => (float[] y, float[] z) {
        m = ReduceMax <axes = [1]> (x) y = Add (m, s) z = Sub (x, m) }"""
    proto = model(text, opset=17)
    feeds = {"x": np.ones((4, 0), np.float32), "s": np.ones((4, 1), np.float32)}
    assert_close(built(proto)(feeds), interpret(read(proto), feeds))


@pytest.mark.parametrize("name", KINDS)
def test_on_a_gpu(name: str) -> None:
    text = f"(float[4, N] x) => (float[] y) {{ y = Reduce{name} <axes = [1]> (x) }}"
    graph = read(model(text, opset=11))
    run_pipeline(graph)
    (found,) = [node for node in graph.nodes if node.kind == "Region"]
    (dims,) = [value.tensor.dims for value in found.inputs if value is not None]
    graph, node = layer(found.op, [feed(np.zeros((4, 0), np.float32), dims)])
    offered = NvrtcRegion().offers(node, {"N": 64}, describe("cuda:sm90"))
    assert isinstance(offered, list) and offered
    expected = meaning(node)
    for candidate in offered:
        np.testing.assert_array_equal(run_candidate(graph, node, candidate, {"N": 0}), expected)
