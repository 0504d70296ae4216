"""Dropout is the identity, except in training."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ops import find
from engine.ops.dropout import Dropout

X = np.linspace(1, 2, 10_000, dtype=np.float32).reshape(100, 100)
HALF, YES = np.array(0.25, np.float32), np.array(True)


@pytest.mark.parametrize(("version", "mask"), [(7, np.float32), (10, np.bool_), (13, np.bool_)])
def test_inference_changes_nothing(version: int, mask: type) -> None:
    y, kept = find("", "Dropout", version)().meaning(X)
    np.testing.assert_array_equal(y, X)
    assert kept.dtype == mask
    assert kept.all()


def test_training_drops_a_share_and_scales_the_rest() -> None:
    y, kept = Dropout(seed=3).meaning(X, HALF, YES)
    assert abs(kept.mean() - 0.75) < 0.02
    np.testing.assert_allclose(y[kept], X[kept] / 0.75, rtol=1e-6)
    assert (y[~kept] == 0).all()


def test_a_seed_repeats_and_its_absence_does_not() -> None:
    first, again = (Dropout(seed=3).meaning(X, HALF, YES)[1] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    first, again = (Dropout().meaning(X, HALF, YES)[1] for _ in range(2))
    assert (first != again).any()


def test_a_ratio_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="ratio"):
        Dropout().meaning(X, np.array(1.5), YES)
