"""Transforms of scores are what their names say."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from engine.ops.score_transforms import transform_scores


def test_softmax_zero_leaves_zeros_at_zero_and_shares_the_rest() -> None:
    scores = transform_scores(np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), "SOFTMAX_ZERO")
    np.testing.assert_allclose(scores, [[0, 0.5, 0.5], [0.5, 0.5, 0.5]], atol=1e-7)


def test_softmax_rows_add_up_to_one_even_for_huge_scores() -> None:
    scores = transform_scores(np.array([[1000.0, 1001.0], [-1e5, 3.0]]), "SOFTMAX")
    np.testing.assert_allclose(scores.sum(axis=1), 1)


def test_logistic_is_symmetric_and_does_not_overflow() -> None:
    x = np.array([[-1e4, -2.0, 0.0, 2.0, 1e4]])
    with np.errstate(over="raise"):
        scores = transform_scores(x, "LOGISTIC")
    np.testing.assert_allclose(scores + transform_scores(-x, "LOGISTIC"), 1)


def test_probit_is_close_to_the_normal_quantile() -> None:
    p = np.linspace(0.01, 0.99, 21)
    exact = [NormalDist().inv_cdf(item) for item in p]
    np.testing.assert_allclose(transform_scores(p, "PROBIT"), exact, atol=0.01)


def test_probit_of_impossible_probabilities_is_not_a_number() -> None:
    found = transform_scores(np.array([0.0, 1.0, 1.5]), "PROBIT")
    assert found[0] == -np.inf
    assert found[1] == np.inf
    assert np.isnan(found[2])


def test_an_unknown_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="TANH"):
        transform_scores(np.zeros((1, 2)), "TANH")
