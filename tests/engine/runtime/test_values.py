"""Every kind of value through the runtime: all element types, control flow, sequences, strings."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from engine.ir.types import Array, DType
from engine.onnx_io.tensors import proto_dtype
from tests.engine.small_models import built, check, model

NUMBERS = [d for d in DType if d is not DType.STRING]
NAMES = {d: onnx.TensorProto.DataType.Name(proto_dtype(d)).lower() for d in DType}


def array(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Small values that every type holds, ones and zeros among them."""
    rng = np.random.default_rng(seed)
    if dtype is DType.STRING:
        return np.array([f"s{i}" for i in range(int(np.prod(shape)))], object).reshape(shape)
    return rng.integers(0, 2, shape).astype(np.float32).astype(dtype.numpy)


def typed(proto: onnx.ModelProto, dtype: DType) -> onnx.ModelProto:
    """The model with inputs x and z of another element type."""
    for value in proto.graph.input:
        if value.name in ("x", "z"):
            value.type.tensor_type.elem_type = proto_dtype(dtype)
    for value in proto.graph.output:
        value.type.ClearField("tensor_type")
    return proto


def bits(values: Array) -> Any:
    return values.tolist() if values.dtype == object else values.tobytes()


@pytest.mark.parametrize("dtype", list(DType), ids=lambda d: d.value)
@pytest.mark.parametrize("compile", ["wait", "never"])
def test_every_type_is_passed_joined_and_turned(dtype: DType, compile: str) -> None:
    body = """(float[N, 3] x, float[2, 3] z) => (float[] a, float[] b, float[] c, float[] d) {
        a = Identity (x)
        b = Concat <axis = 0> (x, z)
        c = Transpose <perm = [1, 0]> (b)
        d = Reshape (c, minus)
    }"""
    proto = typed(model(body, opset=25, weights={"minus": np.array([-1], np.int64)}), dtype)
    x, z = array(dtype, (4, 3), 1), array(dtype, (2, 3), 2)
    net = built(proto, compile=compile)
    for _ in range(2):
        found = net({"x": x, "z": z})
        joined = np.concatenate([x, z])
        for name, wanted in (("a", x), ("b", joined), ("c", joined.T), ("d", joined.T.reshape(-1))):
            assert found[name].dtype == wanted.dtype and found[name].shape == wanted.shape
            assert bits(np.ascontiguousarray(found[name])) == bits(np.ascontiguousarray(wanted))


def castable(dtype: DType) -> bool:
    return not dtype.is_complex and dtype not in (DType.FLOAT6E2M3, DType.FLOAT6E3M2)


@pytest.mark.parametrize("dtype", [d for d in NUMBERS if castable(d)], ids=lambda d: d.value)
def test_every_type_is_cast_to_float32_and_back(dtype: DType) -> None:
    body = f"""(float[N, 3] x) => (float[] y, float[] z) {{
        y = Cast <to = 1> (x)
        z = Cast <to = {proto_dtype(dtype)}> (y)
    }}"""
    x = array(dtype, (4, 3))
    found = built(typed(model(body, opset=25), dtype))({"x": x})
    np.testing.assert_array_equal(found["y"], x.astype(np.float32))
    assert found["z"].dtype == x.dtype and bits(found["z"]) == bits(x)


def test_sizes_that_depend_on_data() -> None:
    body = """(float[N] x) => (int64[] i, float[] u, int64[] c, float[] y, float[] z) {
        i = NonZero (x)
        u, , , c = Unique (x)
        y = Compress (x, mask)
        m = Mul (y, y)
        z = ReduceSum <keepdims = 0> (m)
    }"""
    mask = np.array([True, False, True, True])
    for values in ([0, 2, 0, 2, 5], [0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7]):
        check(body, {"x": np.array(values, np.float32)}, weights={"mask": mask})


LOOP = """(int64 turns, float[N] x) => (float[] y, float[] all, float[] after) {
    yes = Constant <value = bool {1}> ()
    r = Relu (x)
    y, all = Loop (turns, yes, r) <body = step (int64 i, bool on, float[N] v)
        => (bool again, float[N] next, float[N] out) {
        again = Identity (on)
        next = Add (v, x)
        out = Mul (next, r)
    }>
    after = Exp (y)
}"""


