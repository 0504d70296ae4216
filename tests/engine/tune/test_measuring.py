"""Isolating a layer, checking candidates against its meaning, and timing them in turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.building import BuildOptions
from engine.ir.graph import Graph, Node
from engine.ir.types import DType, TensorType
from engine.ir.verify import verify
from engine.lower.builder import ProgramBuilder
from engine.onnx_io import read
from engine.ops import find
from engine.passes import run_pipeline
from engine.runtime import blas
from engine.runtime.compilation import find_compiler
from engine.tactics import Candidate, candidates
from engine.target import describe
from engine.tune import measuring
from engine.tune.isolation import isolate, random_array
from engine.tune.measuring import SAMPLES, Measurement, measure
from engine.tune.tuning import BREADTH, tune_graph, tuning_tasks
from tests.engine.small_models import graph_of, model

BODY = "(float[N, 24] x, float[N, 40] r) => (float[] y) { a = MatMul (x, w) y = Add (a, r) }"
WEIGHTS = {"w": np.arange(960, dtype=np.float32).reshape(24, 40)}
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler")


def prepared() -> Graph:
    graph = read(model(BODY, weights=WEIGHTS))
    run_pipeline(graph)
    return graph


def wrong(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """Computes something else than the node means, of the same shape."""
    other = Node(find("", "Neg", 13)(), [node.inputs[2]], node.outputs, name="wrong")
    builder.meaning(other, layer)
    other.detach()


def crash(builder: ProgramBuilder, node: Node, layer: int) -> None:
    raise ValueError("this candidate cannot be written")


def test_an_isolated_layer_has_numbers_for_sizes_and_random_weights() -> None:
    (node,) = prepared().nodes
    graph = isolate(node, {"N": 7})
    verify(graph)
    assert [str(value.type) for value in graph.inputs] == ["float32[7, 24]", "float32[7, 40]"]
    assert [str(value.type) for value in graph.outputs] == ["float32[7, 40]"]
    (constant,) = graph.constants()
    assert constant.constant is not None and constant.constant.shape == (24, 40)
    assert not np.array_equal(constant.constant, WEIGHTS["w"])
    again = isolate(node, {"N": 7}).constants()[0].constant
    np.testing.assert_array_equal(again, constant.constant)
    assert node.graph is not None and node.inputs[0] is node.graph.inputs[0]


@pytest.mark.parametrize("dtype", list(DType), ids=lambda d: d.value)
def test_random_data_fits_its_type(dtype: DType) -> None:
    kind = TensorType(dtype, (3, 4))
    data = random_array(kind, 5)
    assert data.shape == (3, 4) and DType.of(data.dtype) is dtype
    assert data.tobytes() == random_array(kind, 5).tobytes() or dtype is DType.STRING
    if dtype.is_integer:
        assert set(data.astype(int).ravel()) <= {0, 1}


@needs_compiler
def test_candidates_are_timed_and_wrong_ones_are_told_apart() -> None:
    (node,) = prepared().nodes
    point = {"N": 33}
    offered = candidates(node, ("c",), point, describe())[0][:2]
    bad = Candidate("c.wrong", {}, wrong)
    broken = Candidate("c.broken", {}, crash)
    found = measure(node, [*offered, bad, broken], point, samples=6)
    assert [item.candidate.tactic for item in found] == [
        *(c.tactic for c in offered),
        "c.wrong",
        "c.broken",
    ]
    for item in found[:2]:
        assert not item.reason and 4 <= len(item.samples) <= 6 and 0 < item.time_ns < 1e9
    assert found[2].reason and not found[2].samples and found[2].time_ns == float("inf")
    assert found[3].reason == "this candidate cannot be written"


def test_a_measurement_is_the_thirtieth_percentile() -> None:
    item = Measurement(Candidate("c.x", {}, crash), tuple(range(100, 201)))
    assert item.time_ns == 130 and 0 < item.spread < 1
    assert Measurement(Candidate("c.x", {}, crash), ()).spread == 0.0


@needs_compiler
def test_tuning_measures_each_layer_once_and_then_nothing() -> None:
    body = BODY.replace("y = Add (a, r)", "b = MatMul (x, w) c = Add (a, r) y = Max (c, b)")
    body = body.replace("b = MatMul (x, w)", "t = Neg (x) b = MatMul (t, w)")
    graph = read(model(body, weights=WEIGHTS))
    run_pipeline(graph)
    options = BuildOptions(level=1)
    tasks = tuning_tasks(graph, options, [])
    assert len({task.signature for task in tasks}) == len(tasks) > 0
    assert all(2 <= len(task.offered) <= BREADTH[1] for task in tasks)
    heard: list[Any] = []
    records = tune_graph(graph, options, [], lambda *facts: heard.append(facts))
    assert len(records) == sum(len(task.offered) for task in tasks)
    assert heard == [(i, len(tasks), task.node.name) for i, task in enumerate(tasks)]
    assert all(item.status == "ok" and item.samples <= SAMPLES for item in records)
    assert tune_graph(graph, options, records) == []
    assert tuning_tasks(graph, BuildOptions(level=0), []) == []


def test_numpy_is_timed_as_it_runs_beside_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every BLAS thread it would win races that it loses in a network."""
    controls = blas._controls()
    if controls is None or find_compiler() is None:
        pytest.skip("NumPy has another BLAS here, or there is no C compiler")
    threads, write = controls
    before, seen = threads(), set[int]()
    timed = measuring._time

    def time(rival: measuring.Rival, feeds: Any) -> int:
        seen.add(threads())
        return timed(rival, feeds)

    monkeypatch.setattr(measuring, "_time", time)
    write(2)
    try:
        body = "(float[4, 8] x) => (float[] y) { y = MatMul (x, w) }"
        graph = graph_of(body, weights={"w": np.ones((8, 8), np.float32)})
        run_pipeline(graph)
        (node,) = graph.nodes
        measure(node, candidates(node, ("c", "numpy"), {}, describe())[0][-2:], {})
        assert seen == {1} and threads() == 2
    finally:
        write(before)
