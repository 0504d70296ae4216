"""TopK picks and orders as onnxruntime does; of equal elements the first comes first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.ops.single_node import assert_agree, ours


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 4),
    axis=st.sampled_from([0, 1, -1]),
    largest=st.integers(0, 1),
    dtype=st.sampled_from([np.float32, np.int64]),
    seed=st.integers(0, 99),
)
def test_top_k_agrees_with_onnxruntime(
    count: int, axis: int, largest: int, dtype: type, seed: int
) -> None:
    data = np.random.default_rng(seed).integers(-3, 3, (4, 5)).astype(dtype)
    assert_agree("TopK", [data, np.array([count])], outputs=2, axis=axis, largest=largest)


def test_the_attribute_form_does_the_same() -> None:
    values, places = ours("TopK", [np.array([1.0, 3.0, 3.0])], 9, 2, k=2)
    assert values.tolist() == [3, 3]
    assert places.tolist() == [1, 2]


def test_unsigned_numbers_are_ordered_as_such() -> None:
    values, _ = ours("TopK", [np.array([0, 255, 7], np.uint8), np.array([2])], outputs=2)
    assert values.tolist() == [255, 7]


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="K is 4"):
        ours("TopK", [np.zeros(3), np.array([4])], outputs=2)
