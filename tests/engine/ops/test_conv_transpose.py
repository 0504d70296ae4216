"""ConvTranspose is the transpose of Conv."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ops.conv import Conv
from engine.ops.conv_transpose import ConvTranspose


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.tuples(*[st.integers(0, 1)] * 4),
    st.integers(0, 99),
)
def test_inner_products_move_from_conv_to_its_transpose(
    rank: int, stride: int, dilation: int, group: int, pads: tuple[int, ...], seed: int
) -> None:
    random = np.random.default_rng(seed)
    pads = pads[:rank] + pads[2 : 2 + rank]
    attributes = {
        "strides": (stride,) * rank,
        "dilations": (dilation,) * rank,
        "pads": pads,
        "group": group,
    }
    x = random.standard_normal((2, 2 * group, *(7, 6)[:rank]))
    weight = random.standard_normal((3 * group, 2, *(3, 2)[:rank]))
    forward = Conv(**attributes).meaning(x, weight)
    y = random.standard_normal(forward.shape)
    extra = tuple(
        (n + a + b - (k - 1) * dilation - 1) % stride
        for n, k, a, b in zip(x.shape[2:], weight.shape[2:], pads[:rank], pads[rank:])
    )
    back = ConvTranspose(**attributes, output_padding=extra).meaning(y, weight)
    assert back.shape == x.shape
    np.testing.assert_allclose((forward * y).sum(), (back * x).sum(), rtol=1e-9)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("stride", "kernel"), [(2, 3), (3, 2), (1, 4)])
def test_same_padding_multiplies_sizes_by_the_stride(
    auto_pad: str, stride: int, kernel: int
) -> None:
    operator = ConvTranspose(auto_pad=auto_pad, strides=(stride,))
    x, weight = np.ones((1, 1, 5)), np.ones((1, 1, kernel))
    assert operator.meaning(x, weight).shape == (1, 1, 5 * stride)


def test_a_given_output_shape_decides_the_padding() -> None:
    weight = np.arange(1.0, 4.0).reshape(1, 1, 3)
    full = ConvTranspose(strides=(2,)).meaning(np.ones((1, 1, 3)), weight)
    cut = ConvTranspose(strides=(2,), output_shape=(6,)).meaning(np.ones((1, 1, 3)), weight)
    np.testing.assert_array_equal(cut, full[:, :, 1:])


def test_an_output_of_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="sizes"):
        ConvTranspose(pads=(5, 5)).meaning(np.ones((1, 1, 2)), np.ones((1, 1, 3)))
