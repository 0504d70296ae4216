"""A batch is checked by its first and last sample where samples are alike, else as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.debug import against_model
from engine.debug.against_model import compare_with_model
from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.onnx_io import read
from tests.engine.small_models import model

ALIKE = "(float[8, 4] x) => (float[8, 3] y) { a = MatMul (x, w) y = Relu (a) }"
MIXED = "(float[8, 4] x) => (float[8, 4] y) { m = ReduceMean <axes = [0]> (x) y = Sub (x, m) }"
WRITTEN = "(float[8, 4] x) => (float[8, 4] y) { a = Reshape (x, s) y = Reshape (a, t) }"
CONSTANTS: dict[str, Any] = {
    "w": np.arange(12, dtype=np.float32).reshape(4, 3) - 5,
    "s": np.array([4, 8], np.int64),
    "t": np.array([8, 4], np.int64),
}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches for which meanings were computed."""
    found: list[int] = []

    def counted(graph: Graph, feeds: Any) -> Any:
        found.append(len(feeds["x"]))
        return interpret(graph, feeds)

    monkeypatch.setattr(against_model, "interpret", counted)
    return found


def case(text: str, batch: int = 8) -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    used = {name: array for name, array in CONSTANTS.items() if f" {name})" in text}
    graph = read(model(text, opset=13, weights=used))
    feeds = {"x": np.random.default_rng(1).standard_normal((batch, 4)).astype(np.float32)}
    return graph, feeds, interpret(graph, feeds)


def test_two_samples_stand_for_a_batch_of_samples_that_are_alike(sizes: list[int]) -> None:
    (item,) = compare_with_model(*case(ALIKE), 1e-3)
    assert item.error < 1e-6 and sizes == [2]


@pytest.mark.parametrize("text", [MIXED, WRITTEN])
def test_the_whole_batch_decides_where_samples_depend_on_each_other(
    sizes: list[int], text: str
) -> None:
    (item,) = compare_with_model(*case(text), 1e-3)
    assert item.error < 1e-6 and sizes == [2, 8]


def test_small_batches_are_compared_as_they_are(sizes: list[int]) -> None:
    text = ALIKE.replace("8,", "2,")
    (item,) = compare_with_model(*case(text, 2), 1e-3)
    assert item.error < 1e-6 and sizes == [2]


@pytest.mark.parametrize("sample", [0, 7])
def test_a_wrong_sample_is_found(sizes: list[int], sample: int) -> None:
    graph, feeds, found = case(ALIKE)
    found["y"][sample] += 5
    (item,) = compare_with_model(graph, feeds, found, 1e-3)
    assert item.error > 0.1 and sizes == [2, 8]
