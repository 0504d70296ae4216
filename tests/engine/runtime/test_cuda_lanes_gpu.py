"""Lanes on a GPU: the same answers as on one stream, in less time where kernels are small."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import engine
from engine.cuda.device import Device, open_device
from engine.debug.compare import error
from engine.debug.interpret import interpret
from engine.onnx_io import read
from engine.plan.lanes import lane_of
from engine.plan.structure import Program
from engine.runtime.cuda_engine import CudaEngine
from engine.tune.whole_programs import Making
from tests.cuda_programs import KERNELS, blocks, expected_side_by_side, side_by_side, two_chains
from tests.engine.branch_models import BRANCH_MODELS
from tests.engine.runtime.test_cuda_networks import feeds_of

pytestmark = pytest.mark.gpu
W = np.array([1, 2, 3, 4], np.float32)
LARGE = 1_000_000
SOURCES = {"nvrtc": ("nvrtc",), "compiled": ("triton", "nvrtc"), "all": ()}


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device(0)


@pytest.fixture(scope="module")
def make(device: Device) -> Any:
    from engine.cuda.nvrtc import compile_nvrtc

    capability = device.target.capability
    images = {kernel.entry: compile_nvrtc(kernel, capability).image for kernel in KERNELS}

    def engine_of(program: Program) -> CudaEngine:
        return CudaEngine(program, {"w": W}, images, device=device)

    return engine_of


def vector(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("programmatic", [True, False])
@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("lanes", [(0, 1), (2, 1), (1, 0), (0, 0)], ids=str)
def test_branches_compute_the_same_on_every_lane(
    make: Any, lanes: tuple[int, int], capture: bool, programmatic: bool
) -> None:
    for host in (False, True):
        with make(side_by_side(*lanes, host=host)).create_context() as context:
            context.capture, context.programmatic = capture, programmatic
            for turn in range(4):
                for size in (1, 64, 65, 1000, 0):
                    x = vector(size, turn)
                    found = context.run({"x": x})["y"]
                    np.testing.assert_allclose(found, expected_side_by_side(x, W), rtol=1e-5)


@pytest.mark.parametrize("programmatic", [True, False])
@pytest.mark.parametrize("capture", [True, False])
def test_many_blocks_over_large_tensors_have_no_race(
    make: Any, capture: bool, programmatic: bool
) -> None:
    """Memory is used again from block to block: what begins too early shows."""
    found = {}
    for lane in (0, 1):
        with make(blocks(20, lane, greatest=LARGE)).create_context() as context:
            context.capture, context.programmatic = capture, programmatic
            for size in (LARGE, 5000):
                x = vector(size)
                runs = [context.run({"x": x})["y"] for _ in range(8)]
                assert all(np.array_equal(run, runs[0]) for run in runs)
                found[lane, size] = runs[0]
    for size in (LARGE, 5000):
        np.testing.assert_array_equal(found[0, size], found[1, size])


def test_contexts_run_their_lanes_at_once(make: Any) -> None:
    net = make(blocks(20, 1, greatest=LARGE))
    samples = [vector(20_000, seed) for seed in range(4)]
    with make(blocks(20, 0, greatest=LARGE)).create_context() as context:
        wanted = [context.run({"x": x})["y"] for x in samples]
    wrong: list[Any] = []

    def work(place: int) -> None:
        try:
            with net.create_context() as context:
                for _ in range(30):
                    found = context.run({"x": samples[place]})["y"]
                    if not np.array_equal(found, wanted[place]):
                        wrong.append(place)
        except Exception as failure:
            wrong.append(failure)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_caller_s_stream_is_in_order_with_all_lanes(make: Any) -> None:
    cupy = pytest.importorskip("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    with make(blocks(5, 1, greatest=LARGE)).create_context() as context:
        samples = [vector(LARGE, turn) for turn in range(6)]
        wanted = [context.run({"x": x})["y"] for x in samples]
    with stream, make(blocks(5, 1, greatest=LARGE)).create_context(stream=stream) as context:
        x = cupy.zeros(LARGE, cupy.float32)
        for sample, expected in zip(samples, wanted):
            x.set(sample)
            found = cupy.asarray(context.run({"x": x})["y"])
            x.fill(0)
            np.testing.assert_array_equal(cupy.asnumpy(found), expected)


def test_chains_of_small_kernels_take_less_time_side_by_side(make: Any, device: Device) -> None:
    """Prints what lanes gain; without kernels that begin early two chains take the time of one."""
    times: dict[tuple[bool, int], float] = {}
    for programmatic in (True, False):
        for lane in (0, 1):
            with make(two_chains(60, lane)).create_context() as context:
                context.programmatic = programmatic
                x = vector(1000)
                for _ in range(5):
                    context.run({"x": x})
                begin, end = device.create_event(timed=True), device.create_event(timed=True)
                stream = context.stream.handle
                binding = next(iter(context._bound.values()))
                device.record(begin, stream)
                for _ in range(20):
                    binding.run(stream, {}, capture_on=context._capturing())
                device.record(end, stream)
                device.synchronize(stream)
                times[programmatic, lane] = device.elapsed_ns(begin, end) / 20
                for event in (begin, end):
                    device.destroy_event(event)
    print({f"early={early} lane={lane}": round(ns) for (early, lane), ns in times.items()})
    assert times[False, 1] < 0.8 * times[False, 0]


CASES = [(name, which) for name in BRANCH_MODELS for which in SOURCES]


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def built(request: pytest.FixtureRequest) -> Iterator[tuple[str, CudaEngine]]:
    """A network's name and its engine with lanes, nothing measured."""
    name, which = request.param

    def parted(graph: Any, options: Any, *_: Any) -> Making:
        return Making(options.tactics, branches=True)

    with patch("engine.tune.whole_programs.choose_program", parted):
        plan = engine.build(BRANCH_MODELS[name](), target="cuda", tactics=SOURCES[which], level=0)
    assert any(lane_of(step) for step in plan.program.steps)
    net = engine.load(plan)
    assert isinstance(net, CudaEngine)
    yield name, net
    net.close()


def test_networks_with_lanes_compute_what_they_mean(built: tuple[str, CudaEngine]) -> None:
    """Launched, captured, as a graph; at several batches, with and without overlap."""
    name, net = built
    model = BRANCH_MODELS[name]()
    for batch in (1, 7):
        samples = [feeds_of(model, batch, seed) for seed in range(4)]
        wanted = [interpret(read(model), feeds) for feeds in samples]
        for programmatic in (True, False):
            with net.create_context() as context:
                context.programmatic = programmatic
                found = [context.run(feeds) for feeds in samples for _ in range(2)]
                context.profile(samples[0])
            for output in wanted[0]:
                results = [item[output] for item in found]
                expected = [item[output] for item in wanted for _ in range(2)]
                assert error(results, expected) < 0.03, (batch, programmatic)
