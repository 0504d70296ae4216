"""Linear models give the answers of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType
from tests.engine.ops.peer import agrees_with_peer, build, samples

TRANSFORMS = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"]


def floats(count: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32).tolist()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
def test_a_classifier_of_three_classes_agrees_with_onnx_runtime(
    transform: str, dtype: type
) -> None:
    agrees_with_peer(
        "LinearClassifier",
        [samples(7, 4, dtype)],
        [DType.STRING, DType.FLOAT32],
        coefficients=floats(12, 1),
        intercepts=floats(3, 2),
        classlabels_strings=["a", "b", "c"],
        post_transform=transform,
    )


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
def test_one_score_for_two_classes_agrees_with_onnx_runtime(transform: str) -> None:
    agrees_with_peer(
        "LinearClassifier",
        [samples(9, 3)],
        [DType.INT64, DType.FLOAT32],
        coefficients=floats(3, 1),
        intercepts=[0.25],
        classlabels_ints=[4, 9],
        post_transform=transform,
    )


def test_one_score_for_two_classes_becomes_a_distribution_by_softmax() -> None:
    operator = build(
        "LinearClassifier",
        coefficients=[1.0, -1.0],
        classlabels_ints=[4, 9],
        post_transform="SOFTMAX",
    )
    labels, scores = operator.meaning(np.array([[2, 1], [0, 3]], np.float32))
    assert labels.tolist() == [9, 4]
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_a_regressor_of_two_targets_agrees_with_onnx_runtime(transform: str) -> None:
    agrees_with_peer(
        "LinearRegressor",
        [samples(6, 3)],
        [DType.FLOAT32],
        coefficients=floats(6, 3),
        intercepts=[0.5, -0.5],
        targets=2,
        post_transform=transform,
    )


def test_no_rows_give_no_scores() -> None:
    operator = build("LinearRegressor", coefficients=[1.0, 2.0], targets=1)
    assert operator.meaning(np.zeros((0, 2), np.float32)).shape == (0, 1)


def test_coefficients_that_do_not_fit_the_features_are_refused() -> None:
    operator = build("LinearRegressor", coefficients=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="3 coefficients"):
        operator.meaning(samples(2, 2))
