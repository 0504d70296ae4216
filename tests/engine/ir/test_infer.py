"""Shape inference: symbols are carried through, shape arithmetic is followed, loops widen."""

from __future__ import annotations

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.errors import InvalidModelError
from engine.ir.infer import infer
from engine.ir.sizes import symbols
from engine.ir.types import SequenceType, TensorType
from tests.engine.small_models import assert_close, check, graph_of, model


def shape_text(body: str, **details: object) -> str:
    """The type of the first output."""
    return str(graph_of(body, **details).outputs[0].type)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("(float[N, 4] x) => (float[] y) { y = Relu(x) }", "float32[N, 4]"),
        ("(float[N, 4] x) => (float[] y) { y = Transpose <perm=[1, 0]> (x) }", "float32[4, N]"),
        ("(float[N, 4] x) => (float[] y) { y = Concat <axis=0> (x, x) }", "float32[2*N, 4]"),
        ("(float[N, 4] x, float[4, M] w) => (float[] y) { y = MatMul(x, w) }", "float32[N, M]"),
        (
            """(float[N, 4, 6] x) => (float[] y) <int64[3] s = {0, -1, 2}>
            { y = Reshape(x, s) }""",
            "float32[N, 12, 2]",
        ),
        (
            """(float[N, 3, H, H] x, float[8, 3, 3, 3] w) => (float[] y)
            { y = Conv <strides=[2, 2], pads=[1, 1, 1, 1]> (x, w) }""",
            "float32[N, 8, ((H - 1) // 2) + 1, ((H - 1) // 2) + 1]",
        ),
        ("(float[N, M] x) => (int64[] y) { y = Shape(x) }", "int64[2]"),
    ],
)
def test_symbols_are_carried_through(body: str, expected: str) -> None:
    assert shape_text(body) == expected


def test_shape_arithmetic_is_followed_to_a_reshape() -> None:
    body = """(float[N, L, 12] x) => (float[] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}, int64[2] tail = {3, 4}> {
        s = Shape(x)
        n = Gather(s, zero)
        l = Gather(s, one)
        nl = Mul(n, l)
        u = Unsqueeze(nl, axis)
        w = Concat <axis=0> (u, tail)
        y = Reshape(x, w)
    }"""
    assert shape_text(body) == "float32[L*N, 3, 4]"
    check(body, sizes={"N": 2, "L": 5})


def test_a_size_that_only_a_run_tells_gets_a_symbol_of_its_own() -> None:
    graph = graph_of(
        "(float[N] x) => (int64[] y, int64[] z) { y = NonZero(x) a = Abs(x) z = NonZero(a) }"
    )
    names = [symbols(value.tensor.dims[1]) for value in graph.outputs]
    assert all(len(found) == 1 and next(iter(found)).startswith("?") for found in names)
    assert names[0] != names[1]


def test_the_node_that_contradicts_is_named() -> None:
    with pytest.raises(InvalidModelError, match=r"node 'MatMul_0' \(MatMul\)"):
        graph_of("(float[2, 3] x, float[4, 5] w) => (float[] y) { y = MatMul(x, w) }")


def test_inferring_again_changes_nothing() -> None:
    graph = graph_of("(float[N, 4] x) => (float[] y) { a = Relu(x) y = Concat <axis=1> (a, x) }")
    before = [str(value) for value in graph.values()]
    infer(graph)
    assert [str(value) for value in graph.values()] == before


GROWING = """(int64 turns, float[1] x) => (float[] y, int64[] sizes) <bool yes = {1}> {
    y, sizes = Loop (turns, yes, x) <body = grow (int64 i, bool on, float[1] v)
        => (bool off, float[] next, int64[] size) {
        off = Identity(on)
        next = Concat <axis=0> (v, v)
        size = Shape(v)
    }>
}"""


