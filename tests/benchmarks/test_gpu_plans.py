"""The benchmark networks built for a GPU: every layer on the device, the arena at its bound."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from benchmarks import models
from engine.building import BuildOptions, assemble_plan, optimise, read_model
from engine.debug.memory import arena_use
from engine.plan.device import LaunchStep
from tests.emulated_plans import kept_as_source

#: Layers of each network in float16, its inputs and outputs in float32. Concatenations take no
#: launch; BERT and GPT-2 also make their masks.
LAYERS = {
    "shufflenet": 76,
    "squeezenet": 41,
    "densenet121": 244,
    "resnet50": 58,
    "bert_base": 91,
    "gpt2": 90,
    "vit_b16": 90,
}
SMALL = ("shufflenet", "squeezenet")
EACH = [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("batch", [1, 8])
def test_a_network_runs_on_the_device_alone(name: str, batch: int) -> None:
    options = BuildOptions(target="cuda:sm90", precision="fp16", level=0, tactics=("nvrtc",))
    graph = optimise(read_model(models.load(name, batch), options), options.precision)
    layers = [node for node in graph.nodes if node.kind != "View"]
    assert len(layers) <= LAYERS[name]
    with patch("engine.building.device_compiler", lambda target: kept_as_source):
        program = assemble_plan(graph, options, ()).program
    joins = sum(layer.kind == "Concat" for layer in program.layers)
    assert all(isinstance(step, LaunchStep) for step in program.steps)
    assert len(program.steps) == len(layers) - joins
    assert {layer.tactic.split(".")[0] for layer in program.layers} == {"nvrtc"}
    assert all(use.ratio <= 1.05 for use in arena_use(program))
