"""Lowering: places of values, views without copies, weights packed once, kernels named once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.building import BuildOptions, assemble_plan, optimise
from engine.ir.sizes import symbol
from engine.ir.types import DType, OptionalType, SequenceType, TensorType, UnknownSize
from engine.lower.builder import stored_type
from engine.onnx_io import read
from engine.plan.program import HostStep, KernelStep, Program
from tests.engine.small_models import check, model

W = np.random.default_rng(6).standard_normal((8, 8)).astype(np.float32)


def program(body: str, **details: Any) -> Program:
    graph = optimise(read(model(body, **details)), checked=True)
    return assemble_plan(graph, BuildOptions(level=0), []).program


def steps(found: Program, kind: type) -> list[Any]:
    return [step for step in found.steps if isinstance(step, kind)]


def test_a_weight_that_two_layers_share_is_packed_once() -> None:
    body = """(float[N, 8] x) => (float[] y) {
        a = MatMul (x, w) b = Exp (a) c = MatMul (b, w) y = Add (c, x) }"""
    found = program(body, weights={"w": W})
    assert len(found.weights) == 1 and found.weights[0].sources == ("w",)
    assert found.weights[0].recipe
    check(body, weights={"w": W})


def test_equal_kernels_are_one() -> None:
    body = """(float[N, 8] x) => (float[] y) {
        a = MatMul (x, w) b = CumSum (a, axis) c = MatMul (b, v) y = CumSum (c, axis) }"""
    weights = {"w": W, "v": W + 1, "axis": np.array(0, np.int64)}
    found = program(body, weights=weights)
    assert len(steps(found, KernelStep)) == 2 and len(found.kernels) == 1
    check(body, weights=weights)


def test_a_view_costs_no_step_and_an_output_is_written_in_place() -> None:
    body = """(float[N, 8] x) => (float[] y) <int64[3] s = {0, 2, 4}> {
        a = MatMul (x, w) y = Reshape (a, s) }"""
    found = program(body, weights={"w": W})
    assert len(found.steps) == 1
    (step,) = steps(found, KernelStep)
    written = found.slots[step.operands[-1][0]]
    assert written.alias in found.outputs
    check(body, weights={"w": W})


@pytest.mark.parametrize(
    ("body", "copies"),
    [
        ("(float[N, 8] x) => (float[] y) <int64[1] s = {-1}> { y = Reshape (x, s) }", 1),
        ("() => (float[] y) { y = Constant <value_floats = [1.0, 2.0]> () }", 1),
        (
            """(float[N, 8] x) => (float[] y, float[] z) <int64[1] s = {-1}> {
            y = Neg (x) z = Reshape (y, s) }""",
            1,
        ),
    ],
)
def test_an_output_that_lies_elsewhere_is_copied(body: str, copies: int) -> None:
    found = program(body)
    assert sum(step.function == "copy" for step in steps(found, HostStep)) == copies
    check(body)


def test_what_bodies_use_of_weights_belongs_to_the_outermost_program() -> None:
    body = """(bool c, float[8, 8] x) => (float[] y) {
        y = If (c) <
            then_branch = one () => (float[] a) { a = MatMul (x, w) },
            else_branch = two () => (float[] b) <float[8] k = {1, 2, 3, 4, 5, 6, 7, 8}> {
                t = Add (x, k) b = Sub (t, w) }>
    }"""
    found = program(body, weights={"w": W})
    assert len(found.weights) == 2
    (step,) = steps(found, HostStep)
    for inner in step.bodies:
        assert not inner.weights
        places = [slot.name for slot in inner.slots if slot.place == "weight"]
        assert set(places) <= {weight.name for weight in found.weights} and places
    for flag in (True, False):
        check(body, {"c": np.array(flag), "x": W}, weights={"w": W})


def test_every_layer_of_the_report_names_the_nodes_of_the_model() -> None:
    body = """(float[N, 8] x) => (float[] y) {
        a = MatMul (x, w) b = Relu (a) y = CumSum (b, axis) }"""
    found = program(body, weights={"w": W, "axis": np.array(1, np.int64)})
    assert [layer.nodes for layer in found.layers] == [("MatMul_0", "Relu_1"), ("CumSum_2",)]
    assert {step.layer for step in found.steps} == {0, 1}


def test_sizes_that_only_a_run_tells_are_written_as_unknown() -> None:
    n, data = symbol("n"), symbol("?data")
    kind = TensorType(DType.FLOAT32, (n, data, 3))
    assert stored_type(kind) == TensorType(DType.FLOAT32, (n, UnknownSize(), 3))  # type: ignore
    body = TensorType(DType.FLOAT32, (UnknownSize(), UnknownSize(), 3))  # type: ignore
    assert stored_type(kind, frozenset()) == body
    assert stored_type(SequenceType(kind), frozenset()) == SequenceType(body)
    assert stored_type(OptionalType(kind), frozenset()) == OptionalType(body)
