"""Bad models: each gets one sentence that names the thing, and the class of its error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import engine
from engine.errors import InvalidModelError, ModelError, UnsupportedOperatorError
from engine.onnx_io import read
from tests.engine.small_models import check, graph_of, model


def refused(error: type[ModelError], match: str, body: str, **details: object) -> None:
    with pytest.raises(error, match=match) as caught:
        graph_of(body, **details)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"gone\.onnx' is not there"):
        read(tmp_path / "gone.onnx")
    with pytest.raises(InvalidModelError, match="is not there"):
        engine.build(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"\x89PNG\r\n", bytes(1000)])
def test_a_file_that_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"other\.bin' is not an ONNX model"):
        read(path)


def test_a_file_cut_at_any_byte(tmp_path: Path) -> None:
    whole = model(
        "(float[2] x) => (float[] y) { a = Relu(x) y = Add(a, w) }",
        weights={"w": np.ones(2, np.float32)},
    ).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read(path)


def raw(nodes: list[onnx.NodeProto], outputs: list[str], inputs: str = "x") -> onnx.ModelProto:
    """A model that need not be valid."""
    graph = onnx.GraphProto(name="raw", node=nodes)
    for name in inputs.split():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


node = helper.make_node


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (
            raw([node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"])], ["b"]),
            "reads 'b'.*cycle",
        ),
        (raw([node("Neg", ["nobody"], ["y"])], ["y"]), r"'Neg_0' \(Neg\) reads 'nobody'.*dangling"),
        (raw([node("Neg", ["x"], ["y"])], ["z"]), "output of graph 'raw' reads 'z'"),
        (raw([node("Neg", ["x"], ["y"])], ["y"], "x x"), "two inputs called 'x'"),
        (raw([node("Neg", ["x"], ["x"])], ["x"]), "two values called 'x'"),
        (raw([node("Neg", ["x"], ["y"])] * 2, ["y"]), "two values called 'y'"),
        (raw([node("Neg", ["x"], ["y"])], ["y", "y"]), "two outputs called 'y'"),
        (raw([node("Neg", ["x"], ["y"], wrong=1)], ["y"]), "Neg.*'wrong'"),
        (raw([node("Softmax", ["x"], ["y"], axis="last")], ["y"]), "Softmax.*'axis'.*'last'"),
        (raw([node("Softmax", ["x"], ["y"], axis=7)], ["y"]), "Softmax.*7"),
        (raw([node("Transpose", ["x"], ["y"], perm=[0, 0])], ["y"]), "Transpose"),
        (raw([node("Neg", [], ["y"])], ["y"]), "Neg"),
        (raw([node("Neg", ["x"], ["y", "z"])], ["y"]), "2 outputs, expected at most 1"),
        (raw([node("If", ["x"], ["y"])], ["y"]), "If.*no then_branch"),
        (raw([node("Loop", ["", "", "x"], ["y"])], ["y"]), "Loop.*no body"),
    ],
)
def test_a_graph_that_contradicts_itself(proto: onnx.ModelProto, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        read(proto)


def test_two_initialisers_of_one_name() -> None:
    proto = model(
        "(float[2] x) => (float[] y) { y = Add(x, w) }", weights={"w": np.ones(2, np.float32)}
    )
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(InvalidModelError, match="two values called 'w'"):
        read(proto)


def test_an_unknown_operator_is_named_with_domain_and_version() -> None:
    refused(
        UnsupportedOperatorError,
        r"'Frobnicate_0' \(ai\.onnx\.Frobnicate, opset 21\)",
        "(float[2] x) => (float[] y) { y = Frobnicate (x) }",
    )
    refused(
        UnsupportedOperatorError,
        r"com\.mine\.Frobnicate, opset 3",
        "(float[2] x) => (float[] y) { y = com.mine.Frobnicate (x) }",
        domains={"com.mine": 3},
    )
    proto = raw([node("Frobnicate", ["x"], ["y"], domain="com.other")], ["y"])
    with pytest.raises(UnsupportedOperatorError, match=r"Frobnicate of domain 'com\.other'"):
        read(proto)


def test_an_operator_newer_than_the_models_opset_is_unknown() -> None:
    refused(
        UnsupportedOperatorError,
        r"ai\.onnx\.Gelu, opset 13",
        "(float[2] x) => (float[] y) { y = Gelu (x) }",
        opset=13,
    )


def test_shapes_that_contradict_each_other() -> None:
    refused(
        InvalidModelError,
        r"'Add_0' \(Add\).*2.*3",
        "(float[2] x, float[3] z) => (float[] y) { y = Add (x, z) }",
    )
    refused(
        InvalidModelError,
        r"output 'y' is declared float32\[5\], but the nodes make float32\[2\]",
        "(float[2] x) => (float[5] y) { y = Neg (x) }",
    )
    refused(
        InvalidModelError,
        "output 'y' is declared int64",
        "(float[2] x) => (int64[2] y) { y = Neg (x) }",
    )
    refused(
        InvalidModelError,
        "Reshape",
        "(float[2, 3] x) => (float[] y) <int64[1] s = {7}> { y = Reshape (x, s) }",
    )


def test_a_type_that_onnx_does_not_have() -> None:
    proto = raw([node("Neg", ["x"], ["y"])], ["y"])
    proto.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(InvalidModelError, match="x has the unknown ONNX element type 99"):
        read(proto)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -4
    with pytest.raises(InvalidModelError, match="x has the negative size -4"):
        read(proto)


def test_a_tensor_whose_bytes_do_not_fit_its_shape() -> None:
    proto = model(
        "(float[2] x) => (float[] y) { y = Add(x, w) }", weights={"w": np.ones(2, np.float32)}
    )
    (tensor,) = proto.graph.initializer
    for dims in ([3], [-2], [1 << 40], [1 << 62, 1 << 62]):
        tensor.dims[:] = dims
        with pytest.raises(InvalidModelError, match="initializer 'w'"):
            read(proto)


def test_a_body_with_other_inputs_than_its_operator_gives() -> None:
    body = """(int64 n, bool go, float[2] x) => (float[] y) {
        y = Loop (n, go, x) <body = step (int64 i, bool on) => (bool off, float[2] r)
            { off = Identity(on) r = Neg(x) }>
    }"""
    refused(InvalidModelError, r"body 'step' of node 'Loop_0' \(Loop\) takes 2.*expected 3", body)


def test_a_loop_whose_body_gives_too_little() -> None:
    body = """(int64 n, bool go, float[2] x) => (float[] y) {
        y = Loop (n, go, x) <body = step (int64 i, bool on, float[2] v) => (bool off)
            { off = Identity(on) }>
    }"""
    refused(InvalidModelError, "Loop", body)


def test_weights_that_are_no_numbers_are_allowed(tmp_path: Path) -> None:
    weights = {
        "w": np.array([np.nan, 1.0, np.inf, -np.inf], np.float32),
        "one": np.array(np.nan, np.float32),
        "big": np.array([np.inf], np.float32),
    }
    body = """(float[N, 4] x) => (float[] y, float[] z) {
        a = Add(x, w)
        y = Max(a, one)
        b = Min(x, big)
        z = Mul(b, one)
    }"""
    check(body, weights=weights)
    engine.build(model(body, weights=weights), level=0).save(tmp_path / "nan.engine")
    x = np.ones((1, 4), np.float32)
    found = engine.load(tmp_path / "nan.engine", compile="wait")({"x": x})
    assert np.isnan(found["z"]).all() and np.isnan(found["y"]).all()