def test_what_grows_in_a_loop_has_no_fixed_size_inside_or_outside() -> None:
    graph = graph_of(GROWING)
    assert isinstance(graph.outputs[0].type, TensorType)
    assert all(not isinstance(dim, int) for dim in graph.outputs[0].type.shape or ())
    feeds = {"turns": np.array(4, np.int64), "x": np.ones(1, np.float32)}
    found = check(GROWING, feeds)
    assert found["y"].shape == (16,) and found["sizes"].tolist() == [[1], [2], [4], [8]]


def shifting(count: int) -> str:
    """A loop in which a growing value passes through ``count`` carried values."""
    names = [f"v{index}" for index in range(count)]
    formal = ", ".join(f"float[1] {name}" for name in names)
    results = ", ".join(f"float[] n{index}" for index in range(count))
    moves = "\n".join(f"n{index} = Identity(v{index - 1})" for index in range(1, count))
    given = ", ".join(["x"] * count)
    outputs = ", ".join(f"o{index}" for index in range(count))
    typed = ", ".join(f"float[] o{index}" for index in range(count))
    return f"""(int64 turns, float[1] x) => ({typed}, int64[] sizes) <bool yes = {{1}}> {{
        {outputs}, sizes = Loop (turns, yes, {given}) <body = shift
            (int64 i, bool on, {formal}) => (bool off, {results}, int64[] size) {{
            off = Identity(on)
            n0 = Concat <axis=0> (v0, v0)
            {moves}
            size = Shape(v{count - 1})
        }}>
    }}"""


@pytest.mark.parametrize("count", [2, 5, 9])
def test_widening_reaches_values_that_change_many_turns_later(count: int) -> None:
    feeds = {"turns": np.array(count + 2, np.int64), "x": np.ones(1, np.float32)}
    found = check(shifting(count), feeds)
    assert found["sizes"].reshape(-1).tolist() == [1] * count + [2, 4]


def test_branches_that_differ_in_size_leave_it_open_and_in_kind_are_refused() -> None:
    body = """(bool c, float[4] x) => (float[] y) {
        y = If (c) <then_branch = one () => (float[] a) { a = Neg(x) },
                    else_branch = two () => (float[] b) { b = Concat <axis=0> (x, x) }>
    }"""
    (dim,) = graph_of(body).outputs[0].tensor.dims
    assert not isinstance(dim, int)
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.arange(4, dtype=np.float32)}
        assert check(body, feeds)["y"].shape == ((4,) if flag else (8,))
    with pytest.raises(InvalidModelError, match=r"If.*float32.*int64"):
        graph_of(
            body.replace("Concat <axis=0> (x, x)", "Shape(x)").replace("float[] b", "int64[] b")
        )


def test_sequences_and_optionals_keep_what_they_hold() -> None:
    graph = graph_of(
        """(float[N] x) => (seq(float[N]) s, optional(float[N]) o) {
            s = SequenceConstruct(x, x)
            o = Optional(x)
        }"""
    )
    assert isinstance(graph.outputs[0].type, SequenceType)
    assert [str(value.type) for value in graph.outputs] == [
        "sequence(float32[N])",
        "optional(float32[N])",
    ]


def test_scan_knows_the_length_of_what_it_stacks() -> None:
    body = """(float[2] start, float[T, 2] x) => (float[] last, float[] all) {
        last, all = Scan <num_scan_inputs=1, body = add (float[2] state, float[2] item)
            => (float[2] next, float[2] out) { next = Add(state, item) out = Identity(next) }>
            (start, x)
    }"""
    graph = graph_of(body)
    assert [str(value.type) for value in graph.outputs] == ["float32[2]", "float32[T, 2]"]
    for length in (0, 1, 5):
        found = check(body, sizes={"T": length})
        assert found["all"].shape == (length, 2)


def test_meaning_and_types_agree_for_a_model_with_everything() -> None:
    proto = model(GROWING)
    graph = graph_of(GROWING)
    feeds = {"turns": np.array(0, np.int64), "x": np.ones(1, np.float32)}
    once, twice = interpret(graph, feeds), interpret(graph, feeds)
    assert_close(once, twice)
    assert once["sizes"].shape[0] == 0 and [o.name for o in proto.graph.output] == list(once)
