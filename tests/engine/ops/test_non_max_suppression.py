"""NonMaxSuppression keeps the boxes that onnxruntime keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.ops.single_node import assert_agree, ours


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    most=st.integers(0, 6),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    centred=st.integers(0, 1),
)
def test_the_boxes_agree_with_onnxruntime(
    seed: int, most: int, overlap: float, centred: int
) -> None:
    random = np.random.default_rng(seed)
    boxes = random.uniform(0, 1, (2, 12, 4)).astype(np.float32)
    scores = random.permutation(72).reshape(2, 3, 12).astype(np.float32) / 72
    limits = [np.array([most]), np.array([overlap], np.float32), np.array([0.3], np.float32)]
    inputs = [boxes, scores, *limits]
    assert_agree("NonMaxSuppression", inputs, 11, center_point_box=centred)


def test_without_a_number_nothing_is_kept() -> None:
    boxes, scores = np.zeros((1, 3, 4), np.float32), np.ones((1, 1, 3), np.float32)
    assert ours("NonMaxSuppression", [boxes, scores], 11)[0].shape == (0, 3)


def test_scores_need_three_axes() -> None:
    with pytest.raises((ValueError, IndexError), match=r"rank 2|indices"):
        ours("NonMaxSuppression", [np.zeros((1, 3, 4)), np.ones((1, 3)), np.array([1])], 11)
