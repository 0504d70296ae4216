"""A causal convolution in pieces equals one over the whole sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ops.causal_conv import CausalConvWithState


@given(st.integers(1, 4), st.integers(0, 6), st.sampled_from(["none", "silu", "swish"]))
def test_the_state_carries_over_between_pieces(taps: int, cut: int, activation: str) -> None:
    random = np.random.default_rng(taps)
    x = random.standard_normal((2, 3, 6)).astype(np.float32)
    weight = random.standard_normal((3, 1, taps)).astype(np.float32)
    bias = random.standard_normal(3).astype(np.float32)
    operator = CausalConvWithState(activation=activation)
    whole, last = operator.meaning(x, weight, bias)
    first, state = operator.meaning(x[:, :, :cut], weight, bias)
    second, end = operator.meaning(x[:, :, cut:], weight, bias, state)
    np.testing.assert_allclose(np.concatenate([first, second], axis=2), whole, rtol=1e-5)
    np.testing.assert_array_equal(end, last)
    assert state.shape == (2, 3, taps - 1)


def test_no_output_looks_ahead() -> None:
    weight = np.ones((1, 1, 3), np.float32)
    x = np.array([[[0, 0, 1, 0, 0, 0]]], np.float32)
    found, _ = CausalConvWithState().meaning(x, weight)
    np.testing.assert_array_equal(found, [[[0, 0, 1, 1, 1, 0]]])


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation"):
        CausalConvWithState(activation="relu").meaning(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
