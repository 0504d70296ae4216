"""`enginefarm inspect`: models with what was fused and refused, plans with their parts."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from engine.plan.plan import open_plan
from tests.workers.real_engine import RealLine


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> RealLine:
    return RealLine(tmp_path_factory.mktemp("inspect"))


def test_a_model_shows_its_ports_operators_and_fusions(line: RealLine) -> None:
    found = line.outcome("inspect", line.network)
    assert found["inputs"] == {"x": "float32[batch, 3, 16, 16]"}
    assert found["outputs"] == {"y": "float32[batch, 5]"}
    assert found["operators"]["Conv"] == 2
    assert "Conv" not in found["layers"]
    made = [item for item in found["decisions"] if item["made"]]
    assert any("conv1" in item["nodes"] or "relu1" in item["nodes"] for item in made)
    assert all(item["reason"] for item in found["decisions"] if not item["made"])


def test_text_names_every_node(line: RealLine) -> None:
    out, _ = line.run("inspect", line.network, "--text")
    assert out.startswith("graph convnet(")
    assert "enginefarm.FusedConv" in out


def test_the_optimised_graph_is_written_as_onnx(line: RealLine, tmp_path: Path) -> None:
    line.run("inspect", line.network, "--onnx", tmp_path / "fused.onnx")
    model = onnx.load(tmp_path / "fused.onnx")
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.output] == ["y"]
    assert {"enginefarm"} <= {node.domain for node in model.graph.node}


def test_a_plan_shows_layers_memory_profile_and_host_steps(line: RealLine) -> None:
    found = line.outcome("inspect", line.plan)
    program = open_plan(line.plan).program
    assert [item["layer"] for item in found["layer_list"]] == [x.name for x in program.layers]
    assert found["profile"] == [{"name": "batch", "least": 1, "usual": [2], "greatest": "4"}]
    assert [use["sizes"] for use in found["memory"]] == [{"batch": 2}, {"batch": 4}]
    assert all(use["nbytes"] >= use["lower_bound"] > 0 for use in found["memory"])
    assert len(found["host_steps"]) == found["steps"]["host"]
    assert all(step["cause"] for step in found["host_steps"])
    assert found["requires"] == []


def test_a_plan_as_text_is_for_people(line: RealLine) -> None:
    out, _ = line.run("inspect", line.plan)
    assert "times the lower bound, at batch=4" in out
    assert "batch: 1 to 4" in out


def test_wrong_requests_are_one_sentence(line: RealLine, tmp_path: Path) -> None:
    assert "needs a model" in line.refused(
        "inspect", line.plan, "--onnx", tmp_path / "x.onnx", code=2
    )
    no_model = tmp_path / "text.onnx"
    no_model.write_text("no model")
    assert "text.onnx" in line.refused("inspect", no_model, code=7)
    line.refused("inspect", "nothing", code=3)
    assert not (tmp_path / "x.onnx").exists()
