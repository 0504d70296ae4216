"""Reading models: functions, bodies with captures, sequences, optionals, old opsets."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.debug.interpret import interpret
from engine.errors import InvalidModelError, UnsupportedOperatorError
from engine.onnx_io import read
from tests.engine.small_models import check, graph_of, model

X = np.array([[-1.0, 2.0], [3.0, -4.0]], np.float32)

SCALE = """<domain: "local", opset_import: ["" : 21]>
scale <factor: float = 2.0> (v, shift) => (r) {
    k = Constant <value_float: float = @factor> ()
    s = Mul(v, k)
    r = Sum(s, shift)
}"""


def test_a_function_takes_attributes_or_their_defaults() -> None:
    body = """(float[2, 2] x) => (float[] y, float[] z) {
        y = local.scale (x, x)
        z = local.scale <factor = 5.0> (x, x)
    }"""
    found = check(body, {"x": X}, functions=SCALE)
    np.testing.assert_allclose(found["y"], 3 * X)
    np.testing.assert_allclose(found["z"], 6 * X)


def test_an_input_that_a_call_leaves_out_is_absent_inside() -> None:
    found = check(
        "(float[2, 2] x) => (float[] y) { y = local.scale (x) }", {"x": X}, functions=SCALE
    )
    np.testing.assert_allclose(found["y"], 2 * X)


def test_functions_call_functions_and_hand_attributes_on() -> None:
    functions = (
        SCALE
        + """
<domain: "local", opset_import: ["" : 21, "local" : 1]>
twice <factor: float = 3.0> (v) => (r) {
    a = local.scale <factor: float = @factor> (v)
    r = local.scale <factor: float = @factor> (a)
}"""
    )
    body = """(float[2, 2] x) => (float[] y, float[] z) {
        y = local.twice (x)
        z = local.twice <factor = 1.0> (y)
    }"""
    graph = graph_of(body, functions=functions)
    assert {node.kind for node in graph.nodes} == {"Constant", "Mul", "Sum"}
    assert all("/" in node.name for node in graph.nodes)
    found = check(body, {"x": X}, functions=functions)
    np.testing.assert_allclose(found["y"], 9 * X)
    np.testing.assert_allclose(found["z"], 9 * X)


def test_a_function_may_have_a_body_that_captures_its_values() -> None:
    functions = """<domain: "local", opset_import: ["" : 21]>
