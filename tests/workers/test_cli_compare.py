"""`enginefarm compare`: an engine agrees with its references, and a wrong one is found out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import engine
from engine.plan.plan import open_plan
from tests.workers.real_engine import RealLine

SHAPE = ("--shape", "x=batch=1..2..4,3,16,16", "--level", "0")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> RealLine:
    return RealLine(tmp_path_factory.mktemp("compare"))


@pytest.mark.parametrize("against", ["onnxruntime", "meaning"])
def test_an_engine_agrees_with_its_model(line: RealLine, against: str) -> None:
    words = ("--plan", line.plan, "--against", against, "--layers", *SHAPE)
    found = line.outcome("compare", line.network, *words)
    assert found["reference"].startswith(against)
    assert found["within"] and found["first_layer"] is None
    assert [item["name"] for item in found["outputs"]] == ["y"]
    assert 0 <= found["outputs"][0]["error"] <= 1e-3
    names = {layer.name for layer in open_plan(line.plan).program.layers}
    assert {item["layer"] for item in found["layers"]} <= names
    assert len(found["layers"]) >= 4


def test_without_a_plan_the_model_is_built(line: RealLine) -> None:
    found = line.outcome("compare", line.network, "--samples", 2, *SHAPE)
    assert Path(found["plan"]).is_relative_to(line.home.folder)
    assert found["samples"] == 2


def test_other_weights_are_found_out(line: RealLine, tmp_path: Path) -> None:
    model = onnx.load(line.network)
    weight = next(item for item in model.graph.initializer if item.name == "w2")
    other = numpy_helper.to_array(weight) * np.float32(1.2)
    weight.CopyFrom(numpy_helper.from_array(other, "w2"))
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(model.SerializeToString())
    words = ("compare", changed, "--plan", line.plan, *SHAPE)
    assert "output 'y' leaves the tolerance" in line.refused(*words, code=7)
    found = line.outcome(*words, "--layers", code=7)
    kinds = {item["layer"]: item for item in found["layers"]}
    wrong = [name for name, item in kinds.items() if item["error"] > 1e-3]
    # Each layer is judged by the inputs that the engine gave it: only the changed one errs.
    assert wrong == [found["first_layer"]]
    assert kinds[wrong[0]]["kind"] == "FusedConv"


def test_a_plan_of_another_model_is_refused(line: RealLine, tmp_path: Path) -> None:
    model = onnx.load(line.network)
    model.graph.node[0].name = "renamed"
    model.graph.node[1].name = "renamed_too"
    other = tmp_path / "other.onnx"
    other.write_bytes(model.SerializeToString())
    words = ("compare", other, "--plan", line.plan, "--layers", *SHAPE)
    assert "built from another model" in line.refused(*words, code=7)


def test_wrong_requests_are_one_sentence(line: RealLine, tmp_path: Path) -> None:
    assert "is a plan" in line.refused("compare", line.plan, code=2)
    random = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("RandomNormal", [], ["y"], "chance", shape=[2])],
            "g",
            [],
            [onnx.helper.make_tensor_value_info("y", 1, [2])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    path = tmp_path / "random.onnx"
    path.write_bytes(random.SerializeToString())
    assert "random numbers" in line.refused("compare", path, code=7)


def test_a_plan_with_a_constant_output_errs_by_one_or_more(line: RealLine, tmp_path: Path) -> None:
    """The weights of the last product zeroed: every output is the same, whatever the input."""
    plan = open_plan(line.plan)
    zeroed = {
        weight.name: np.zeros_like(plan.array(weight.name)) for weight in plan.program.weights
    }
    constant = tmp_path / "constant.engine"
    replace(plan, weights=zeroed).save(constant)
    assert np.ptp(engine.load(constant, compile="never")(line.feeds())["y"]) == 0
    found = line.outcome("compare", line.network, "--plan", constant, *SHAPE, code=7)
    assert found["outputs"][0]["error"] >= 1
    shutil.rmtree(tmp_path, ignore_errors=True)
