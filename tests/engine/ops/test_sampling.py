"""Reading between elements: at their centres it reads them, elsewhere it mixes neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ops.conv import Conv
from engine.ops.sampling import AffineGrid, DeformConv, GridSample, cubic_weights
from tests.engine.ops.single_node import ours, theirs

FLOAT = np.float32


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_the_grid_of_the_identity_reads_the_image(mode: str, align: int, rank: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)[: rank + 2]).astype(FLOAT)
    theta = np.tile(np.eye(rank, rank + 1, dtype=FLOAT), (2, 1, 1))
    grid = AffineGrid(align_corners=align).meaning(theta, np.array(x.shape))
    found = GridSample(mode=mode, align_corners=align).meaning(x, grid)
    np.testing.assert_allclose(found, x, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_images_are_sampled_as_a_peer_does(mode: str, padding: str, align: int) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 3, 4, 5)).astype(FLOAT)
    grid = random.uniform(-1.6, 1.6, (2, 6, 7, 2)).astype(FLOAT)
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": align}
    (found,) = ours("GridSample", [x, grid], 16, **attributes)
    (expected,) = theirs("GridSample", [x, grid], 16, **attributes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(st.floats(0, 1), st.sampled_from([-0.5, -0.75]))
def test_cubic_weights_sum_to_one(fraction: float, coefficient: float) -> None:
    weights = cubic_weights(np.array(fraction), coefficient)
    assert abs(sum(weights) - 1) < 1e-12


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_without_offsets_a_deformable_convolution_is_a_convolution(rank: int) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 4, *(5, 6, 4)[:rank]))
    weight = random.standard_normal((6, 2, *(3, 2, 2)[:rank]))
    common = {"pads": (1,) * 2 * rank, "strides": (2,) * rank, "group": 2}
    bias = np.arange(6.0)
    expected = Conv(**common).meaning(x, weight, bias)
    places = int(np.prod(weight.shape[2:]))
    offset = np.zeros((2, 2 * places * rank, *expected.shape[2:]))
    found = DeformConv(**common, offset_group=2).meaning(x, weight, offset, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_whole_offsets_shift_the_image() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 6, 6))
    offset = np.zeros((1, 2, 6, 6))
    offset[:, 0], offset[:, 1] = 1, -2
    found = DeformConv().meaning(x, np.ones((1, 1, 1, 1)), offset)
    expected = np.zeros_like(x)
    expected[..., :5, 2:] = x[..., 1:, :4]
    np.testing.assert_allclose(found, expected)


def test_a_mask_scales_every_place() -> None:
    x, weight = np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2))
    mask = np.broadcast_to(np.arange(4.0)[None, :, None, None], (1, 4, 3, 3))
    found = DeformConv().meaning(x, weight, np.zeros((1, 8, 3, 3)), None, mask)
    np.testing.assert_array_equal(found, np.full((1, 1, 3, 3), 6.0))


def test_unknown_modes_are_refused() -> None:
    x, grid = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 1, 2))
    with pytest.raises(ValueError, match="mode"):
        GridSample(mode="bilinear").meaning(x, grid)
    with pytest.raises(ValueError, match="padding_mode"):
        GridSample(padding_mode="wrap").meaning(x, grid)
