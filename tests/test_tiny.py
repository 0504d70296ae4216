"""The whole product on a processor, in seconds: build, save, load, run; and the three jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import engine
from engine import jobs
from engine.debug.interpret import interpret
from engine.errors import PlanCorruptError, TargetMismatchError
from engine.onnx_io import read
from tests.engine.small_models import assert_close, model

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((8, 3, 3, 3)).astype(np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
    "v": RNG.standard_normal((8, 5)).astype(np.float32),
}
BODY = """(float[batch, 3, 12, 12] image) => (float[batch, 5] scores, int64[] best) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w, b)
    r = Relu (a)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    l = MatMul (f, v)
    scores = Softmax <axis = -1> (l)
    best = ArgMax <axis = 1, keepdims = 0> (scores)
}"""
SHAPES = {"image": ("batch=1..2..8", 3, 12, 12)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model in it."""
    place = tmp_path_factory.mktemp("tiny")
    onnx.save(model(BODY, weights=WEIGHTS), place / "tiny.onnx")
    return place


def images(count: int) -> dict[str, np.ndarray]:
    return {"image": RNG.standard_normal((count, 3, 12, 12)).astype(np.float32)}


def test_build_save_load_run(folder: Path) -> None:
    plan = engine.build(folder / "tiny.onnx", shapes=SHAPES, level=1)
    plan.save(folder / "tiny.engine")
    net = engine.load(folder / "tiny.engine", compile="wait")
    assert [str(port) for port in net.inputs] == ["image: float32[batch, 3, 12, 12]"]
    assert net.output_names == ["scores", "best"]
    assert net.profile == {"batch": (1, (2,), 8)}
    graph = read(folder / "tiny.onnx")
    for count in (1, 2, 5, 8):
        feeds = images(count)
        found = net(feeds)
        assert_close(found, interpret(graph, feeds))
        np.testing.assert_allclose(found["scores"].sum(1), np.ones(count), rtol=1e-5)


def test_a_plan_saved_twice_or_loaded_and_saved_again_has_the_same_bytes(folder: Path) -> None:
    plan = engine.build(folder / "tiny.onnx", shapes=SHAPES, level=0)
    plan.save(folder / "first.engine")
    plan.save(folder / "second.engine")
    from engine.plan.plan import open_plan

    open_plan(folder / "first.engine").save(folder / "third.engine")
    contents = {(folder / f"{name}.engine").read_bytes() for name in ("first", "second", "third")}
    assert len(contents) == 1


def test_the_jobs_of_a_farm_make_the_same_engine(folder: Path) -> None:
    options = {"shapes": {"image": list(SHAPES["image"])}, "level": 1}
    prepared = jobs.prepare(folder / "tiny.onnx", options)
    (folder / "prepared.json").write_bytes(prepared.blob)
    assert jobs.prepare(folder / "tiny.onnx", options) == prepared
    heard: list[dict[str, object]] = []
    records = list(
        jobs.tune(folder / "prepared.json", prepared.tasks, [], heard.append, lambda: False)
    )
    assert {item["signature"] for item in records} == {task.signature for task in prepared.tasks}
    assert heard[-1]["done"] == heard[-1]["total"] == len(prepared.tasks)
    report = jobs.assemble(folder / "prepared.json", records, folder / "jobs.engine")
    assert report["layers"] > 0 and report["requires"] == [] and report["kernels"] > 0
    checked = jobs.verify(folder / "jobs.engine", folder / "tiny.onnx")
    assert checked["compared"] == 2 and checked["error"] < 1e-3


def test_a_tuning_job_stops_when_it_is_told_to(folder: Path) -> None:
    options = {"level": 1}
    prepared = jobs.prepare(folder / "tiny.onnx", options)
    (folder / "stopped.json").write_bytes(prepared.blob)
    found = jobs.tune(folder / "stopped.json", prepared.tasks, [], lambda facts: None, lambda: True)
    assert list(found) == []


def digest(body: str, **weights: np.ndarray) -> str:
    return jobs.graph_digest(read(model(body, weights={**WEIGHTS, **weights})))


BRANCH = """(bool c, float[9] x) => (float[] y) {
    y = If (c) <
        then_branch = one () => (float[9] t)
            <float[9] k = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { t = Add (x, k) },
        else_branch = two () => (float[9] e) { e = Neg (x) }>
}"""
LONG = "(int64[40] x) => (int64[] y) { k = Constant <value_ints = [NUMBERS]> () y = Add (x, k) }"


def test_the_digest_of_a_graph_covers_all_of_it() -> None:
    assert digest(BODY) == digest(BODY)
    numbers = ", ".join(map(str, range(40)))
    found = [
        digest(BODY),
        digest(BODY, b=WEIGHTS["b"] + 1),
        digest(BODY.replace("axis = 1", "axis = 0")),
        digest(BRANCH),
        digest(BRANCH.replace("8, 9", "8, 10")),
        digest(LONG.replace("NUMBERS", numbers)),
        digest(LONG.replace("NUMBERS", numbers.replace("39", "40"))),
    ]
    assert len(set(found)) == len(found)


def test_a_plan_for_another_target_is_refused(folder: Path) -> None:
    import dataclasses

    plan = engine.build(folder / "tiny.onnx", level=0)
    for target in ({"vendor": "rocm", "isa": "gfx9"}, {"vendor": "cpu", "isa": "sse9"}, {}):
        other = dataclasses.replace(plan, target=target)
        other.save(folder / "other.engine")
        with pytest.raises(TargetMismatchError, match="build the model for this machine"):
            engine.load(folder / "other.engine")


def test_a_plan_for_a_gpu_says_for_which(folder: Path) -> None:
    import dataclasses

    plan = engine.build(folder / "tiny.onnx", level=0)
    dataclasses.replace(plan, target={"vendor": "cuda"}).save(folder / "other.engine")
    with pytest.raises(PlanCorruptError, match="does not say for which"):
        engine.load(folder / "other.engine")


def test_what_is_no_plan_is_refused(folder: Path) -> None:
    with pytest.raises(PlanCorruptError, match=r"tiny\.onnx"):
        engine.load(folder / "tiny.onnx")
