"""The farm with the real compiler: a small model is built, checked, loaded and run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine
from storage.records import Json
from tests.workers.conftest import ROOT, CommandLine, processor_seconds

REAL = {"ENGINEFARM_COMPILER": "engine"}
WEIGHT = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)


def save_model(path: Path, *, operator: str = "Relu", external: str | None = None) -> Path:
    """A matmul and an activation, its weight inline or in a file."""
    weight = numpy_helper.from_array(WEIGHT, "w")
    if external is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node(operator, ["m"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        initializer=[weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def build(line: CommandLine, model: Path, *words: object) -> Json:
    return line.json("build", model, *words, **REAL)


@pytest.fixture
def line(enginefarm: CommandLine, private_cache: Path) -> CommandLine:
    assert private_cache.is_dir()
    return enginefarm


def test_a_model_is_built_checked_and_runs(line: CommandLine, tmp_path: Path) -> None:
    output = tmp_path / "m.engine"
    built = build(line, save_model(tmp_path / "m.onnx"), "-o", output)
    assert built["answer"] == "built"
    assert built["report"]["check"]["compared"] == 1
    x = np.random.default_rng(2).standard_normal((4, 16)).astype(np.float32)
    found = engine.load(output)({"x": x})["y"]
    np.testing.assert_allclose(found, np.maximum(x @ WEIGHT, 0), rtol=1e-4, atol=1e-5)
    assert build(line, tmp_path / "m.onnx")["answer"] == "hit"


def test_the_same_timings_give_the_same_bytes_in_another_farm(
    line: CommandLine, tmp_path: Path
) -> None:
    first = build(line, save_model(tmp_path / "m.onnx"))
    line.run("timings", "export", tmp_path / "timings.jsonl")
    other = CommandLine(tmp_path / "other")
    other.folder.mkdir()
    other.run("timings", "import", tmp_path / "timings.jsonl")
    second = build(other, save_model(other.folder / "renamed.onnx"))
    assert second["answer"] == "built"
    assert (second["key"], second["digest"]) == (first["key"], first["digest"])


def test_weights_in_another_file_enter_the_key(line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    model = save_model(tmp_path / "m.onnx", external="w.bin")
    first = build(line, model)
    (tmp_path / "w.bin").write_bytes((WEIGHT + 1).tobytes())
    second = build(line, model)
    assert second["answer"] == "built"
    assert second["key"] != first["key"]
    assert second["digest"] != first["digest"]


@pytest.mark.parametrize(
    "content", [b"", b"this is a letter", b"\x08\x0a" + b"\xff" * 40], ids=["empty", "text", "cut"]
)
def test_what_is_no_model_fails_with_the_code_of_a_model(
    line: CommandLine, tmp_path: Path, content: bytes
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(content)
    _, err = line.run("build", model, code=7, **REAL)
    assert "is not an ONNX model" in err.splitlines()[-1]
    assert not list(line.home.engines.glob("*"))


def test_an_unknown_operator_is_named(line: CommandLine, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", operator="Nonsense")
    _, err = line.run("build", model, code=7, **REAL)
    assert "Nonsense" in err


def test_a_target_that_there_is_not_is_named(line: CommandLine, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx")
    _, err = line.run("build", model, "--target", "toaster", code=7, **REAL)
    assert "toaster" in err


def test_external_data_that_is_absent_is_named(line: CommandLine, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", external="w.bin")
    _, err = line.run("build", model, code=7, **REAL)
    assert "w.bin" in err


def test_a_hit_imports_neither_the_compiler_s_onnx_nor_an_orm(
    line: CommandLine, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "m.onnx")
    build(line, model)
    code = (
        "import sys; from workers.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "rooms = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(rooms & {'sqlalchemy', 'alembic', 'cryptography', 'rich', 'onnx'}))"
    )
    times = []
    for _ in range(3):
        began = processor_seconds()
        done = subprocess.run(
            [sys.executable, "-c", code, "build", str(model)],
            cwd=ROOT,
            env={**os.environ, **line.variables(""), **REAL},
            capture_output=True,
            text=True,
            check=True,
        )
        times.append(processor_seconds() - began)
        assert done.stdout.startswith("hit (exact)")
        assert done.stdout.splitlines()[-1] == "[]"
    assert min(times) < 0.5