@pytest.mark.parametrize("turns", [0, 1, 4])
@pytest.mark.parametrize("size", [0, 3])
def test_a_loop_of_any_number_of_turns_stacks_what_it_scans(turns: int, size: int) -> None:
    feeds = {"turns": np.array(turns, np.int64), "x": np.linspace(-1, 1, size, dtype=np.float32)}
    found = check(LOOP, feeds)["all"]
    assert found.shape[0] == turns and found.ndim == 2
    assert turns == 0 or found.shape[1] == size


def test_an_if_takes_each_branch_between_compiled_layers() -> None:
    body = """(bool c, float[N, 4] x) => (float[] y) {
        a = MatMul (x, w)
        b = If (c) <
            then_branch = one () => (float[] t) { n = Neg (a) t = Concat <axis = 0> (n, x) },
            else_branch = two () => (float[] e) { e = Mul (a, x) }>
        y = Tanh (b)
    }"""
    w = np.eye(4, dtype=np.float32)
    for flag in (True, False, True):
        feeds = {"c": np.array(flag), "x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
        check(body, feeds, weights={"w": w})


def test_sequences_come_in_and_go_out() -> None:
    body = """(seq(float[N]) s, int64 at) => (seq(float[]) t, float[] y, int64 n) {
        x = SequenceAt (s, at)
        r = Mul (x, x)
        t = SequenceInsert (s, r)
        y = ConcatFromSequence <axis = 0> (t)
        n = SequenceLength (t)
    }"""
    feeds = {
        "s": [np.arange(3, dtype=np.float32), np.ones(5, np.float32)],
        "at": np.array(-1, np.int64),
    }
    found = check(body, feeds)
    assert found["n"] == 3 and found["y"].shape == (13,)
    check(body, {"s": [np.zeros(0, np.float32)], "at": np.array(0, np.int64)})


def test_strings_come_in_and_go_out() -> None:
    body = """(string[N] x) => (string[] y, bool[] e) <string[1] w = {"a"}> {
        y = StringConcat (x, w)
        e = Equal (y, w)
    }"""
    found = check(body, {"x": np.array(["", "b", "ü"], object)})
    assert found["y"].tolist() == ["a", "ba", "üa"]
    assert found["e"].tolist() == [True, False, False]


def test_an_output_may_be_an_input_a_constant_or_given_twice() -> None:
    body = """(float[N] x) => (float[N] same, float[2] k, float[N] y, float[N] z)
    <float[2] c = {1, 2}> {
        same = Identity (x)
        k = Identity (c)
        y = Neg (x)
        z = Identity (y)
    }"""
    found = check(body, {"x": np.arange(3, dtype=np.float32)})
    assert list(found) == ["same", "k", "y", "z"]


def test_results_belong_to_the_caller() -> None:
    body = """(float[N] x) => (float[N] a, float[2] k) <float[2] c = {1, 2}> {
        a = Identity (x)
        k = Identity (c)
    }"""
    net = built(model(body))
    x = np.ones(3, np.float32)
    found = net({"x": x})
    for result in found.values():
        assert result.flags.writeable
        result[:] = 9
    assert x.tolist() == [1, 1, 1]
    assert net({"x": x})["k"].tolist() == [1, 2]


def test_scalars_stay_scalars() -> None:
    body = """(float x, int64 n) => (float y, int64 m, float z) {
        y = Mul (x, x)
        m = Add (n, n)
        z = Exp (y)
    }"""
    found = check(body, {"x": np.array(1.5, np.float32), "n": np.array(4, np.int64)})
    assert found["y"].shape == () and found["m"] == 8


def test_a_model_without_nodes_or_inputs_runs() -> None:
    found = check("() => (float[2] y) <float[2] y = {1, 2}> { }", {})
    assert found["y"].tolist() == [1, 2]
    found = check("(float[2] x) => (float[2] x) { }", {"x": np.ones(2, np.float32)})
    assert found["x"].tolist() == [1, 1]


def test_random_numbers_differ_from_run_to_run() -> None:
    net = built(model("() => (float[] y) { y = RandomNormal <shape = [64]> () }"))
    assert not np.array_equal(net({})["y"], net({})["y"])
