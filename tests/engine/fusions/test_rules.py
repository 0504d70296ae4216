"""Every fusion fires where its sample says, changes no number, and says why when it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from engine.building import optimise
from engine.debug.interpret import interpret
from engine.fusions.fusion import known
from engine.ir.graph import Graph
from engine.ir.verify import verify
from tests.engine.small_models import graph_of, random_feeds

RNG = np.random.default_rng(3)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


STATISTICS = {**weights(g=(8,), b=(8,), m=(8,)), "v": np.full(8, 1.5, np.float32)}
CONV = weights(w=(8, 4, 3, 3))
HEADS = weights(wq=(16, 16), wk=(16, 16), wv=(16, 16), bq=(16,), bk=(16,), bv=(16,))
SHAPE4 = {"s4": np.array([2, 6, 4, 4], np.int64), "s3": np.array([2, 6, 16], np.int64)}


def heads(name: str, perm: str) -> str:
    return f"""p{name} = MatMul(x, w{name}) b_{name} = Add(p{name}, b{name})
        r{name} = Reshape(b_{name}, s4) {name} = Transpose<perm=[{perm}]>(r{name})"""


ATTENTION = f"""(float[2, 6, 16] x, float[2, 1, 1, 6] mask) => (float[] y) {{
    {heads("q", "0, 2, 1, 3")}
    {heads("k", "0, 2, 3, 1")}
    {heads("v", "0, 2, 1, 3")}
    scores = MatMul(q, k) half = Constant<value = float {{0.5}}>()
    scaled = Mul(scores, half) masked = Add(scaled, mask)
    p = Softmax<axis=-1>(masked) o = MatMul(p, v)
    t = Transpose<perm=[0, 2, 1, 3]>(o) y = Reshape(t, s3) }}"""

#: A part of the rule's statement -> a model in which it fires, its weights, how often it fires.
SAMPLES = {
    "batch_norm(conv(x, w) + b)": (
        "(float[1, 4, 6, 6] x) => (float[] y) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {**CONV, **STATISTICS},
        1,
    ),
    "batch_norm(x)": (
        "(float[1, 8, 6, 6] x) => (float[] y) { y = BatchNormalization(x, g, b, m, v) }",
        STATISTICS,
        1,
    ),
    "conv(pad(x, 0), w)": (
        "(float[1, 4, 6, 6] x) => (float[] y) { p = Pad(x, pads) y = Conv(p, w) }",
        {**CONV, "pads": np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64)},
        1,
    ),
    "conv1d(x, w)": (
        "(float[2, 4, 20] x) => (float[] y) { y = Conv<strides=[2], pads=[1, 1]>(x, w) }",
        weights(w=(6, 4, 3)),
        1,
    ),
    "gemm(a, b, c)": (
        "(float[3, 4] x) => (float[] y) { y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, c) }",
        weights(w=(5, 4), c=(5,)),
        1,
    ),
    "matmul(a, b)": (
        "(float[2, 3, 4] x, float[2, 4, 5] z) => (float[] y) { y = MatMul(x, z) }",
        {},
        1,
    ),
    "reshape(swap(reshape(x)))": (
        """(float[1, 6, 4, 4] x) => (float[] y) { a = Reshape(x, five)
            b = Transpose<perm=[0, 2, 1, 3, 4]>(a) y = Reshape(b, four) }""",
        {"five": np.array([1, 2, 3, 4, 4], np.int64), "four": np.array([1, 6, 4, 4], np.int64)},
        1,
    ),
    "f(contraction, operands)": (
        """(float[3, 4] x, float[3, 5] r) => (float[] y) {
            p = MatMul(x, w) b = Add(p, c) a = Relu(b) y = Add(a, r) }""",
        weights(w=(4, 5), c=(5,)),
        1,
    ),
    "softmax(q @ k^T": (ATTENTION, {**HEADS, **SHAPE4}, 1),
    "q, k, v = x @ wq": (ATTENTION, {**HEADS, **SHAPE4}, 1),
    "Attention(q, k, v, mask)": (
        "(float[2, 3, 5, 8] q, float[2, 3, 7, 8] k, float[2, 3, 7, 8] v) => (float[] y) "
        "{ y = Attention(q, k, v) }",
        {},
        1,
    ),
}


def optimised(body: str, arrays: dict[str, np.ndarray]) -> tuple[Graph, Graph]:
    before = graph_of(body, opset=23, weights=arrays)
    after = optimise(graph_of(body, opset=23, weights=arrays), checked=True)
    return before, after


@pytest.mark.parametrize("statement", SAMPLES, ids=str)
def test_a_rule_fires_as_often_as_its_sample_says_and_keeps_every_number(statement: str) -> None:
    body, arrays, times = SAMPLES[statement]
    before, after = optimised(body, arrays)
    verify(after)
    made = [d for d in after.decisions if d.made and d.rule.startswith(statement)]
    assert len(made) == times
    assert all(decision.nodes for decision in made)
    feeds = random_feeds(before)
    expected, found = interpret(before, feeds), interpret(after, feeds)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=2e-4, atol=2e-5)


def test_every_rule_has_a_sample() -> None:
    """attention, attention_operator, batch_norm, channel_shuffle, conv_batch_norm, epilogue, gemm,
    conv_one_axis, merge_projections and pad_conv are the files whose rules are sampled above.
    """
    stages = ("attention", "projections", "canonical", "layout")
    statements = [item.statement for stage in stages for item in known(stage)]
    assert len(statements) == len(set(statements)) >= 11
    silent = [s for s in statements if not any(s.startswith(part) for part in SAMPLES)]
    assert not silent


@pytest.mark.parametrize(
    ("body", "arrays", "reason"),
    [
        (
            """(float[1, 4, 6, 6] x) => (float[] y, float[] z) {
                c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) z = Relu(c) }""",
            {**CONV, **STATISTICS},
            "something else reads the convolution's result",
        ),
        (
            '(float[1, 4, 6, 6] x) => (float[] y) { p = Pad<mode="reflect">(x, pads) '
            "y = Conv(p, w) }",
            {**CONV, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
            "the padding is no constant border",
        ),
        (
            "(float[4, 3] x) => (float[] y) { y = Gemm<transA=1>(x, w) }",
            weights(w=(4, 5)),
            "A is transposed",
        ),
        (
            """(float[2, 6, 8] q, float[2, 8, 6] k, float[2, 6, 8] v) => (float[] y, float[] s) {
                s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v) }""",
            {},
            "something else reads the scores",
        ),
    ],
)
def test_a_near_miss_is_refused_with_its_reason(
    body: str, arrays: dict[str, np.ndarray], reason: str
) -> None:
    before, after = optimised(body, arrays)
    reasons = [decision.reason for decision in after.decisions if not decision.made]
    assert any(reason in item for item in reasons), reasons
    feeds = random_feeds(before)
    for name, wanted in interpret(before, feeds).items():
        np.testing.assert_allclose(interpret(after, feeds)[name], wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("body", "label"),
    [
        (
            """(float[3, 5] x) => (float[] y) { r = Constant<value = float {1.4142135}>()
                one = Constant<value = float {1.0}>() half = Constant<value = float {0.5}>()
                d = Div(x, r) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half) }""",
            "gelu",
        ),
        ("(float[3, 5] x) => (float[] y) { s = Sigmoid(x) y = Mul(x, s) }", "silu"),
        ('(float[3, 5] x) => (float[] y) { y = Gelu<approximate="tanh">(x) }', "gelu_tanh"),
    ],
)
def test_activations_are_known_by_name(body: str, label: str) -> None:
    before, after = optimised(body, {})
    if label != "gelu_tanh":  # one operator needs no merging
        assert any(d.rule.endswith(label) for d in after.decisions if d.made)
    feeds = random_feeds(before)
    for name, wanted in interpret(before, feeds).items():
        np.testing.assert_allclose(interpret(after, feeds)[name], wanted, rtol=2e-4, atol=2e-5)
