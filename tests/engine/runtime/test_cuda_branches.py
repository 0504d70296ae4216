"""Networks with branches built for a GPU with lanes, run on an emulated one in any order."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest.mock import patch

import onnx
import pytest

from engine.debug.compare import error
from engine.debug.interpret import interpret
from engine.debug.memory import arena_use
from engine.onnx_io import read
from engine.plan.lanes import lane_of
from engine.plan.plan import Plan, open_plan
from engine.tune.whole_programs import Making
from tests.emulated_device import EmulatedDevice
from tests.emulated_plans import emulated, emulated_gpu, emulated_plan
from tests.engine.branch_models import BRANCH_MODELS
from tests.engine.runtime.test_cuda_networks import feeds_of


@cache
def plan_of(name: str) -> tuple[onnx.ModelProto, Plan]:
    model = BRANCH_MODELS[name]()
    making = Making(("nvrtc",), branches=True)
    with patch("engine.tune.whole_programs.choose_program", lambda *_: making):
        return model, emulated_plan(model)


def device_of(order: str) -> EmulatedDevice:
    device = emulated_gpu()
    device.eager, device.latest_first = order == "eager", order == "latest first"
    return device


@pytest.mark.parametrize("order", ["late", "eager", "latest first"])
@pytest.mark.parametrize("name", BRANCH_MODELS)
def test_networks_with_lanes_compute_what_they_mean(name: str, order: str) -> None:
    model, plan = plan_of(name)
    device = device_of(order)
    with emulated(plan, device).create_context() as context:
        for batch in (2, 1, 3):
            samples = [feeds_of(model, batch, seed) for seed in range(3)]
            results = [context.run(feeds) for feeds in samples]
            for output in results[0]:
                wanted = [interpret(read(model), feeds)[output] for feeds in samples]
                assert error([found[output] for found in results], wanted) < 0.02
    assert device.counts["wait"] > 0 and device.counts["captured wait"] > 0
    assert device.counts["refused"] == 0


@pytest.mark.parametrize(("name", "lanes"), [("bottleneck", 1), ("inception", 3), ("heads", 2)])
def test_networks_have_the_lanes_that_their_branches_need(name: str, lanes: int) -> None:
    _, plan = plan_of(name)
    assert {lane_of(step) for step in plan.program.steps} == set(range(lanes + 1))
    with patch("engine.tune.whole_programs.choose_program", lambda *_: Making(("nvrtc",))):
        serial = emulated_plan(BRANCH_MODELS[name]())
    assert not any(lane_of(step) for step in serial.program.steps)
    for beside, apart in zip(arena_use(plan.program), arena_use(serial.program)):
        assert beside.nbytes >= apart.nbytes and beside.ratio <= 1.05


@pytest.mark.parametrize("name", BRANCH_MODELS)
def test_plans_with_lanes_are_the_same_every_time_and_read_back(name: str, tmp_path: Any) -> None:
    _, plan = plan_of(name)
    plan.save(tmp_path / "first")
    plan_of.__wrapped__(name)[1].save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert open_plan(tmp_path / "first").program == plan.program
