"""Scatters write and combine by index as onnxruntime does and leave their inputs alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from engine.ops import find
from tests.engine.ops.single_node import assert_agree, ours

REDUCTIONS = ["none", "add", "mul", "max", "min"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter_elements_agrees_with_onnxruntime(axis: int, reduction: str) -> None:
    random = np.random.default_rng(0)
    data = random.standard_normal((3, 4)).astype(np.float32)
    shape = (2, 3)
    if reduction == "none":  # equal indices would leave the result to chance
        places = np.argsort(random.random((3, 4)), axis)[:2, :3] - data.shape[axis]
    else:
        places = random.integers(-3, 3, shape)
    updates = random.standard_normal(shape).astype(np.float32)
    kept = data.copy()
    assert_agree("ScatterElements", [data, places, updates], 18, axis=axis, reduction=reduction)
    assert data.tolist() == kept.tolist()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("length", "updates"), [(1, (2, 4)), (2, (2,))])
def test_scatter_nd_agrees_with_onnxruntime(
    length: int, updates: tuple[int, ...], reduction: str
) -> None:
    random = np.random.default_rng(0)
    data = random.standard_normal((3, 4)).astype(np.float32)
    places = np.array([[2, -1], [0, 1]])[:, :length]
    values = random.standard_normal(updates).astype(np.float32)
    assert_agree("ScatterND", [data, places, values], 18, reduction=reduction)


def test_equal_indices_add_up() -> None:
    data = np.zeros(2, ml_dtypes.bfloat16)
    (found,) = ours(
        "ScatterND", [data, np.zeros((300, 1), np.int64), np.ones(300, data.dtype)], reduction="add"
    )
    assert found.astype(float).tolist() == [300, 0]


def test_the_former_scatter_is_scatter_elements() -> None:
    data, places, new = np.zeros((3, 3)), np.array([[1, 0, 2]]), np.array([[1.0, 2.0, 3.0]])
    old = ours("Scatter", [data, places, new], 9)[0]
    assert old.tolist() == ours("ScatterElements", [data, places, new])[0].tolist()


def test_a_cache_is_written_per_sample_and_may_wrap() -> None:
    cache, update = np.zeros((2, 1, 3, 1)), np.arange(1.0, 5.0).reshape(2, 1, 2, 1)
    (found,) = ours("TensorScatter", [cache, update, np.array([0, 1])], 24)
    assert found.reshape(2, 3).tolist() == [[1, 2, 0], [0, 3, 4]]
    (found,) = ours("TensorScatter", [cache, update, np.array([2, 1])], 24, mode="circular")
    assert found.reshape(2, 3).tolist() == [[2, 0, 1], [0, 3, 4]]
    with pytest.raises(ValueError, match="circular"):
        ours("TensorScatter", [cache, update, np.array([2, 1])], 24)


def test_an_unknown_reduction_is_refused() -> None:
    operator = find("", "ScatterND", 18)(reduction="mean")
    with pytest.raises(ValueError, match="mean"):
        operator.meaning(np.zeros(2), np.array([[0]]), np.zeros(1))
