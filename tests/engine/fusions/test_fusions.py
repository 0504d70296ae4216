"""Every fusion: a model on which it fires, as often as it should, with the same results; refusals.

A rule without a sample here fails `test_every_rule_has_a_sample`.
"""

from __future__ import annotations

from typing import Any

import pytest

from engine.debug.interpret import interpret
from engine.fusions import (
    attention,
    attention_operator,
    batch_norm,
    cache_update,
    channel_shuffle,
    concat_parts,
    conv_batch_norm,
    conv_one_axis,
    conv_transpose,
    epilogue,
    gather_rows,
    gemm,
    merge_projections,
    pad_conv,
)
from engine.fusions.fusion import Fusion, Match, Refused, fusion, known
from engine.ir.graph import Graph, Node
from engine.ir.verify import verify
from engine.onnx_io import read
from engine.passes import PIPELINE, canonicalise, run_pipeline
from tests.engine.fusions.samples import NORM, PROJECTIONS, SAMPLES, attention_body, weight
from tests.engine.small_models import assert_close, check, graph_of, model, random_feeds

MODULES = [
    *(attention, attention_operator, batch_norm, cache_update, channel_shuffle, conv_batch_norm),
    *(
        concat_parts,
        conv_one_axis,
        conv_transpose,
        epilogue,
        gather_rows,
        gemm,
        merge_projections,
        pad_conv,
    ),
]
STAGES = ("attention", "projections", "canonical", "layout")
CASES = [(rule, index) for rule, samples in SAMPLES.items() for index in range(len(samples))]


def own_rules() -> list[Fusion]:
    """The engine's own rules; plugins may add others."""
    rules = [item for stage in STAGES for item in known(stage)]
    return [item for item in rules if item.rule.__module__.startswith("engine.fusions.")]


def test_every_rule_has_a_sample() -> None:
    rules = {item.statement for item in own_rules()}
    assert rules == set(SAMPLES)
    assert all(any(sample.fires for sample in samples) for samples in SAMPLES.values())


def test_every_rule_lives_in_a_module_that_is_named_here() -> None:
    homes = {item.rule.__module__ for item in own_rules()}
    assert homes == {module.__name__ for module in MODULES}


@pytest.mark.parametrize(("rule", "index"), CASES)
def test_a_rule_fires_as_often_as_it_should_and_keeps_the_meaning(rule: str, index: int) -> None:
    item = SAMPLES[rule][index]
    graph = read(model(item.body, opset=item.opset, weights=item.weights))
    samples = [
        random_feeds(graph, seed=seed, **sizes)
        for seed, sizes in ((0, {}), (7, {"N": 1, "B": 1, "L": 5, "M": 3, "H": 2, "K": 3}))
    ]
    expected = [interpret(graph, feeds) for feeds in samples]
    canonicalise(graph, checked=True)
    for step in PIPELINE:
        step(graph)
        verify(graph)
        for feeds, wanted in zip(samples, expected):
            assert_close(interpret(graph, feeds), wanted)
    fired = [d for d in graph.decisions if d.rule == rule and d.made]
    assert len(fired) == item.fires
    assert all(decision.nodes for decision in fired)


@pytest.mark.parametrize(("rule", "index"), CASES)
def test_an_engine_with_the_fusion_is_right(rule: str, index: int) -> None:
    item = SAMPLES[rule][index]
    check(item.body, opset=item.opset, weights=item.weights)


