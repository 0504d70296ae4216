"""Layers of an engine on a GPU: only the one at fault is blamed, in slices and for reads too."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from engine.building import optimise
from engine.debug.compare import sample_feeds
from engine.debug.device_layers import DeviceCapture
from engine.debug.layers import captured_values, compare_layers
from engine.errors import OptionError
from engine.onnx_io import read
from engine.plan.plan import Plan
from tests.emulated_plans import emulated, emulated_gpu, emulated_plan
from tests.engine.image_models import IMAGE_MODELS
from tests.engine.transformer_models import TRANSFORMERS

MODELS = {
    **{name: IMAGE_MODELS[name]() for name in ("residual", "unet")},
    "gpt2": TRANSFORMERS["gpt2"]("N", 1),
}


@cache
def plan_of(name: str) -> Plan:
    return emulated_plan(MODELS[name])


def errors(plan: Plan, name: str) -> dict[str, float]:
    """The error of each layer that is compared, by its name."""
    net = emulated(plan)
    found = compare_layers(net, optimise(read(MODELS[name])), sample_feeds(net))
    return {item.layer: item.difference.error for item in found}


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_agrees_with_its_node(name: str) -> None:
    plan = plan_of(name)
    found = errors(plan, name)
    joins = [layer.name for layer in plan.program.layers if layer.kind == "Concat"]
    assert list(found) == [la.name for la in plan.program.layers if la.name not in joins]
    assert max(found.values()) < 0.02


def spoiled(plan: Plan, name: str) -> Plan:
    weights = {item.name: plan.array(item.name) for item in plan.program.weights}
    wrong = (weights[name] * weights[name].dtype.type(1.5) + 1).astype(weights[name].dtype)
    return replace(plan, weights={**weights, name: wrong})


@pytest.mark.parametrize("name", ["residual", "unet"])
def test_a_spoiled_weight_is_found_in_its_own_layer_only(name: str) -> None:
    """In the U-Net two layers write into one tensor that they share."""
    plan = plan_of(name)
    blamed = set()
    for weight in plan.program.weights:
        wrong = [
            layer for layer, off in errors(spoiled(plan, weight.name), name).items() if off > 0.05
        ]
        assert len(wrong) == 1, (weight.name, wrong)
        blamed.update(wrong)
    products = [la.name for la in plan.program.layers if la.kind in ("FusedConv", "FusedMatMul")]
    assert blamed == set(products)


@pytest.mark.parametrize("missing", [1, 2, 4])
def test_a_layer_that_reads_what_nobody_wrote_is_found(missing: int) -> None:
    """Memory holds no numbers before a layer writes it, wherever the arena would reuse it."""
    plan = plan_of("residual")
    steps = plan.program.steps
    cut = replace(plan.program, steps=(*steps[:missing], *steps[missing + 1 :]))
    found = errors(replace(plan, program=cut), "residual")
    name = plan.program.layers[missing].name
    readers = [layer for layer, off in found.items() if not np.isfinite(off)]
    assert name not in found and readers
    assert readers[0] == plan.program.layers[missing + 1].name


def test_the_device_is_left_as_it_was() -> None:
    device = emulated_gpu()
    net = emulated(plan_of("unet"), device)
    before = dict(device.held)
    feeds = sample_feeds(net)
    captured = captured_values(net, feeds)
    assert [item.shared for item in captured].count(True) == 2
    held = dict(device.held)
    assert (held["allocations"], held["graphs"]) == (before["allocations"], before["graphs"])
    assert held["allocations"] == 1  # the weights
    np.testing.assert_array_equal(captured[-1].array, net(feeds)["y"])


def test_values_are_kept_apart_though_a_context_would_overlap_them() -> None:
    net = emulated(plan_of("gpt2"))
    feeds = sample_feeds(net)
    capture = DeviceCapture(net, feeds)
    try:
        offsets = list(capture._binding.layout.arena.offsets.values())
        assert len(set(offsets)) == len(offsets)
        (output,) = net.program.outputs
        np.testing.assert_array_equal(capture.view(output), net(feeds)["y"])
    finally:
        capture.close()


def test_a_graph_of_another_build_is_refused() -> None:
    net = emulated(plan_of("gpt2"))
    graph = optimise(read(MODELS["residual"]))
    with pytest.raises(OptionError, match="built from another model"):
        list(compare_layers(net, graph, sample_feeds(net)))
