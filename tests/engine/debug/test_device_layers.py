"""Layers of an engine on a GPU against their meaning, each blamed for its own error only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import engine
from engine import building
from engine.building import BuildOptions, assemble_plan, optimise
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.debug.device_layers import DeviceCapture
from engine.debug.layers import compare_layers
from engine.debug.tiny import tiny_model
from engine.runtime.cuda_engine import CudaEngine
from tests.emulated_device import EmulatedDevice, image_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the shim needs g++")
FEEDS = {"x": np.linspace(-2, 2, 3 * 16, dtype=np.float32).reshape(3, 16)}


def compiled(kernels: Sequence[DeviceKernel]) -> list[Compiled]:
    return [Compiled(image_of(k), k.entry, k.threads, k.shared_nbytes) for k in kernels]


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> CudaEngine:
    """A tiny network on a GPU of host memory."""
    monkeypatch.setattr(building, "device_compiler", lambda target: compiled)
    options = BuildOptions(target="cuda:sm90", level=0, tactics=("nvrtc",))
    plan = assemble_plan(optimise(tiny_model()), options, ())
    loaded = engine.load(plan, device=EmulatedDevice())
    assert isinstance(loaded, CudaEngine)
    return loaded


def test_every_layer_agrees_with_its_node(net: CudaEngine) -> None:
    found = list(compare_layers(net, optimise(tiny_model()), FEEDS))
    assert [item.layer for item in found] == [layer.name for layer in net.program.layers]
    assert all(item.difference.error < 1e-4 for item in found)
    device = net.device
    assert isinstance(device, EmulatedDevice)
    assert device.held["allocations"] == 1  # the weights


def test_the_layer_that_errs_is_named_and_those_after_it_are_not(net: CudaEngine) -> None:
    graph = optimise(tiny_model())
    first = graph.nodes[0]
    weight = next(value for value in first.inputs if value and value.constant is not None)
    assert weight.constant is not None
    weight.constant = weight.constant * 2
    found = {item.layer: item.difference.error for item in compare_layers(net, graph, FEEDS)}
    wrong = [layer for layer, error in found.items() if error > 1e-2]
    assert wrong == [first.name]


def test_values_are_kept_apart_though_a_context_would_overlap_them(net: CudaEngine) -> None:
    capture = DeviceCapture(net, FEEDS)
    try:
        offsets = sorted(capture._binding.layout.arena.offsets.values())
        assert len(set(offsets)) == len(offsets)
        (output,) = net.program.outputs
        np.testing.assert_allclose(capture.view(output), net(FEEDS)["y"], rtol=1e-5)
    finally:
        capture.close()


def test_a_graph_of_another_build_is_refused(net: CudaEngine) -> None:
    graph = optimise(tiny_model())
    program = replace(net.program, layers=tuple(replace(x, name="z") for x in net.program.layers))
    net.program = program
    with pytest.raises(engine.errors.OptionError, match="built from another model"):
        list(compare_layers(net, graph, FEEDS))
