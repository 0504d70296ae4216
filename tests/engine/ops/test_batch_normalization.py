"""Batch normalisation by given and by the batch's own statistics, in every version."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ops import find
from engine.ops.batch_normalization import BatchNormalization

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 3, 2, 5))
SCALE, BIAS, MEAN = (RANDOM.standard_normal(3) for _ in range(3))
VARIANCE = RANDOM.uniform(0.5, 2, 3)


def along(values: np.ndarray) -> np.ndarray:
    return values.reshape(3, 1, 1)


@pytest.mark.parametrize("version", [7, 9, 14, 15])
def test_given_statistics_shift_and_scale_each_channel(version: int) -> None:
    operator = find("", "BatchNormalization", version).from_attributes({"epsilon": 0.01})
    found = operator.meaning(X, SCALE, BIAS, MEAN, VARIANCE)
    deviation = np.sqrt(along(VARIANCE) + 0.01)
    expected = (X - along(MEAN)) / deviation * along(SCALE) + along(BIAS)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("version", "attributes"),
    [(7, {"output_count": 5}), (9, {"output_count": 5}), (15, {"training_mode": 1})],
)
def test_training_uses_and_returns_the_statistics_of_the_batch(version, attributes) -> None:
    cls = find("", "BatchNormalization", version)
    operator = cls.from_attributes({"momentum": 0.75, "epsilon": 0, **attributes})
    y, mean, variance, *saved = operator.meaning(X, np.ones(3), np.zeros(3), MEAN, VARIANCE)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-9)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3)), 1)
    own = X.mean(axis=(0, 2, 3)), X.var(axis=(0, 2, 3))
    np.testing.assert_allclose(mean, 0.75 * MEAN + 0.25 * own[0])
    np.testing.assert_allclose(variance, 0.75 * VARIANCE + 0.25 * own[1])
    for found, expected in zip(saved, own, strict=False):
        np.testing.assert_allclose(found, expected)


def test_without_spatial_every_position_has_its_own_parameters() -> None:
    cls = find("", "BatchNormalization", 7)
    parameters = [RANDOM.uniform(0.5, 2, X.shape[1:]) for _ in range(4)]
    scale, bias, mean, variance = parameters
    operator = cls.from_attributes({"spatial": 0, "epsilon": 0.01})
    expected = (X - mean) / np.sqrt(variance + 0.01) * scale + bias
    np.testing.assert_allclose(operator.meaning(X, *parameters), expected)
    trained = cls.from_attributes({"spatial": 0, "epsilon": 0, "output_count": 3})
    y, *moved = trained.meaning(X, np.ones_like(scale), np.zeros_like(bias), mean, variance)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-9)
    assert [m.shape for m in moved] == [X.shape[1:]] * 2


def test_a_vector_is_one_channel() -> None:
    x = np.array([1.0, 2.0, 3.0])
    one = np.ones(1)
    found = BatchNormalization(epsilon=0).meaning(x, one, one, one, 4 * one)
    np.testing.assert_allclose(found, (x - 1) / 2 + 1)
    y, mean, _ = BatchNormalization(training_mode=1).meaning(x, one, 0 * one, one, one)
    assert y.shape == (3,)
    assert mean.shape == (1,)
