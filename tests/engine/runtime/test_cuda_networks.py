"""Whole networks built for a GPU and run on an emulated one, through the public functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from engine.debug.compare import error, random_values
from engine.debug.interpret import interpret
from engine.debug.memory import arena_use
from engine.ir.types import DType
from engine.onnx_io import read
from engine.plan.device import LaunchStep
from engine.plan.plan import Plan
from tests.emulated_plans import emulated, emulated_gpu, emulated_plan
from tests.engine.image_models import IMAGE_MODELS
from tests.engine.small_models import random_feeds
from tests.engine.transformer_models import TRANSFORMERS

Make = Callable[[], onnx.ModelProto]
NETWORKS: dict[str, Make] = {
    **IMAGE_MODELS,
    **{name: lambda make=make: make("N", 1) for name, make in TRANSFORMERS.items()},
}
#: Launches of each network: one a layer; joining what lies side by side takes none.
LAUNCHES = {"residual": 9, "unet": 8, "gated": 9, "bert": 9, "gpt2": 9, "vit": 11}
ALLOWED_ARENA = 1.05


@cache
def plan_of(name: str) -> tuple[onnx.ModelProto, Plan]:
    model = NETWORKS[name]()
    return model, emulated_plan(model)


def feeds_of(model: onnx.ModelProto, batch: int, seed: int) -> dict[str, Any]:
    feeds = random_feeds(read(model), seed=seed, N=batch)
    random = np.random.default_rng(seed)
    for name, array in feeds.items():
        if array.ndim == 4:  # an image: noise would look alike to every network
            feeds[name] = random_values(random, DType.FLOAT16, array.shape)
    if "mask" in feeds:
        feeds["mask"][:, 0] = 1
    return feeds


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_they_mean_at_every_batch(name: str) -> None:
    """Launched one by one, captured, and as a graph; a second shape in between."""
    model, plan = plan_of(name)
    device = emulated_gpu()
    with emulated(plan, device).create_context() as context:
        for batch in (2, 1, 3):
            samples = [feeds_of(model, batch, seed) for seed in range(3)]
            wanted = [interpret(read(model), feeds)["y"] for feeds in samples]
            found = [context.run(feeds)["y"] for feeds in samples]
            assert all(array.dtype == np.float16 for array in found)
            assert error(found, wanted) < 0.02
    assert (device.counts["capture"], device.counts["graph launch"]) == (3, 6)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_but_launches_runs(name: str) -> None:
    """No step on the host, no copy, one graph; no inner conversion of a layout."""
    _, plan = plan_of(name)
    steps = plan.program.steps
    assert all(isinstance(step, LaunchStep) for step in steps)
    assert len(steps) == LAUNCHES[name]
    turned = [layer.name for layer in plan.program.layers[:-1] if layer.kind == "Transpose"]
    assert not turned
    assert not plan.requires
    assert all(function.waits for function in plan.program.functions)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_arena_is_near_its_lower_bound(name: str) -> None:
    _, plan = plan_of(name)
    for use in arena_use(plan.program):
        assert use.ratio <= ALLOWED_ARENA


def test_kernels_overlap_unless_told_otherwise() -> None:
    model, plan = plan_of("bert")
    for programmatic in (True, False):
        device = emulated_gpu()
        with emulated(plan, device).create_context() as context:
            context.programmatic = programmatic
            context.run(feeds_of(model, 1, 0))
        early = [launch.early for launch in device.launches]
        assert early == [programmatic and place > 0 for place in range(len(early))]


def test_contexts_of_one_network_run_apart() -> None:
    model, plan = plan_of("residual")
    device = emulated_gpu()
    engine = emulated(plan, device)
    uploaded = device.counts["upload"]
    with engine.create_context() as one, engine.create_context() as other:
        feeds = [feeds_of(model, batch, batch) for batch in (1, 2)]
        found = [context.run(item)["y"] for context, item in zip((one, other), feeds)]
        for array, item in zip(found, feeds):
            wanted = interpret(read(model), item)["y"].astype(np.float64)
            assert np.abs(array - wanted).max() < 0.02 * wanted.std()
    assert device.counts["upload"] == uploaded + 2  # inputs alone: weights are there once


def test_a_saved_plan_runs_as_the_one_that_was_built(tmp_path: Any) -> None:
    import engine

    model, plan = plan_of("vit")
    plan.save(tmp_path / "vit.engine")
    net = engine.load(tmp_path / "vit.engine", device=emulated_gpu())
    feeds = feeds_of(model, 2, 4)
    np.testing.assert_array_equal(net(feeds)["y"], emulated(plan)(feeds)["y"])


@pytest.mark.parametrize("target", ["cuda:sm80", "cuda:sm90", "cuda:sm100"])
def test_plans_are_compiled_without_a_gpu(target: str) -> None:
    """Machine code for the architecture that was asked for, one function for equal kernels."""
    import engine

    plan = engine.build(NETWORKS["gpt2"](), target=target, tactics=["nvrtc"], level=0)
    assert plan.program.functions
    for function in plan.program.functions:
        image = plan.images[function.tensor].tobytes()
        assert image[:4] == b"\x7fELF" and function.entry.encode() in image
        assert function.waits == (target != "cuda:sm80")
    assert plan.target["capability"] == [int(target[7:-1]), 0]
