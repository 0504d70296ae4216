"""Every pass keeps the meaning of a graph, leaves it consistent, and has nothing to do twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.ir.text import graph_text
from engine.ir.verify import verify
from engine.onnx_io import read
from engine.ops.pointwise import Pointwise
from engine.passes import CANONICALISE, PIPELINE, canonicalise, run_passes, run_pipeline
from engine.passes.choose_layout import choose_layout
from engine.passes.drop_unit_axes import drop_unit_axes
from engine.passes.fold_constants import FOLD_LIMIT_NBYTES, fold_constants
from engine.passes.make_regions import make_regions
from engine.passes.make_views import make_views
from engine.passes.merge_equal import merge_equal
from engine.passes.merge_pointwise import activation_name, merge_pointwise
from engine.passes.move_data import move_data
from engine.passes.move_transposes import move_transposes
from engine.passes.remove_dead import remove_dead
from engine.passes.remove_identity import remove_identity
from engine.passes.rows import REGION_DTYPES, row_form
from tests.engine.small_models import assert_close, check, graph_of, model, random_feeds

RNG = np.random.default_rng(3)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


SAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "convolutions": (
        """(float[N, 3, 9, 9] x) => (float[] y, float[] z) {
            a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b)
            n = BatchNormalization (a, g, b, m, v)
            r = Relu (n)
            d = Conv <group = 8, pads = [0, 1, 2, 1]> (r, k)
            s = Add (d, u)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (s)
            q = AveragePool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (p)
            c = Concat <axis = 1> (q, p)
            y = GlobalAveragePool (c)
            z = LRN <size = 3> (c)
        }""",
        {
            "w": weight(8, 3, 3, 3),
            "b": weight(8),
            "g": weight(8),
            "m": weight(8),
            "v": np.abs(weight(8)) + 1,
            "k": weight(8, 1, 3, 3),
            "u": weight(8, 1, 1),
        },
    ),
    "shapes": (
        """(float[N, L, 12] x) => (float[] y, int64[] s) <int64 zero = {0}, int64 one = {1},
            int64[1] axis = {0}, int64[2] tail = {3, 4}> {
            s = Shape (x)
            n = Gather (s, zero)
            l = Gather (s, one)
            a = Unsqueeze (n, axis)
            b = Unsqueeze (l, axis)
            w = Concat <axis = 0> (a, b, tail)
            h = Reshape (x, w)
            t = Transpose <perm = [0, 2, 1, 3]> (h)
            i = Identity (t)
            u = Transpose <perm = [0, 2, 1, 3]> (i)
            y = Flatten <axis = 2> (u)
        }""",
        {},
    ),
    "elementwise": (
        """(float[N, 6] x, float[6] z) => (float[] y, float[] q, bool[] c) <float two = {2},
            float[1] one = {1}, float half = {0.5}, int64[1] last = {-1}> {
            a = Mul (x, one)
            b = Add (a, z)
            e = Div (b, two)
            f = Erf (e)
            g = Add (f, one)
            h = Mul (b, g)
            y = Mul (h, half)
            m = ReduceMean <keepdims = 1> (y, last)
            d = Sub (y, m)
            v = Mul (d, d)
            w = ReduceSum <keepdims = 0> (v, last)
            q = Sqrt (w)
            c = Greater (y, m)
        }""",
        {},
    ),
    "equal and dead": (
        """(float[N, 4] x) => (float[] y, float[] z) <float[2] k = {1, 2}, float[2] l = {1, 2}> {
            a = Exp (x)
            b = Exp (x)
            dead = Sin (b)
            c = Add (a, b)
            i = Identity (c)
            p = Mul (k, l)
            o = Dropout (i)
            j = Concat <axis = 0> (o)
            y = Cast <to = 1> (j)
            z = Concat <axis = 0> (p, k)
        }""",
        {},
    ),
    "moving data": (
        """(float[N, 4, 6] x, int64[2] i) => (float[] y, float[] z, float[] g) <
            int64[2] start = {1, 0}, int64[2] end = {3, 100}, int64[2] axes = {1, 2},
            int64[2] step = {1, 2}, int64[3] big = {1, 4, 6}> {
            s = Slice (x, start, end, axes, step)
            t = Transpose <perm = [2, 0, 1]> (s)
            y = Tanh (t)
            e = ReduceMax <keepdims = 1> (x, axes)
            z = Expand (e, big)
            g = Gather <axis = 1> (x, i)
        }""",
        {},
    ),
    "bodies": (
        """(bool c, float[N, 4] x) => (float[] y) <float[4] k = {1, 2, 3, 4}> {
            a = Neg (x)
            y = If (c) <
                then_branch = one () => (float[] t) { i = Identity (a) d = Sin (i) t = Add (i, k) },
                else_branch = two () => (float[] e) { m = Mul (k, k) e = Sub (a, m) }>
        }""",
        {},
    ),
    "softmax": (
        """(float[N, 4, 1, 1] x, float[N, 2, 3] z) => (float[] y, float[] q, float[] r) {
            y = Softmax <axis = 1> (x)
            q = LogSoftmax <axis = 1> (z)
            r = Softmax <axis = -1> (z)
        }""",
        {},
    ),
    "attention": (
        """(float[B, L, 8] x, float[B, 1, 1, L] mask) => (float[] y) <int64[4] split = {0, 0, 2, 4},
            int64[3] join = {0, 0, 8}, float scale = {2}> {
            q0 = MatMul (x, wq)
            q1 = Reshape (q0, split)
            q = Transpose <perm = [0, 2, 1, 3]> (q1)
            k0 = MatMul (x, wk)
            k1 = Reshape (k0, split)
            k = Transpose <perm = [0, 2, 3, 1]> (k1)
            v0 = MatMul (x, wv)
            v1 = Reshape (v0, split)
            v = Transpose <perm = [0, 2, 1, 3]> (v1)
            s = MatMul (q, k)
            d = Div (s, scale)
            m = Add (d, mask)
            p = Softmax <axis = -1> (m)
            o = MatMul (p, v)
            t = Transpose <perm = [0, 2, 1, 3]> (o)
            r = Reshape (t, join)
            l = LayerNormalization <axis = -1> (r, g)
            y = Add (l, x)
        }""",
        {"wq": weight(8, 8), "wk": weight(8, 8), "wv": weight(8, 8), "g": weight(8)},
    ),
}
PASSES: dict[str, Callable[[Graph], bool]] = {
    step.__name__: step
    for step in (
        fold_constants,
        remove_identity,
        remove_dead,
        merge_equal,
        make_views,
        drop_unit_axes,
        choose_layout,
        move_transposes,
        merge_pointwise,
        make_regions,
        move_data,
    )
}


def sample(name: str) -> Graph:
    body, weights = SAMPLES[name]
    return read(model(body, weights=weights))


def feeds_of(graph: Graph, seed: int = 0) -> dict[str, Any]:
    return random_feeds(graph, seed=seed, N=2, L=3, B=2)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("step", PASSES)
@pytest.mark.parametrize("canonical", [False, True], ids=["as read", "canonical"])
def test_a_pass_keeps_the_meaning_and_has_nothing_to_do_twice(
    name: str, step: str, canonical: bool
) -> None:
    graph = sample(name)
    feeds = feeds_of(graph)
    expected = interpret(graph, feeds)
    if canonical:
        canonicalise(graph, checked=True)
    before = graph_text(graph)
    changed = PASSES[step](graph)
    verify(graph)
    assert changed or graph_text(graph) == before
    assert_close(interpret(graph, feeds), expected)
    for _ in range(20):
        if not PASSES[step](graph):
            break
    else:
        raise AssertionError(f"{step} never says that it is done")
    verify(graph)
    settled = graph_text(graph)
    assert not PASSES[step](graph) and graph_text(graph) == settled
    assert_close(interpret(graph, feeds), expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_after_each_step_of_the_pipeline_a_graph_means_the_same(name: str) -> None:
    graph = sample(name)
    samples = [feeds_of(graph, seed) for seed in (0, 10)]
    expected = [interpret(graph, feeds) for feeds in samples]
    canonicalise(graph, checked=True)
    for step in PIPELINE:
        step(graph)
        verify(graph)
        for feeds, wanted in zip(samples, expected):
            assert_close(interpret(graph, feeds), wanted)
    assert graph.output_names == list(expected[0])


@pytest.mark.parametrize("name", SAMPLES)
def test_the_whole_pipeline_gives_the_same_graph_from_the_same_model(name: str) -> None:
    first, second = sample(name), sample(name)
    run_pipeline(first, checked=True)
    run_pipeline(second)
    assert graph_text(first) == graph_text(second)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", [0, 1, 4])
def test_engines_of_the_samples_are_right_at_many_sizes(name: str, size: int) -> None:
    body, weights = SAMPLES[name]
    if name in ("shapes", "attention") and size == 0:
        size = 5
    check(body, weights=weights, sizes={"N": size, "B": size, "L": 2})


def kinds(graph: Graph) -> list[str]:
    return [node.kind for node in graph.nodes]


def test_shape_arithmetic_disappears() -> None:
    graph = sample("shapes")
    canonicalise(graph)
    assert set(kinds(graph)) <= {"Shape", "View", "Transpose"}
    assert kinds(graph).count("Transpose") in (0, 2)
    run_pipeline(graph)
    assert "Transpose" not in kinds(graph)


def test_equal_and_dead_nodes_disappear() -> None:
    graph = sample("equal and dead")
    canonicalise(graph)
    assert kinds(graph) == ["Exp", "Add"]
    assert graph.nodes[0].sources == ("Exp_0", "Exp_1")


def test_folding_stops_at_its_limit() -> None:
    count = FOLD_LIMIT_NBYTES // 4 + 1
    graph = graph_of(f"() => (float[] y) <int64[1] n = {{{count}}}> {{ y = ConstantOfShape (n) }}")
    assert not fold_constants(graph) and kinds(graph) == ["ConstantOfShape"]
    graph = graph_of("() => (float[] y) <int64[1] n = {1000}> { y = ConstantOfShape (n) }")
    assert fold_constants(graph) and not graph.nodes


def test_what_fails_when_folded_is_left_to_fail_when_it_runs() -> None:
    graph = graph_of("() => (int64[] y) <int64 a = {1}, int64[1] i = {7}> { y = Gather (i, a) }")
    assert not fold_constants(graph) and kinds(graph) == ["Gather"]


def test_random_numbers_are_neither_folded_nor_merged() -> None:
    graph = graph_of(
        """() => (float[] y) {
            a = RandomNormal <shape = [4]> ()
            b = RandomNormal <shape = [4]> ()
            y = Sub (a, b)
        }"""
    )
    canonicalise(graph)
    assert kinds(graph).count("RandomNormal") == 2


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("y = Mul (x, one)", False),
        ("y = Mul (one, x)", False),
        ("y = Mul (x, ones)", False),
        ("y = Mul (x, more)", True),
        ("y = Div (x, one)", False),
        ("y = Div (one, x)", True),
        ("y = Sub (x, zero)", False),
        ("y = Sub (zero, x)", True),
        ("y = Add (x, zero)", True),
        ("y = Pow (x, one)", False),
        ("y = Identity (x)", False),
        ("y = Cast <to = 1> (x)", False),
        ("y = Cast <to = 11> (x)", True),
        ("y = Dropout (x)", False),
        ("y = Transpose <perm = [0, 1]> (x)", False),
        ("y = Transpose (x)", True),
        ("y = Concat <axis = 1> (x)", False),
        ("y = Flatten (x)", False),
        ("y = Slice (x, from, to)", False),
        ("y = Slice (x, from, to, axes, back)", True),
        ("y = Pad (x, pads)", False),
        ("y = Expand (x, both)", False),
    ],
)
def test_only_what_changes_nothing_is_taken_out(line: str, kept: bool) -> None:
    """Minus zero plus zero is zero: to add zero is to change something."""
    body = f"""(float[N, 4] u) => (float[] z) <float one = {{1}}, float zero = {{0}},
        float[4] ones = {{1, 1, 1, 1}}, float[3, 1, 1] more = {{1, 1, 1}}, int64[2] from = {{0, 0}},
        int64[2] to = {{9223372036854775807, 4}}, int64[2] axes = {{0, 1}},
        int64[2] back = {{1, -1}}, int64[4] pads = {{0, 0, 0, 0}}, int64[2] both = {{1, 4}}> {{
        x = Sin (u)
        {line}
        z = Neg (y)
    }}"""
    graph = graph_of(body)
    feeds = random_feeds(graph)
    expected = interpret(graph, feeds)
    remove_identity(graph)
    verify(graph)
    assert (len(graph.nodes) == 3) == kept
    assert_close(interpret(graph, feeds), expected)


def test_an_identity_between_input_and_output_stays() -> None:
    graph = graph_of("(float[2] x) => (float[2] y) { y = Identity (x) }")
    assert not remove_identity(graph) and kinds(graph) == ["Identity"]


def test_convolutions_in_a_row_keep_no_transpose_between_them() -> None:
    graph = sample("convolutions")
    run_pipeline(graph)
    moved = [node for node in graph.nodes if node.kind == "Transpose"]
    assert len(moved) <= 1 and graph.each("FusedConv")


ACTIVATIONS = {
    "gelu": """two = Constant <value_float = 1.4142135> () a = Div (x, two) b = Erf (a)
        one = Constant <value_float = 1.0> () c = Add (b, one) d = Mul (x, c)
        half = Constant <value_float = 0.5> () y = Mul (d, half)""",
    "silu": "s = Sigmoid (x) y = Mul (x, s)",
    "hard_swish": "y = HardSwish (x)",
    "mish": "s = Softplus (x) t = Tanh (s) y = Mul (x, t)",
    "sigmoid": """n = Neg (x) e = Exp (n) one = Constant <value_float = 1.0> ()
        d = Add (e, one) y = Div (one, d)""",
    "": "a = Sin (x) y = Mul (a, x)",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_known_by_what_it_computes(name: str) -> None:
    graph = graph_of(f"(float[N] x) => (float[] y) {{ {ACTIVATIONS[name]} }}")
    canonicalise(graph)
    while merge_pointwise(graph):
        verify(graph)
    (node,) = graph.nodes
    if name != "hard_swish":  # that one is an operator already
        assert isinstance(node.op, Pointwise) and node.op.label == name
    assert [d.rule for d in graph.decisions if d.made] == (
        [f"elementwise chain => {name}"] if name and len(node.sources) > 1 else []
    )


def test_no_expression_of_two_inputs_is_an_activation() -> None:
    from engine.ir.types import DType
    from engine.ops.expression import call, load

    x, z = load(0, DType.FLOAT32), load(1, DType.FLOAT32)
    assert activation_name(call("add", x, z)) == "" and activation_name(x) == ""


@pytest.mark.parametrize("kind", ["float", "float16", "int8", "uint64", "double"])
def test_rows_are_formed_of_types_that_regions_have(kind: str) -> None:
    graph = graph_of(f"({kind}[N, 4] x) => ({kind}[] y) {{ y = Add (x, x) }}")
    assert graph.inputs[0].tensor.dtype in REGION_DTYPES
    assert row_form(graph.nodes[0]) is not None


@pytest.mark.parametrize(
    "body",
    [
        "(float[N, 4] x) => (int64[] y) { y = NonZero (x) }",
        "(complex64[N, 4] x) => (complex64[] y) { y = Identity (x) }",
        "(float[N, 4] x) => (float[] y) { y = Softmax <axis = 0> (x) }",
        "(float[N, L] x, float[L] g) => (float[] y) { y = LayerNormalization (x, g) }",
    ],
)
def test_no_row_is_formed_of_anything_else(body: str) -> None:
    assert row_form(graph_of(body).nodes[0]) is None


def test_passes_run_once_each_in_order() -> None:
    seen: list[str] = []

    def first(graph: Graph) -> bool:
        seen.append("first")
        return False

    def second(graph: Graph) -> bool:
        seen.append("second")
        return True

    graph = graph_of("(float[2] x) => (float[] y) { y = Neg (x) }")
    assert run_passes(graph, (first, second), checked=True) and seen == ["first", "second"]
    assert not run_passes(graph, (first,)) and not run_passes(graph, CANONICALISE)
