"""OneHot turns on the right place of the new axis, wherever that is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.ops.single_node import assert_agree, ours

INDICES = np.array([[0, 2], [-1, 7]])
VALUES = np.array([2.0, 5.0], np.float32)


@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
def test_one_hot_agrees_with_onnxruntime(axis: int) -> None:
    assert_agree("OneHot", [INDICES, np.array([3]), VALUES], axis=axis)


def test_negative_indices_count_from_the_back_since_opset_11() -> None:
    depth = np.array(3)
    (new,) = ours("OneHot", [INDICES, depth, VALUES], 11)
    (old,) = ours("OneHot", [INDICES, depth, VALUES], 9)
    assert new[1].tolist() == [[2, 2, 5], [2, 2, 2]]
    assert old[1].tolist() == [[2, 2, 2], [2, 2, 2]]


def test_values_may_be_strings_and_indices_floats() -> None:
    values = np.array(["no", "yes"], object)
    (found,) = ours("OneHot", [np.array([1.0]), np.array(2.0), values])
    assert found.tolist() == [["no", "yes"]]
