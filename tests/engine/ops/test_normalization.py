"""Normalisations leave what they promise: mean 0, variance 1, norm 1."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from engine.ops import find
from engine.ops.normalization import (
    LRN,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    LpNormalization,
    MeanVarianceNormalization,
    RMSNormalization,
)
from tests.engine.ops.single_node import assert_agree

X = np.random.default_rng(0).standard_normal((2, 6, 4, 5)) * 3 + 2
ONES, ZEROS = np.ones(6), np.zeros(6)


@pytest.mark.parametrize(
    ("operator", "axes"),
    [
        (InstanceNormalization(epsilon=0), (2, 3)),
        (GroupNormalization(epsilon=0, num_groups=6), (2, 3)),
        (GroupNormalization(epsilon=0, num_groups=1), (1, 2, 3)),
    ],
)
def test_a_normalised_part_has_mean_0_and_variance_1(operator, axes) -> None:
    found = operator.meaning(X, ONES, ZEROS)
    np.testing.assert_allclose(found.mean(axis=axes), 0, atol=1e-9)
    np.testing.assert_allclose(found.var(axis=axes), 1, rtol=1e-6)


def test_both_versions_of_groups_agree_where_scales_are_equal() -> None:
    old = find("", "GroupNormalization", 18)(num_groups=2)
    scale, bias = np.array([2.0, 3.0]), np.array([-1.0, 1.0])
    new = GroupNormalization(num_groups=2).meaning(X, scale.repeat(3), bias.repeat(3))
    np.testing.assert_allclose(old.meaning(X, scale, bias), new)


def test_layers_return_the_mean_and_the_inverse_deviation() -> None:
    y, mean, inverse = LayerNormalization(axis=2).meaning(X, np.ones((4, 5)))
    np.testing.assert_allclose((X - mean) * inverse, y, rtol=1e-4, atol=1e-4)
    assert mean.shape == inverse.shape == (2, 6, 1, 1)
    assert mean.dtype == inverse.dtype == np.float32


@pytest.mark.parametrize("axis", [1, -1])
def test_root_mean_squares_become_1(axis: int) -> None:
    scale = np.ones(X.shape[axis:])
    found = RMSNormalization(axis=axis, epsilon=0).meaning(X, scale)
    axes = tuple(range(axis % 4, 4))
    np.testing.assert_allclose(np.square(found).mean(axis=axes), 1, rtol=1e-5)


@pytest.mark.parametrize("p", [1, 2])
def test_norms_become_1_and_zeros_stay_zeros(p: int) -> None:
    x = X.copy()
    x[0, :, 0, 0] = 0
    found = LpNormalization(axis=1, p=p).meaning(x)
    norms = np.linalg.norm(found, p, axis=1)
    np.testing.assert_allclose(norms[norms != 0], 1)
    assert (found[0, :, 0, 0] == 0).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_local_responses_are_the_sums_of_their_definition(size: int) -> None:
    found = LRN(size=size, alpha=0.3, beta=0.6, bias=1.5).meaning(X)
    for c in range(6):
        near = X[:, max(0, c - (size - 1) // 2) : min(5, c + size // 2) + 1]
        total = 1.5 + 0.3 / size * np.square(near).sum(axis=1)
        np.testing.assert_allclose(found[:, c], X[:, c] / total**0.6)


def test_the_old_ones_agree_with_a_peer() -> None:
    x = X.astype(np.float32)
    scale = np.linspace(1, 2, 6, dtype=np.float32)
    assert_agree("InstanceNormalization", [x, scale, -scale], 6)
    assert_agree("MeanVarianceNormalization", [x], 13)
    assert_agree("LRN", [x], 13, size=3)
    assert_agree("LpNormalization", [x], 1 + 10, axis=2, p=1)
    assert_agree("LayerNormalization", [x, scale[:5], -scale[:5]], 17, outputs=3)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_rounded_once(dtype: type) -> None:
    x, scale = X.astype(dtype), np.ones(5, dtype)
    wide = RMSNormalization().meaning(x.astype(np.float32), scale.astype(np.float32))
    np.testing.assert_array_equal(RMSNormalization().meaning(x, scale), wide.astype(dtype))


def test_axes_may_be_chosen() -> None:
    found = MeanVarianceNormalization(axes=(-1,)).meaning(X)
    np.testing.assert_allclose(found.mean(axis=-1), 0, atol=1e-9)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="num_groups"):
        GroupNormalization(num_groups=4).meaning(X, ONES, ZEROS)