choose (c, v) => (r) {
    d = Add(v, v)
    r = If (c) <then_branch = one () => (a) { a = Neg(d) },
                else_branch = two () => (b) { b = Mul(d, v) }>
}"""
    for flag in (True, False):
        found = check(
            "(bool c, float[2, 2] x) => (float[] y) { y = local.choose (c, x) }",
            {"c": np.array(flag), "x": X},
            functions=functions,
        )
        np.testing.assert_allclose(found["y"], -2 * X if flag else 2 * X * X)


def test_functions_without_end_are_refused_at_once() -> None:
    itself = '<domain: "local", opset_import: ["local" : 1]> f (v) => (r) { r = local.f (v) }'
    with pytest.raises(InvalidModelError, match=r"'f'.*must not call themselves"):
        graph_of("(float[2] x) => (float[] y) { y = local.f (x) }", functions=itself)
    doubling = "\n".join(
        f'<domain: "local", opset_import: ["local" : 1, "" : 21]> '
        f"f{index} (v) => (r) {{ a = local.f{index + 1} (v) r = local.f{index + 1} (a) }}"
        for index in range(40)
    )
    doubling += '\n<domain: "local", opset_import: ["" : 21]> f40 (v) => (r) { r = Neg(v) }'
    started = time.process_time()
    with pytest.raises(InvalidModelError, match="nodes in all"):
        graph_of("(float[2] x) => (float[] y) { y = local.f0 (x) }", functions=doubling)
    assert time.process_time() - started < 2


def test_bodies_within_bodies_see_everything_around_them() -> None:
    body = """(bool c, bool d, float[2, 2] x) => (float[] y) <float[2, 2] w = {1, 2, 3, 4}> {
        t = Add(x, w)
        y = If (c) <
            then_branch = one () => (float[] a) {
                u = Mul(t, w)
                a = If (d) <then_branch = three () => (float[] e) { e = Sub(u, x) },
                            else_branch = four () => (float[] f) { f = Identity(t) }>
            },
            else_branch = two () => (float[] b) { b = Identity(x) }>
    }"""
    w = np.array([[1, 2], [3, 4]], np.float32)
    for c, d, wanted in (
        (True, True, (X + w) * w - X),
        (True, False, X + w),
        (False, True, X),
    ):
        feeds = {"c": np.array(c), "d": np.array(d), "x": X}
        np.testing.assert_allclose(check(body, feeds)["y"], wanted)


def test_bodies_nested_too_deep_are_refused() -> None:
    inner = "v = Neg(x)"
    for depth in range(20):
        inner = (
            f"v = If (c) <then_branch = t{depth} () => (float[] v) {{ {inner} }}, "
            f"else_branch = e{depth} () => (float[] n) {{ n = Neg(x) }}>"
        )
    with pytest.raises(InvalidModelError, match="nested more than"):
        graph_of(f"(bool c, float[2] x) => (float[] v) {{ {inner} }}")


LOOP = """(int64 turns, bool go, float[2, 2] x, float limit) => (float[] y, float[] all) {
    y, all = Loop (turns, go, x) <body = step (int64 i, bool on, float[2, 2] v)
        => (bool again, float[2, 2] next, float[2, 2] out) {
        next = Add(v, x)
        m = ReduceMax <keepdims=0> (next)
        again = Less(m, limit)
        out = Mul(next, next)
    }>
}"""


@pytest.mark.parametrize(
    ("turns", "go", "limit", "count"),
    [(5, True, 1e9, 5), (5, True, 5.0, 1), (5, False, 9, 0), (0, True, 9, 0)],
)
def test_a_loop_stops_by_count_or_condition(turns: int, go: bool, limit: float, count: int) -> None:
    feeds = {
        "turns": np.array(turns, np.int64),
        "go": np.array(go),
        "x": X,
        "limit": np.array(limit, np.float32),
    }
    found = check(LOOP, feeds)
    np.testing.assert_allclose(found["y"], X * (count + 1))
    assert found["all"].shape == (count, 2, 2)


def test_a_scan_runs_backwards_along_another_axis() -> None:
    body = """(float[2] s, float[2, T] x) => (float[] last, float[] all) {
        last, all = Scan <num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1],
            scan_output_axes=[1], body = add (float[2] state, float[2] item)
            => (float[2] next, float[2] out) { next = Add(state, item) out = Identity(next) }>
            (s, x)
    }"""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = check(body, {"s": np.zeros(2, np.float32), "x": x})
    np.testing.assert_allclose(found["last"], x.sum(1))
    np.testing.assert_allclose(found["all"], np.cumsum(x[:, ::-1], axis=1))


def test_a_sequence_is_mapped_with_what_the_body_captures() -> None:
    body = """(seq(float[N]) s, float k) => (seq(float[N]) t, float[] y) {
        t = SequenceMap (s) <body = f (float[N] v) => (float[N] r) { r = Mul(v, k) }>
        y = ConcatFromSequence <axis=0> (t)
    }"""
    feeds = {
        "s": [np.ones(2, np.float32), np.arange(3, dtype=np.float32)],
        "k": np.array(3, np.float32),
    }
    assert check(body, feeds)["y"].tolist() == [3, 3, 0, 3, 6]


def test_an_optional_may_be_given_or_not() -> None:
    body = """(optional(float[2]) o) => (bool has) { has = OptionalHasElement(o) }"""
    assert check(body, {"o": np.ones(2, np.float32)})["has"].item() is True
    assert check(body, {"o": None})["has"].item() is False


def old_model() -> onnx.ModelProto:
    """Opset 6: a broadcasting Add, BatchNormalization with is_test, a PRelu."""
    nodes = [
        helper.make_node("Add", ["x", "w"], ["t"], broadcast=1),
        helper.make_node(
            "BatchNormalization", ["t", "g", "b", "m", "v"], ["n"], is_test=1, epsilon=1e-5
        ),
        helper.make_node("PRelu", ["n", "slope"], ["y"]),
    ]
    data = {
        "w": [1.0, 0.0, 2.0, 5.0],
        "b": [1.0, -2.0, 3.0],
        "g": [1.0, 2.0, 0.5],
        "m": [0.1, 0.2, 0.3],
        "v": [1.0, 4.0, 9.0],
        "slope": [0.1, 0.2, 0.3],
    }
    arrays = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in data.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 4])]
    inputs += [
        helper.make_tensor_value_info(k, TensorProto.FLOAT, [len(v)]) for k, v in data.items()
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4, 4])]
    graph = helper.make_graph(nodes, "old", inputs, outputs, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=3)


def test_a_model_of_opset_6_is_converted_and_left_as_it_was() -> None:
    proto = old_model()
    before = proto.SerializeToString()
    graph = read(proto)
    assert proto.SerializeToString() == before
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    column = (slice(None), None, None)
    w = numpy_helper.to_array(proto.graph.initializer[0])
    b, g, m, v, slope = (numpy_helper.to_array(t)[column] for t in proto.graph.initializer[1:])
    n = (x + w - m) / np.sqrt(v + 1e-5) * g + b
    np.testing.assert_allclose(
        interpret(graph, {"x": x})["y"], np.where(n < 0, n * slope, n), rtol=1e-5, atol=1e-5
    )


def test_shapes_given_replace_the_declared_ones_and_must_fit() -> None:
    proto = model("(float[N, 4] x) => (float[] y) { y = Relu(x) }")
    assert str(read(proto, shapes={"x": (7, 4)}).outputs[0].type) == "float32[7, 4]"
    for shapes, message in (
        ({"x": (1,)}, "2 axes"),
        ({"x": (7, 5)}, "size 4 on axis 1"),
        ({"z": (7,)}, "no input 'z'"),
    ):
        with pytest.raises(InvalidModelError, match=message):
            read(proto, shapes=shapes)


def test_an_operator_without_meaning_runs_by_reference_or_is_refused(tmp_path: Path) -> None:
    body = "(float[2, 2] x) => (float[] y) { y = local.Strange (x) }"
    for reference in (True, False):
        with pytest.raises(UnsupportedOperatorError, match=r"local\.Strange.*opset 1"):
            read(model(body), reference=reference)


def test_a_path_bytes_and_a_model_give_the_same_graph(tmp_path: Path) -> None:
    from engine.ir.text import graph_text

    proto = model("(float[N, 4] x) => (float[] y) { y = Relu(x) }")
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    texts = {graph_text(read(item)) for item in (proto, path, str(path), path.read_bytes())}
    assert len(texts) == 1
