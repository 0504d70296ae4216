"""What the GPU benchmarks share: a build with records that the next build uses."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from benchmarks.gpu_build import built, lines
from engine.building import BuildOptions
from engine.debug.tiny import tiny_model
from engine.onnx_io.writer import model_of
from engine.plan.plan import open_plan


def test_records_of_a_build_are_kept_and_serve_the_next(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    onnx.save(model_of(tiny_model()), path)
    options = argparse.Namespace(records=[], plans=str(tmp_path))
    plan, first = built(path, BuildOptions(level=3), "tiny_1", options, tmp_path)
    assert first["layers"] == len(plan.program.layers) > 0
    assert first["fresh_records"] == len(lines(tmp_path / "timing_records.jsonl"))
    assert open_plan(tmp_path / "tiny_1.engine").program == plan.program
    again, second = built(path, BuildOptions(level=3), "tiny_1", options, tmp_path)
    assert second["fresh_records"] == 0 and again.program == plan.program
    assert lines(tmp_path / "none.jsonl") == []
