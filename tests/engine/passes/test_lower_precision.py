"""Float16 for a float32 model: close in value, visible as casts, with reasons for what stays."""

from __future__ import annotations

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.types import DType
from engine.ir.verify import verify
from engine.passes import canonicalise, run_pipeline
from engine.passes.lower_precision import lower_precision
from tests.engine.passes.test_passes import SAMPLES, feeds_of, sample
from tests.engine.small_models import assert_close, graph_of, random_feeds


@pytest.mark.parametrize("name", SAMPLES)
def test_results_differ_by_the_rounding_of_float16(name: str) -> None:
    graph, plain = sample(name), sample(name)
    feeds = feeds_of(graph)
    expected = interpret(plain, feeds)
    lower_precision(graph)
    verify(graph)
    for _ in range(2):
        found = interpret(graph, feeds)
        for key, wanted in expected.items():
            assert found[key].dtype == wanted.dtype
            if wanted.dtype.kind == "f":
                spread = max(float(wanted.std()), 1e-3)
                assert np.abs(found[key] - wanted).max() <= 0.05 * spread, key
        run_pipeline(graph, checked=True)  # fused, it means the same


def test_everything_between_the_casts_at_the_edges_is_float16() -> None:
    weight = np.full((4, 4), 0.5, np.float32)
    graph = graph_of(
        "(float[N, 4] x) => (float[] y) { a = MatMul (x, w) b = Relu (a) y = MatMul (b, w) }",
        weights={"w": weight},
    )
    lower_precision(graph)
    canonicalise(graph, checked=True)
    kinds = [node.kind for node in graph.nodes]
    assert kinds == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]
    assert graph.inputs[0].tensor.dtype is graph.outputs[0].tensor.dtype is DType.FLOAT32
    inner = [node.outputs[0].tensor.dtype for node in graph.nodes[:-1]]
    assert set(inner) == {DType.FLOAT16}


def test_a_constant_that_float16_cannot_hold_keeps_its_node_in_float32() -> None:
    graph = graph_of(
        "(float[N, 4] x) => (float[] y) { y = Mul (x, w) }",
        weights={"w": np.full((4,), 1e6, np.float32)},
    )
    assert not lower_precision(graph)
    (decision,) = graph.decisions
    assert not decision.made and "%w" in decision.reason


def test_an_operator_that_overflows_is_left_alone_and_named() -> None:
    graph = graph_of("(float[N, 4] x) => (float[] y) { y = Exp (x) }")
    assert not lower_precision(graph)
    assert [item.reason for item in graph.decisions] == ["Exp is computed in float32"]


def test_a_type_that_the_model_takes_from_another_value_stays() -> None:
    graph = graph_of(
        """(float[N, 4] x, float16[4] h) => (float16[N, 4] y, float[N, 4] z) {
            a = CastLike (x, h) y = Add (a, h) b = CastLike (y, x) z = Add (b, x)
        }"""
    )
    run_pipeline(graph, precision="fp16", checked=True)
    types = [value.tensor.dtype for value in graph.outputs]
    assert types == [DType.FLOAT16, DType.FLOAT32]


def test_a_mask_beyond_float16_stays_one_up_to_the_softmax() -> None:
    """A row that sees no key is the mean of all values, in float16 as in float32."""
    text = """(float[B, 2, 4, 8] q, float[B, 2, 4, 8] k, float[B, 2, 4, 8] v, bool[B, 1, 1, 4] seen)
        => (float[] y) {
        turned = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, turned)
        mask = Where (seen, zero, low) m = Add (s, mask) p = Softmax <axis = -1> (m)
        y = MatMul (p, v) }"""
    numbers = {"zero": np.zeros((), np.float32), "low": np.array(-3.4e38, np.float32)}
    graph, plain = (graph_of(text, weights=numbers) for _ in range(2))
    feeds = random_feeds(plain, seed=5)
    feeds["seen"][0] = False
    feeds["seen"][1] = True
    expected = interpret(plain, feeds)
    lower_precision(graph)
    narrow = {n.kind for n in graph.nodes if n.outputs[0].tensor.dtype is DType.FLOAT16}
    assert {"MatMul"} <= narrow and not {"Add", "Where", "Softmax"} & narrow
    assert_close(interpret(graph, feeds), expected, 5e-3)
    run_pipeline(graph, checked=True)
    assert [node.kind for node in graph.nodes].count("FusedAttention") == 1
    assert_close(interpret(graph, feeds), expected, 5e-3)
