"""The benchmark of the twelve networks: a right engine passes, a constant answer does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import models, networks, start_up, surroundings
from engine.debug.peer import Peer, onnxruntime_peer

NAME = "squeezenet"


@pytest.fixture(scope="module")
def peer() -> Peer:
    return onnxruntime_peer(models.load(NAME), 1)


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, Any]]:
    return [models.inputs(NAME, seed=seed) for seed in range(networks.SAMPLES)]


def test_a_constant_answer_fails(peer: Peer, feeds: list[dict[str, Any]]) -> None:
    """Whichever constant: zeros, one of the outputs, or the mean of all."""
    outputs = [peer(item) for item in feeds]
    (name,) = outputs[0]
    stacked = np.stack([item[name] for item in outputs])
    for constant in (np.zeros_like(stacked[0]), stacked[3], stacked.mean(axis=0)):

        def answer(_: Mapping[str, Any], constant: Any = constant) -> dict[str, Any]:
            return {name: constant}

        off = networks.error(answer, peer, feeds)
        assert off >= 1 - 1e-6
        assert not networks.is_good({"error": off, "reference_steps": 0})


def test_an_answer_for_another_input_fails(peer: Peer, feeds: list[dict[str, Any]]) -> None:
    shifted = dict(zip(map(id, feeds), feeds[1:] + feeds[:1], strict=True))
    assert networks.error(lambda item: peer(shifted[id(item)]), peer, feeds) > 0.5
    assert networks.error(peer, peer, feeds) == 0


def test_a_row_says_what_is_judged() -> None:
    row = networks.measure(NAME, level=0, rounds=1, seconds=0.1)
    assert networks.is_good(row)
    assert row["arena_ratio"] <= 1.05
    assert row["ratio"] > 0 and row["fusions"] > 0
    assert networks.row_text(row).startswith(NAME)
    assert not networks.is_good({**row, "reference_steps": 1})
    assert not networks.is_good({**row, "error": float("nan")})


def test_results_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for number in (1, 2):
        surroundings.append(path, {"number": number})
    assert json.loads(path.read_text()) == [{"number": 1}, {"number": 2}]
    assert "cores" in surroundings.surroundings()["machine"]


def test_what_is_not_reached_is_told() -> None:
    assert start_up.Measured("x", 0.2, "s", 0.2).is_good
    assert not start_up.Measured("x", 0.21, "s", 0.2).is_good
    (measured,) = start_up.importing()[:1]
    assert 0 < measured.value < 5