@pytest.mark.parametrize(
    ("middle", "inputs", "reason"),
    [
        ("p = Softmax <axis = 1> (s)", "", "not over the keys"),
        ("e = Exp (s) p = Softmax <axis = -1> (e)", "", "Exp stands between the products"),
        ("d = Mul (s, f) p = Softmax <axis = -1> (d)", ", float[L] f", "no number"),
        (
            "m = Add (s, f) p = Softmax <axis = -1> (m)",
            ", float[B, 1, L, 1] f",
            "does not cover the keys",
        ),
        (
            "d = Mul (s, scale) m = Add (d, f) e = Mul (m, scale) p = Softmax <axis = -1> (e)",
            ", float[L, L] f",
            "Add stands between",
        ),
    ],
)
def test_a_near_miss_of_attention_says_why(middle: str, inputs: str, reason: str) -> None:
    body = attention_body("float[B, L, 8] x" + inputs, middle)
    graph = graph_of(body, weights=PROJECTIONS)
    run_pipeline(graph)
    refused = [d for d in graph.decisions if not d.made]
    assert any(reason in decision.reason for decision in refused), [d.reason for d in refused]
    assert all(decision.reason and decision.nodes for decision in refused)
    assert not graph.each("FusedAttention")
    check(body, weights=PROJECTIONS)


def test_scores_divided_by_nothing_do_not_break_the_build() -> None:
    body = attention_body(middle="d = Div (s, zero) p = Softmax <axis = -1> (d)")
    graph = graph_of(body.replace("float scale = {2}", "float zero = {0}"), weights=PROJECTIONS)
    run_pipeline(graph, checked=True)
    assert graph.outputs


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        (
            "(float[N, 3, 6, 6] x, float[6, 3, 3, 3] w) => (float[] y) {"
            " a = Conv (x, w) y = BatchNormalization (a, g, b, m, v) }",
            {**NORM, "b": weight(6)},
            "filters or statistics are not constant",
        ),
        (
            "(float[N, 6] x, float[6] g) => (float[] y) { y = BatchNormalization (x, g, b, m, v) }",
            {"b": NORM["g"], "m": NORM["m"], "v": NORM["v"]},
            "statistics are not constant",
        ),
        (
            "(float[N, 5] x, float[N, 1] r) => (float[] y) { a = MatMul (x, w) y = Add (a, r) }",
            {"w": weight(5, 7)},
            "which no epilogue can",
        ),
        (
            "(float[N, 5] x) => (float16[] y) { a = MatMul (x, w) y = Cast <to = 10> (a) }",
            {"w": weight(5, 7)},
            "changes the type",
        ),
        (
            "(float[N, 5] x) => (float[] y) { a = MatMul (x, w) r = Exp (a) y = Add (r, q)"
            " q = Neg (a) }".replace(" y = Add (r, q) q = Neg (a)", " q = Neg (a) y = Add (r, q)"),
            {"w": weight(5, 7)},
            "",
        ),
    ],
)
def test_a_near_miss_says_why_and_the_engine_is_right(
    body: str, weights: dict[str, Any], reason: str
) -> None:
    graph = graph_of(body, weights=weights)
    run_pipeline(graph, checked=True)
    assert any(reason in d.reason for d in graph.decisions if not d.made) or not reason
    check(body, weights=weights)


def test_two_rules_cannot_state_the_same() -> None:
    def rule(graph: Graph, node: Node) -> Match | Refused | None:
        return None

    with pytest.raises(ValueError, match="two fusions state"):
        fusion("gemm(a, b, c) => a @ b + c", "Gemm")(rule)


def test_a_rule_that_cannot_decide_refuses_instead_of_failing() -> None:
    body = "(float[...] x, float[7, 5] w) => (float[] y) { y = Gemm <transB = 1> (x, w) }"
    graph = graph_of(body.replace("[...]", "[N, 5]"))
    run_pipeline(graph, checked=True)
    assert graph.decisions


def test_a_softmax_between_two_weights_is_no_attention() -> None:
    body = """(float[N, M, 4] x) => (float[] y) {
        a = MatMul (x, w) s = Softmax <axis = -1> (a) y = MatMul (s, v)
    }"""
    given = {"w": weight(4, 5), "v": weight(5, 4)}
    graph, plain = graph_of(body, weights=given), graph_of(body, weights=given)
    run_pipeline(graph, checked=True)
    feeds = random_feeds(plain)
    assert_close(interpret(graph, feeds), interpret(plain, feeds))
    assert "FusedAttention" not in [node.kind for node in graph.nodes]
