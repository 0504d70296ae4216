"""Comparing layer by layer: nothing is missed, and only the layer at fault is blamed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.building import BuildOptions, assemble_plan, optimise
from engine.debug.compare import sample_feeds
from engine.debug.layers import captured_values, compare_layers
from engine.debug.memory import arena_use
from engine.debug.tiny import tiny_graph, tiny_model
from engine.errors import OptionError
from engine.loading import load
from engine.plan.plan import Plan
from engine.runtime.kernels import CompileMode


@pytest.mark.parametrize("mode", ["wait", "never"])
def test_every_layer_agrees_with_its_node(mode: CompileMode) -> None:
    _, plan = tiny_graph()
    net = load(plan, compile=mode)
    found = list(compare_layers(net, optimise(tiny_model()), sample_feeds(net)))
    assert [item.layer for item in found] == [layer.name for layer in plan.program.layers]
    assert max(item.difference.error for item in found) < 1e-5


def test_values_survive_until_the_end_of_the_run() -> None:
    _, plan = tiny_graph()
    net = load(plan, compile="never")
    feeds = sample_feeds(net)
    captured = captured_values(net, feeds)
    assert np.array_equal(captured[-1].array, net(feeds)["y"])
    assert len(captured) == len(plan.program.layers)


def spoiled(plan: Plan, name: str) -> Plan:
    weights = {item.name: plan.array(item.name) for item in plan.program.weights}
    return replace(plan, weights={**weights, name: weights[name] * np.float32(1.5)})


def test_a_spoiled_weight_is_found_in_its_own_layer_only() -> None:
    _, plan = tiny_graph()
    graph = optimise(tiny_model())
    blamed = set()
    for weight in plan.program.weights:
        net = load(spoiled(plan, weight.name), compile="never")
        found = compare_layers(net, graph, sample_feeds(net))
        wrong = [item.layer for item in found if item.difference.error > 1e-3]
        assert len(wrong) == 1, (weight.name, wrong)
        blamed.update(wrong)
    assert len(blamed) == 2  # two products have weights


def test_an_engine_of_another_graph_is_refused() -> None:
    _, plan = tiny_graph()
    graph = optimise(tiny_model())
    graph.nodes[0].name = "unknown"
    with pytest.raises(OptionError, match="no layer 'unknown'"):
        list(compare_layers(load(plan, compile="never"), graph, {}))


def test_memory_is_reported_beside_its_lower_bound() -> None:
    program = assemble_plan(optimise(tiny_model()), BuildOptions(level=0), ()).program
    (use,) = arena_use(program)
    assert use.nbytes >= use.lower_bound > 0
    assert use.ratio == use.nbytes / use.lower_bound
