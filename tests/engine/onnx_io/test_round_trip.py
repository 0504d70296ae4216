"""A graph written as ONNX and read again means the same, before and after the passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.debug.interpret import interpret
from engine.onnx_io import read, write, writer
from engine.passes import canonicalise, run_pipeline
from tests.engine.small_models import assert_close, graph_of, model, random_feeds

MODELS = {
    "bodies": """(int64 n, float[2, 3] x) => (float[] y, float[] all) <float[3] k = {1, 2, 3}> {
        yes = Constant <value = bool {1}> ()
        y, all = Loop (n, yes, x) <body = step (int64 i, bool on, float[2, 3] v)
            => (bool again, float[2, 3] next, float[] out) {
            again = Identity (on)
            next = Add (v, k)
            out = If (on) <then_branch = one () => (float[] a) { a = Mul (next, x) },
                           else_branch = two () => (float[] b) { b = Neg (v) }>
        }>
    }""",
    "network": """(float[N, 3, 8, 8] x) => (float[] y, int64[] s) <float[4, 3, 1, 1] w =
        {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[2] flat = {0, -1}> {
        a = Conv (x, w)
        b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
        y = Reshape (b, flat)
        s = Shape (y)
    }""",
    "names": "(float[N] x) => (float[] y, float[] z) { y = Identity (x) z = Identity (y) }",
    "sequences": """(float[N] x) => (float[] y) {
        s = SequenceConstruct (x, x) y = ConcatFromSequence <axis = 0> (s) }""",
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("canonical", [False, True])
def test_what_is_written_is_read_as_it_was(name: str, canonical: bool, tmp_path: Path) -> None:
    graph = graph_of(MODELS[name])
    feeds = random_feeds(graph)
    expected = interpret(graph, feeds)
    if canonical:
        canonicalise(graph)
    # Views are operators of our own, which no other reader knows.
    if not any(node.kind == "View" for _, node in graph.walk()):
        write(graph, tmp_path / "again.onnx")
        onnx.checker.check_model(tmp_path / "again.onnx")
        assert_close(interpret(read(tmp_path / "again.onnx"), feeds), expected)


@pytest.mark.parametrize("name", MODELS)
def test_an_optimised_graph_is_written_for_other_tools(name: str, tmp_path: Path) -> None:
    graph = read(model(MODELS[name]))
    run_pipeline(graph)
    write(graph, tmp_path / "optimised.onnx")
    written = onnx.load(tmp_path / "optimised.onnx")
    assert [item.name for item in written.graph.output] == graph.output_names
    assert len(written.graph.node) >= len(graph.nodes)


def test_great_weights_go_to_a_file_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "INLINE_NBYTES", 1000)
    w = np.arange(4096, dtype=np.float32).reshape(64, 64)
    graph = graph_of("(float[N, 64] x) => (float[] y) { y = MatMul (x, w) }", weights={"w": w})
    write(graph, tmp_path / "great.onnx")
    assert (tmp_path / "great.onnx").stat().st_size < 1000
    assert (tmp_path / "great.onnx.data").stat().st_size >= w.nbytes
    (weight,) = read(tmp_path / "great.onnx").constants()
    assert isinstance(weight.constant, np.memmap)
    np.testing.assert_array_equal(weight.constant, w)
