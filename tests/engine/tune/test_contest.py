"""Samples of a contest: what moves all entrants alike is no noise between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tune.contest import Outcome, without_drift

TURNS = 20


def noisy(times: list[float], drift: list[float], noise: float) -> list[list[float]]:
    generator = np.random.default_rng(0)
    return [[t * d * (1 + noise * generator.standard_normal()) for d in drift] for t in times]


@given(st.lists(st.floats(0.7, 1.4), min_size=TURNS, max_size=TURNS))
def test_a_clock_that_moves_is_taken_out(drift: list[float]) -> None:
    found = without_drift(noisy([100.0, 108.0, 150.0], drift, 0.002))
    outcomes = [Outcome(samples) for samples in found]
    assert all(outcome.spread < 0.02 for outcome in outcomes)
    assert outcomes[1].time_ns / outcomes[0].time_ns == pytest.approx(1.08, rel=0.02)


def test_noise_of_one_entrant_stays_its_own() -> None:
    samples = noisy([100.0, 100.0, 100.0, 100.0], [1.0] * TURNS, 0.001)
    samples[0][::2] = [2 * s for s in samples[0][::2]]
    found = [Outcome(item).spread for item in without_drift(samples)]
    assert found[0] > 0.3 and max(found[1:]) < 0.01


def test_who_left_early_is_corrected_by_those_who_stayed() -> None:
    drift = [1.0, 1.5, *[1.0] * (TURNS - 2)]
    samples = noisy([100.0, 101.0, 300.0], drift, 0.0)
    samples[2] = samples[2][:3]
    found = without_drift(samples)
    assert len(found[2]) == 3 and found[2] == pytest.approx([300.0] * 3)


def test_an_entrant_alone_keeps_its_samples() -> None:
    assert without_drift([[1.0, 2.0, 3.0]]) == [(1.0, 2.0, 3.0)]
    assert without_drift([]) == [] and without_drift([[], []]) == [(), ()]
