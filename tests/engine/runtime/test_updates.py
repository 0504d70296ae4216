"""Caches and states that outputs update in place: on a CPU, on an emulated GPU, and on a GPU."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

import engine
from engine.building import BuildOptions, assemble_plan, optimise, read_model
from engine.cuda.null_device import NullDevice
from engine.ir.graph import Graph
from engine.lower.lowering import lower
from engine.plan.plan import Plan
from engine.plan.structure import HostStep
from engine.runtime.cuda_engine import CudaEngine
from engine.target import CudaTarget, describe
from engine.tune.choosing import choose
from engine.tune.device_measuring import DeviceMeasurer
from engine.tune.device_tuning import DeviceTuner
from engine.tune.isolation import full_places, isolate
from engine.tune.records import layer_signature
from engine.tune.tuning import tuning_tasks
from tests.emulated_device import EmulatedDevice
from tests.engine.lower.test_updates import CACHE, STATE
from tests.engine.runtime.decoding import LENGTH, UPDATES, Truth, decoding_model, new_rows
from tests.engine.small_models import model
from tests.engine.tune.test_cases import emulated

emulation = pytest.mark.skipif(shutil.which("g++") is None, reason="the shim needs g++")


def optimised(proto: Any, options: BuildOptions) -> Graph:
    return optimise(read_model(proto, options))


def on_emulated_gpu(body: str, updates: dict[str, str], **details: Any) -> CudaEngine:
    options = BuildOptions(target="cuda:sm90", level=0, tactics=("nvrtc",), updates=updates)
    graph = optimised(model(body, **details), options)
    lowered = lower(graph, (), choose(graph, options, (), ()), emulated, updates=updates)
    images = {name: image.tobytes() for name, image in lowered.images.items()}
    weights = Plan(lowered.program, lowered.packed).arrays()
    return CudaEngine(lowered.program, weights, images, device=EmulatedDevice())


@emulation
def test_a_state_stays_on_the_gpu_from_run_to_run() -> None:
    context = on_emulated_gpu(STATE, {"present": "past"}).create_context()
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    for turn in range(1, 4):
        found = context.run({"x": x})
        np.testing.assert_allclose(np.asarray(found["present"].numpy()), turn * x, rtol=1e-5)
        np.testing.assert_allclose(found["y"], np.exp(turn * x), rtol=1e-4)


@emulation
def test_a_cache_that_only_the_host_can_update_is_right_on_a_gpu() -> None:
    context = on_emulated_gpu(CACHE, {"present": "cache"}, opset=24).create_context()
    wanted = np.zeros((2, 3, 8, 16), np.float32)
    for step in range(3):
        new = np.random.default_rng(step).standard_normal((2, 3, 1, 16)).astype(np.float32)
        wanted[:, :, step] = new[:, :, 0]
        found = context.run({"new": new, "place": np.array([step, step], np.int64)})
        np.testing.assert_array_equal(found["y"], -wanted)


def test_decoding_is_right_on_a_processor() -> None:
    net = engine.load(engine.build(decoding_model(), level=0, updates=UPDATES), compile="wait")
    context, truth = net.create_context(), Truth()
    for step in range(LENGTH - 4, LENGTH):
        rows = new_rows(step)
        truth.keys[:, :, : LENGTH - 4] = truth.values[:, :, : LENGTH - 4] = 0
        found = context.run(rows)["y"]
        np.testing.assert_allclose(np.asarray(found, np.float32), truth.step(rows), atol=5e-3)


def test_decoding_is_one_launch_that_writes_the_caches_where_they_are() -> None:
    options = BuildOptions(
        target="cuda:sm90", level=0, tactics=("triton", "nvrtc"), updates=UPDATES
    )
    graph = optimised(decoding_model(), options)
    assert [node.kind for node in graph.nodes] == ["CachedAttention"]
    assert full_places(graph, {}) == {"place": LENGTH - 1}
    pytest.importorskip("triton")
    program = assemble_plan(graph, options, []).program
    assert len(program.steps) == 1 and not isinstance(program.steps[0], HostStep)
    context = CudaEngine(
        program,
        {},
        {f.tensor: b"" for f in program.functions},
        device=NullDevice(),
    ).create_context()
    for step in range(3):
        context.run(new_rows(step))
    assert context.state("present_k").shape == (2, 4, LENGTH, 64)


def test_a_layer_that_shares_memory_is_measured_apart_and_over_a_full_cache() -> None:
    options = BuildOptions(target="cuda:sm90", level=2, tactics=("triton",), updates=UPDATES)
    graph = optimised(decoding_model(), options)
    (node,) = graph.nodes
    (task,) = tuning_tasks(graph, options, ())
    assert task.shared == ((1, 1), (2, 2))
    assert task.signature != layer_signature(node, {})[0]
    alone = isolate(node, {})
    (place,) = {id(v): v for v in alone.nodes[0].inputs if v and v.constant is not None}.values()
    assert place.constant is not None and place.constant.tolist() == [LENGTH - 1]


@emulation
def test_a_layer_is_measured_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.tune import device_measuring

    monkeypatch.setattr(device_measuring, "MOST_COPIES", 2)
    monkeypatch.setattr(device_measuring, "MOST_RUNS", 2)
    options = BuildOptions(
        target="cuda:sm90", level=2, tactics=("nvrtc",), updates={"present": "past"}
    )
    graph = optimised(model(STATE), options)
    (task,) = tuning_tasks(graph, options, ())
    assert len(task.shared) == 1
    target = describe("cuda:sm90")
    assert isinstance(target, CudaTarget)
    tuner = DeviceTuner(target)
    monkeypatch.setattr(tuner, "_compile", emulated)
    measurer = DeviceMeasurer(EmulatedDevice(), emulated)
    monkeypatch.setattr(tuner, "process", measurer)
    records = tuner.measure(task)
    assert {record.status for record in records} == {"ok"}, [r.reason for r in records]


@pytest.mark.gpu
@pytest.mark.parametrize("level", [0, 2])
def test_decoding_on_a_gpu(level: int) -> None:
    plan = engine.build(decoding_model(), target="cuda", level=level, updates=UPDATES)
    assert not any(isinstance(step, HostStep) for step in plan.program.steps)
    context, truth = engine.load(plan).create_context(), Truth()
    for step in range(6):
        rows = new_rows(step)
        found = np.asarray(context.run(rows)["y"], np.float32)
        np.testing.assert_allclose(found, truth.step(rows), atol=1e-2)
    keys = np.asarray(context.state("past_k").numpy(), np.float64)
    np.testing.assert_allclose(keys, truth.keys, atol=1e-6)


@pytest.mark.gpu
def test_every_size_of_a_profile_on_a_gpu() -> None:
    body = """(float16[N, 256] x) => (float16[] y) {
        a = MatMul (x, w) b = Softmax (a) c = MatMul (b, v) y = Relu (c) }"""
    random = np.random.default_rng(1)
    weights = {
        "w": (random.standard_normal((256, 512)) / 16).astype(np.float16),
        "v": random.standard_normal((512, 128)).astype(np.float16),
    }
    shapes: dict[str, Any] = {"x": ("N=1..24..300", 256)}
    plan = engine.build(model(body, weights=weights), target="cuda", level=2, shapes=shapes)
    context = engine.load(plan).create_context()
    for size in (1, 2, 23, 24, 25, 100, 255, 299, 300):
        x = random.standard_normal((size, 256)).astype(np.float16)
        scores = x.astype(np.float64) @ weights["w"].astype(np.float64)
        soft = np.exp(scores - scores.max(-1, keepdims=True))
        soft /= soft.sum(-1, keepdims=True)
        wanted = np.maximum(soft @ weights["v"].astype(np.float64), 0)
        for _ in range(3):  # launched, captured, replayed
            found = np.asarray(context.run({"x": x})["y"], np.float32)
            np.testing.assert_allclose(found, wanted, atol=2e-2)
