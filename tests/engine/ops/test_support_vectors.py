"""Support vector machines give the answers of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType
from engine.ops.support_vectors import couple
from tests.engine.ops.peer import agrees_with_peer, samples

KERNELS = [
    ("LINEAR", [0.0, 0.0, 0.0]),
    ("POLY", [0.5, 1.0, 3.0]),
    ("RBF", [0.3, 0.0, 0.0]),
    ("SIGMOID", [0.2, 0.1, 0.0]),
]


def floats(count: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32).tolist()


@pytest.mark.parametrize(("kernel", "parameters"), KERNELS)
@pytest.mark.parametrize("one_class", [0, 1])
def test_a_regressor_agrees_with_onnx_runtime(
    kernel: str, parameters: list[float], one_class: int
) -> None:
    agrees_with_peer(
        "SVMRegressor",
        [samples(8, 3)],
        [DType.FLOAT32],
        rtol=1e-4,
        atol=1e-5,
        coefficients=floats(5, 1),
        support_vectors=floats(15, 2),
        n_supports=5,
        rho=[0.3],
        kernel_type=kernel,
        kernel_params=parameters,
        one_class=one_class,
    )


def test_a_regressor_without_support_vectors_is_linear_as_in_onnx_runtime() -> None:
    agrees_with_peer(
        "SVMRegressor",
        [samples(8, 3)],
        [DType.FLOAT32],
        coefficients=floats(3, 1),
        rho=[0.3],
        kernel_params=[0.0, 0.0, 0.0],
    )


@pytest.mark.parametrize(("kernel", "parameters"), KERNELS)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_classifier_agrees_with_onnx_runtime(
    kernel: str, parameters: list[float], probabilities: bool, classes: int
) -> None:
    pairs = classes * (classes - 1) // 2
    counts = [2, 3, 1, 2][:classes]
    total = sum(counts)
    more = {}
    if probabilities:
        more = {"prob_a": [-1.5] * pairs, "prob_b": floats(pairs, 7)}
    agrees_with_peer(
        "SVMClassifier",
        [samples(10, 3)],
        [DType.INT64, DType.FLOAT32],
        rtol=1e-3,
        atol=1e-4,
        classlabels_ints=[3, 5, 8, 1][:classes],
        coefficients=floats(total * (classes - 1), 1),
        support_vectors=floats(total * 3, 2),
        vectors_per_class=counts,
        rho=floats(pairs, 4),
        kernel_type=kernel,
        kernel_params=parameters,
        **more,
    )


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_a_linear_classifier_agrees_with_onnx_runtime(transform: str) -> None:
    agrees_with_peer(
        "SVMClassifier",
        [samples(10, 4)],
        [DType.STRING, DType.FLOAT32],
        classlabels_strings=["a", "b", "c"],
        coefficients=floats(12, 1),
        rho=floats(3, 4),
        kernel_type="LINEAR",
        kernel_params=[0.0, 0.0, 0.0],
        post_transform=transform,
    )


def test_coupling_finds_the_probabilities_that_consistent_pairs_come_from() -> None:
    wanted = np.array([0.5, 0.3, 0.15, 0.05])
    pairs = wanted[:, None] / (wanted[:, None] + wanted)
    np.fill_diagonal(pairs, 0)
    np.testing.assert_allclose(couple(pairs), wanted, atol=0.01)
