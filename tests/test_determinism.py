"""The same model and the same records give the same bytes: other process, folder and hash seed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import engine
from engine.building import BuildOptions, optimise, read_model
from engine.profile import parse_shapes
from engine.tune.tuning import tune_graph
from tests.engine.small_models import model

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(4)
WEIGHTS = {
    "w": RNG.standard_normal((16, 8, 3, 3)).astype(np.float32),
    "d": RNG.standard_normal((16, 1, 3, 3)).astype(np.float32),
    "v": RNG.standard_normal((16, 16)).astype(np.float32),
    "g": np.ones(16, np.float32),
}
BODY = """(float[N, 8, 10, 10] x, bool c) => (float[] y, float[] z, int64[] s) <
    int64[3] rows = {0, 16, -1}, int64[1] axis = {-1}> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = Conv <pads = [1, 1, 1, 1], group = 16> (a, d)
    r = HardSwish (b)
    e = Add (r, a)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)
    f = Reshape (p, rows)
    t = Transpose <perm = [0, 2, 1]> (f)
    l = LayerNormalization <axis = -1> (t, g)
    m = MatMul (l, v)
    u = Transpose <perm = [0, 2, 1]> (l)
    q = MatMul (m, u)
    h = Softmax <axis = -1> (q)
    o = MatMul (h, l)
    y = If (c) <then_branch = one () => (float[] i) { i = Neg (o) },
                else_branch = two () => (float[] j) { j = Mul (o, o) }>
    z = ReduceMean <keepdims = 0> (o, axis)
    s = Shape (z)
}"""
SHAPES: dict[str, list[Any]] = {"x": ["N=1..2..4", 8, 10, 10]}

SCRIPT = """
import json, sys
import engine
from engine.tune.records import TimingRecord

model, records, output, shapes = sys.argv[1:]
known = [TimingRecord.from_json(item) for item in json.load(open(records))]
plan = engine.build(model, shapes=json.loads(shapes), level=2, records=known)
plan.save(output)
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of everything in the model, once measured; and the model beside them."""
    folder = tmp_path_factory.mktemp("records")
    onnx.save(model(BODY, weights=WEIGHTS), folder / "model.onnx")
    options = BuildOptions(level=2, profile=parse_shapes(SHAPES))
    graph = optimise(read_model(folder / "model.onnx", options), options.precision)
    found = tune_graph(graph, options, [])
    assert found
    (folder / "records.json").write_text(json.dumps([item.to_json() for item in found]))
    return folder / "records.json"


def build_elsewhere(folder: Path, records: Path, seed: str, *, reverse: bool = False) -> str:
    """The digest of the plan that a process of its own builds in a folder of its own."""
    folder.mkdir()
    known = json.loads(records.read_text())
    (folder / "known.json").write_text(json.dumps(known[::-1] if reverse else known))
    (folder / "other name.onnx").write_bytes((records.parent / "model.onnx").read_bytes())
    output, names = folder / "out.engine", ("other name.onnx", "known.json")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *names, str(output), json.dumps(SHAPES)],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    assert str(folder).encode() not in output.read_bytes()
    return hashlib.sha256(output.read_bytes()).hexdigest()


def test_two_processes_with_the_same_records_make_the_same_bytes(
    tmp_path: Path, records: Path
) -> None:
    digests = {
        build_elsewhere(tmp_path / "a", records, "1"),
        build_elsewhere(tmp_path / "b", records, "2024"),
        build_elsewhere(tmp_path / "c", records, "random", reverse=True),
    }
    assert len(digests) == 1


def test_another_choice_makes_other_bytes(tmp_path: Path, records: Path) -> None:
    """The comparison above could fail."""
    from engine.tune.records import TimingRecord

    known = [TimingRecord.from_json(item) for item in json.loads(records.read_text())]
    path = records.parent / "model.onnx"
    engine.build(path, shapes=SHAPES, level=0, records=known, tactics=["c"]).save(tmp_path / "a")
    engine.build(path, shapes=SHAPES, level=0, tactics=["numpy"]).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
