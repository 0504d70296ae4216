"""`enginefarm demo`: its network, its outputs, and that wrong outputs are found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.debug.compare import error
from engine.debug.peer import onnxruntime_peer
from tests.workers.real_engine import RealLine
from workers.demo import network


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> RealLine:
    return RealLine(tmp_path_factory.mktemp("demo"))


def test_the_demo_builds_checks_and_finds_again(line: RealLine) -> None:
    found = line.outcome("demo")
    assert found["answer"] == "built"
    assert found["again"]["answer"] == "hit" and found["again"]["seconds"] < 1
    assert found["error"] <= 1e-3
    assert found["fusions"] > 50
    assert Path(found["engine"]).is_file()


def test_wrong_outputs_end_with_the_code_of_integrity(
    line: RealLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "images", lambda: [np.zeros((1, 3, 224, 224), np.float32)] * 4)
    assert "off by" in line.refused("demo", code=9)


def test_stored_outputs_are_those_of_onnxruntime(tmp_path: Path) -> None:
    model = network.write_model(tmp_path)
    onnx.checker.check_model(str(model))
    peer = onnxruntime_peer(model, 1)
    found = [peer({network.INPUT: image})[network.OUTPUT] for image in network.images()]
    assert error(found, network.expected()) < 1e-3
    assert error([found[0]] * 4, network.expected()) >= 1


def test_files_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    first = network.write_model(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert network.write_model(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_what_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in network.FOLDER.glob("*.*")) < 200_000
