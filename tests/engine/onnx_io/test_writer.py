"""Graphs written back as ONNX: the same meaning, other tools read them, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.building import optimise
from engine.debug.interpret import interpret
from engine.debug.tiny import tiny_model
from engine.onnx_io import read, writer
from engine.onnx_io.writer import model_of, write
from engine.ops.operator import find

FEEDS = {"x": np.linspace(-2, 2, 48, dtype=np.float32).reshape(3, 16)}


def test_a_standard_graph_means_the_same_after_a_round_trip(tmp_path: Path) -> None:
    graph = tiny_model()
    write(graph, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    again = read(tmp_path / "m.onnx")
    assert np.array_equal(interpret(again, FEEDS)["y"], interpret(graph, FEEDS)["y"])


def test_other_runtimes_run_what_was_written(tmp_path: Path) -> None:
    from engine.debug.peer import onnxruntime_peer

    write(tiny_model(), tmp_path / "m.onnx")
    found = onnxruntime_peer(tmp_path / "m.onnx", 1)(FEEDS)["y"]
    assert np.allclose(found, interpret(tiny_model(), FEEDS)["y"], atol=1e-6)


def test_great_weights_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "INLINE_NBYTES", 100)
    monkeypatch.setattr(writer, "_SMALL", 1000)
    write(tiny_model(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size >= 16 * 32 * 4
    again = read(tmp_path / "m.onnx")
    assert np.array_equal(interpret(again, FEEDS)["y"], interpret(tiny_model(), FEEDS)["y"])


def test_fused_operators_stand_in_a_domain_of_their_own() -> None:
    model = model_of(optimise(tiny_model()))
    onnx.checker.check_model(model)
    fused = [node for node in model.graph.node if node.op_type == "FusedMatMul"]
    assert len(fused) == 2
    assert {node.domain for node in fused} == {"enginefarm"}
    epilogues = [a.s for node in fused for a in node.attribute if a.name == "epilogue"]
    assert all(isinstance(json.loads(text), list) for text in epilogues)
    assert {item.domain: item.version for item in model.opset_import}["enginefarm"] == 1


def loop_model() -> onnx.ModelProto:
    """A loop whose body reads a value and a constant from outside."""
    value, float32 = helper.make_tensor_value_info, TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "x"], ["sum"], "inner_add"),
            helper.make_node("Mul", ["sum", "half"], ["next"], "inner_mul"),
            helper.make_node("Identity", ["going"], ["still"], "inner_identity"),
        ],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("carried", float32, [3, 16]),
        ],
        [value("still", TensorProto.BOOL, []), value("next", float32, [3, 16])],
    )
    nodes = [
        helper.make_node("Relu", ["x0"], ["x"], "relu"),
        helper.make_node("Loop", ["count", "", "x"], ["y"], "loop", body=body),
    ]
    constants = [
        numpy_helper.from_array(np.array(3), "count"),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x0", float32, [3, 16])], [value("y", float32, [3, 16])], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_bodies_name_what_they_capture_from_outside() -> None:
    graph = read(loop_model())
    model = model_of(graph)
    onnx.checker.check_model(model, full_check=True)
    feeds = {"x0": FEEDS["x"]}
    assert np.array_equal(interpret(read(model), feeds)["y"], interpret(graph, feeds)["y"])


def test_an_output_that_is_an_input_or_given_twice_keeps_its_names() -> None:
    graph = tiny_model()
    x, y = graph.inputs[0], graph.outputs[0]
    graph.outputs, graph.output_names = [y, x, y], ["first", "through", "second"]
    model = model_of(graph)
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.output] == ["first", "through", "second"]
    found = interpret(read(model), FEEDS)
    assert np.array_equal(found["through"], FEEDS["x"])
    assert np.array_equal(found["first"], found["second"])


def test_the_opset_is_one_at_which_every_operator_is_meant() -> None:
    classes = [find("", "Softmax", 11), find("", "Relu", 14)]
    version = writer.opsets([cls.from_attributes({}) for cls in classes])[""]
    assert all(find("", cls.name, version) is cls for cls in classes)
