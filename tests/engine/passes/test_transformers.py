"""What PyTorch exports of a transformer becomes seven layers a block, and nothing in between."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.onnx_io import read
from engine.passes import run_pipeline
from tests.engine.small_models import random_feeds
from tests.engine.transformer_models import TRANSFORMERS

#: Layers outside of the blocks: embedding and first norm, and a mask, the first convolution and
#: the row that is classified, or the last norm; the head.
AROUND = {"bert": 2, "gpt2": 2, "vit": 4}
BLOCK = {"FusedMatMul": 4, "FusedAttention": 1, "Region": 2}


def feeds_of(graph: Graph, batch: int, seed: int = 0) -> dict[str, Any]:
    feeds = random_feeds(graph, seed=seed, B=batch)
    if "mask" in feeds:
        feeds["mask"][:, 0] = 1  # a row without any key has no meaning that two would share
    return feeds


def layers(graph: Graph) -> Counter[str]:
    return Counter(node.kind for node in graph.nodes if node.kind != "View")


@pytest.mark.parametrize("batch", ["1", "3", "B"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_block_is_seven_layers(name: str, batch: str) -> None:
    found = []
    for count in (1, 2):
        graph = read(TRANSFORMERS[name](batch, count))
        run_pipeline(graph, checked=True)
        found.append(layers(graph))
    assert found[1] - found[0] == Counter(BLOCK)
    assert found[0].total() == 7 + AROUND[name]
    assert not set(found[1]) & {"Transpose", "Concat", "Shape", "Softmax"}


@pytest.mark.parametrize("batch", ["2", "B"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_fused_they_mean_what_they_meant(name: str, batch: str) -> None:
    graph = read(TRANSFORMERS[name](batch))
    samples = [feeds_of(graph, 2, seed) for seed in range(3)]
    expected = [interpret(graph, feeds)["y"].astype(np.float64) for feeds in samples]
    run_pipeline(graph)
    spread = np.stack(expected).std(axis=0).max()
    for feeds, wanted in zip(samples, expected):
        found = interpret(graph, feeds)["y"]
        assert found.dtype == np.float16
        assert np.abs(found.astype(np.float64) - wanted).max() < 0.02 * spread
