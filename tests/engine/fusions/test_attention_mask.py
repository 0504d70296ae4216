"""What masks in exporters' forms become: attributes where they can, else numbers to add."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.fusions.attention_mask import read_mask
from engine.ir.graph import Graph
from engine.ops.fused_attention import FusedAttention
from engine.passes import run_pipeline
from tests.engine.small_models import assert_close, graph_of, random_feeds

RNG = np.random.default_rng(5)
PROJECTION = {"w": (RNG.standard_normal((8, 24)) / 3).astype(np.float16)}
LOW = np.finfo(np.float16).min


def body(inputs: str, mask: str, after: str = "p = Softmax <axis = -1> (m)") -> str:
    """Two heads of four in float16, the scale split over queries and keys, heads merged, masked.

    ``mask`` makes the masked scores m from the scores s.
    """
    return f"""(float16[B, L, 8] x{inputs}) => (float16[] y)
    <int64[4] split = {{0, 0, 2, 4}}, int64[3] join = {{0, 0, 8}}, int64[3] flat = {{-1, 5, 4}},
    int64[4] apart = {{-1, 2, 4, 5}}> {{
        z = MatMul (x, w) q0, k0, v0 = Split <axis = 2, num_outputs = 3> (z)
        q1 = Reshape (q0, split) k1 = Reshape (k0, split) v1 = Reshape (v0, split)
        q2 = Transpose <perm = [0, 2, 1, 3]> (q1) k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
        v = Transpose <perm = [0, 2, 1, 3]> (v1)
        k3 = Reshape (k2, flat) k4 = Transpose <perm = [0, 2, 1]> (k3) k5 = Reshape (k4, apart)
        q = Mul (q2, root) k = Mul (k5, root) s = MatMul (q, k)
        {mask}
        {after}
        o = MatMul (p, v) t = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (t, join) }}"""


def fused(text: str, **weights: Any) -> tuple[FusedAttention, Graph]:
    """The one attention of a model of five tokens, which keeps its meaning."""
    text = text.replace("[B, L", "[B, 5").replace(", L]", ", 5]")
    weights |= {**PROJECTION, "root": np.array(0.7071, np.float16)}
    before, graph = (graph_of(text, opset=21, weights=weights) for _ in range(2))
    feeds = random_feeds(before, seed=3)
    if "seen" in feeds:  # of a query that sees nothing, exporters' forms say nothing of use
        feeds["seen"][:, 0] = 1
    run_pipeline(graph, checked=True)
    assert_close(interpret(graph, feeds), interpret(before, feeds), 4e-3)
    (node,) = graph.each("FusedAttention")
    assert isinstance(node.op, FusedAttention)
    assert node.inputs[0] is node.inputs[1] is node.inputs[2], "heads are read where they lie"
    return node.op, graph


TRIANGLE = np.tri(5, dtype=bool)


@pytest.mark.parametrize(
    ("mask", "weights"),
    [
        ("m = Add (s, c)", {"c": np.where(TRIANGLE, 0, -np.inf).astype(np.float16)}),
        ("m = Add (c, s)", {"c": np.where(TRIANGLE, 0, LOW).astype(np.float16)[None, None]}),
        ("m = Where (c, s, low)", {"c": TRIANGLE[None], "low": np.array([LOW])}),
        (
            """n = Shape <start = 0, end = 1> (x) more = Concat <axis = 0> (n, rest)
            c = Expand (small, more) a = Where (c, none, low) m = Add (s, a)""",
            {
                "small": TRIANGLE[None, None],
                "rest": np.array([1, 5, 5]),
                "none": np.float16(0) * np.ones(()),
                "low": np.array(LOW),
            },
        ),
        (
            """n = Shape <start = 0, end = 1> (x) more = Concat <axis = 0> (n, rest)
            row = Expand (numbers, more) sums = CumSum (row, last)
            across = Unsqueeze (sums, two) down = Unsqueeze (sums, three)
            le = LessOrEqual (across, down) c = And (le, yes) all = Unsqueeze (c, one)
            a = Where (all, none, low) m = Add (s, a)""",
            {
                "numbers": np.ones((1, 5), np.int64),
                "rest": np.array([5]),
                "last": np.array(-1),
                "one": np.array([1]),
                "two": np.array([1]),
                "three": np.array([2]),
                "yes": np.array(True),
                "none": np.array(0, np.float16),
                "low": np.array(LOW),
            },
        ),
    ],
    ids=["added", "least", "chosen", "expanded", "computed"],
)
def test_a_triangle_is_an_attribute(mask: str, weights: dict[str, Any]) -> None:
    typed = {k: v.astype(np.float16) if v.dtype == float else v for k, v in weights.items()}
    op, _ = fused(body("", mask), **typed)
    assert (op.causal, op.past, op.mask, op.position) == (True, 0, "none", "none")


def test_a_triangle_repeated_for_each_sample_is_one_unless_they_differ() -> None:
    graph = Graph()
    masks = np.broadcast_to(np.where(TRIANGLE, 0, LOW), (3, 1, 5, 5)).astype(np.float16)
    same = read_mask(graph, graph.constant("same", masks), (3, 2, 5, 5))
    assert same.causal and not same.added
    other = masks.copy()
    other[1, 0, 0, 4] = 0
    differs = read_mask(graph, graph.constant("other", other), (3, 2, 5, 5))
    assert not differs.causal and len(differs.added) == 1


def test_a_triangle_of_open_size() -> None:
    text = """(float16[H, L, 4] q, float16[H, 4, L] k, float16[H, L, 4] v) => (float16[] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] next = {1}> {
        s = MatMul (q, kt) n0 = Shape <start = 1, end = 2> (q) n = Squeeze (n0)
        r = Range (zero, n, one) a = Unsqueeze (r, first) b = Unsqueeze (r, next)
        c = LessOrEqual (a, b) m0 = Where (c, none, low) m = Add (s, m0)
        p = Softmax <axis = -1> (m) y = MatMul (p, v) }""".replace("kt)", "kk)").replace(
        "s = MatMul", "kk = Transpose <perm = [0, 2, 1]> (kr) s = MatMul"
    )
    text = text.replace("float16[H, 4, L] k,", "float16[H, L, 4] kr,")
    weights = {"none": np.array(0, np.float16), "low": np.array(LOW)}
    before, graph = (graph_of(text, weights=weights) for _ in range(2))
    run_pipeline(graph, checked=True)
    (node,) = graph.each("FusedAttention")
    assert isinstance(node.op, FusedAttention)
    assert (node.op.causal, node.op.mask) == (True, "none")
    feeds = random_feeds(before, L=6)
    assert_close(interpret(graph, feeds), interpret(before, feeds), 4e-3)


def test_keys_hidden_by_a_condition_are_read_as_one_row() -> None:
    """The condition is joined with one that always holds, and NaN is guarded against."""
    guard = "p0 = Softmax <axis = -1> (m) bad = IsNaN (p0) p = Where (bad, none, p0)"
    mask = """b = Cast <to = 9> (seen) c0 = Unsqueeze (b, places) c = And (yes, c0)
        a = Where (c, none, low) m = Add (s, a)"""
    op, _ = fused(
        body(", int64[B, L] seen", mask, guard),
        places=np.array([1, 2]),
        yes=np.ones((1, 1, 5, 1), bool),
        none=np.array(0, np.float16),
        low=np.array(LOW),
    )
    assert (op.causal, op.mask, op.guarded) == (False, "key", True)


def test_a_triangle_and_hidden_keys_together() -> None:
    mask = """b = Cast <to = 9> (seen) c0 = Unsqueeze (b, places) c = And (triangle, c0)
        a = Where (c, none, low) m = Add (s, a)"""
    op, _ = fused(
        body(", int64[B, L] seen", mask),
        places=np.array([1, 2]),
        triangle=TRIANGLE[None, None],
        none=np.array(0, np.float16),
        low=np.array(LOW),
    )
    assert (op.causal, op.mask) == (True, "key")


def test_a_softmax_in_float32_keeps_what_is_read_and_written_narrow() -> None:
    mask = "wide = Cast <to = 1> (s) m = Add (wide, c)"
    after = "p0 = Softmax <axis = -1> (m) p = Cast <to = 10> (p0)"
    op, _ = fused(body(", float[B, 1, 1, L] c", mask, after))
    assert op.mask == "key" and op.dtype.value == "float16"


def test_keys_up_to_a_position() -> None:
    mask = "c = Less (index, at) a = Where (c, none, low) m = Add (s, a)"
    op, _ = fused(
        body(", int64[1] at", mask),
        index=np.arange(-1, 4),
        none=np.array(0, np.float16),
        low=np.array(LOW),
    )
    assert (op.position, op.past, op.mask, op.causal) == ("one", 0, "none", False)


def test_a_mask_that_only_hides_some_constants_stays_a_mask() -> None:
    pattern = np.where(np.eye(5), 0, LOW).astype(np.float16)
    op, _ = fused(body("", "m = Add (s, c)"), c=pattern)
    assert (op.causal, op.mask) == (False, "full")


def test_scores_replaced_under_an_open_condition_are_left_alone() -> None:
    text = body(", bool[B, 1, 1, L] c", "m = Where (c, s, low)").replace("L]", "5]")
    text = text.replace("[B, L, 8]", "[B, 5, 8]")
    weights = {**PROJECTION, "root": np.array(0.7, np.float16), "low": np.array(LOW)}
    graph = graph_of(text, weights=weights)
    run_pipeline(graph)
    assert not graph.each("FusedAttention")
    assert any("replaced under a condition" in d.reason for d in graph.decisions if not d.made)
