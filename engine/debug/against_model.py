"""Comparing an engine with its model's meaning at a bearable cost.

Meanings are NumPy's, which takes minutes for a large batch. Most models treat the samples of a
batch alike, so the first and the last sample are compared first, by computing the model's meaning
for those two. Only where that does not agree, or where the model does not allow it, the whole batch
decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.debug.compare import Difference, difference
from engine.debug.interpret import interpret
from engine.errors import EngineError
from engine.ir.graph import Graph

__all__ = ["PICKED", "compare_with_model"]

#: Samples that stand for a batch.
PICKED = (0, -1)


def compare_with_model(
    graph: Graph,
    feeds: Mapping[str, Any],
    found: Mapping[str, Any],
    tolerance: float,
) -> list[Difference]:
    """How far each output found is from what the model means for these feeds.

    ``graph`` is the model as it was read. ``tolerance`` decides whether the first and the last
    sample agree, so that nothing else needs to be computed.
    """
    quick = _of_few_samples(graph, feeds, found)
    if quick is not None and all(item.error <= tolerance for item in quick):
        return quick
    expected = interpret(graph, feeds)
    return [difference(name, found[name], expected[name]) for name in found]


def _of_few_samples(
    graph: Graph, feeds: Mapping[str, Any], found: Mapping[str, Any]
) -> list[Difference] | None:
    """The differences of the first and the last sample; None when they cannot be told apart."""
    arrays = [*feeds.values(), *found.values()]
    if not _share_batch(arrays):
        return None
    places = list(PICKED)
    picked = {name: array[places] for name, array in feeds.items()}
    try:
        expected = interpret(graph, picked)
    except (EngineError, ValueError, IndexError, TypeError):
        return None  # the model has its batch written into it
    if any(np.shape(expected[name]) != array[places].shape for name, array in found.items()):
        return None
    return [difference(name, array[places], expected[name]) for name, array in found.items()]


def _share_batch(arrays: Sequence[Any]) -> bool:
    """Whether all are tensors with the same first axis, longer than the samples that are picked."""
    if not all(isinstance(array, np.ndarray) and array.ndim for array in arrays):
        return False
    sizes = {array.shape[0] for array in arrays}
    return len(sizes) == 1 and sizes.pop() > len(PICKED)
