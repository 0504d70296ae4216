"""Poolings equal a walk over every window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ops import find
from engine.ops.pool import (
    AveragePool,
    GlobalAveragePool,
    GlobalLpPool,
    GlobalMaxPool,
    LpPool,
    MaxPool,
    MaxUnpool,
)


@st.composite
def problems(draw):
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    attributes = {
        "kernel_shape": kernel,
        "strides": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "dilations": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        "pads": tuple(draw(st.integers(0, k - 1)) for k in kernel + kernel),
        "ceil_mode": draw(st.integers(0, 1)),
    }
    random = np.random.default_rng(draw(st.integers(0, 99)))
    return random.integers(-4, 5, (2, 2, 7, 6)).astype(np.float32), attributes


def windows_of(x, attributes, counts):
    """Each window's elements and how many places it has inside the padding."""
    pads, rank = attributes["pads"], 2
    for place in np.ndindex(*counts):
        indices = [
            place[a] * attributes["strides"][a]
            - pads[a]
            + np.arange(attributes["kernel_shape"][a]) * attributes["dilations"][a]
            for a in range(rank)
        ]
        inside = [i[(i >= 0) & (i < x.shape[2 + a])] for a, i in enumerate(indices)]
        padded = [i[i < x.shape[2 + a] + pads[2 + a]].size for a, i in enumerate(indices)]
        yield place, inside, padded[0] * padded[1]


@settings(max_examples=50, deadline=None)
@given(problems())
def test_every_pooling_agrees_with_a_walk_over_its_windows(problem) -> None:
    x, attributes = problem
    mean = AveragePool(**attributes).meaning(x)
    with_padding = AveragePool(**attributes, count_include_pad=1).meaning(x)
    norm = LpPool(**attributes, p=3).meaning(x)
    greatest, where = MaxPool(**attributes).meaning(x)
    for place, (rows, columns), covered in windows_of(x, attributes, mean.shape[2:]):
        at = (slice(None), slice(None), *place)
        part = x[:, :, rows][..., columns]
        if part.size == 0:
            continue
        np.testing.assert_allclose(mean[at], part.mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            with_padding[at], part.sum(axis=(2, 3)) / covered, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            norm[at], (np.abs(part) ** 3).sum(axis=(2, 3)) ** (1 / 3), rtol=1e-5
        )
        np.testing.assert_array_equal(greatest[at], part.max(axis=(2, 3)))
    np.testing.assert_array_equal(x.reshape(-1)[where], greatest)


def test_indices_point_at_the_first_of_equal_maxima() -> None:
    x = np.ones((1, 1, 4, 4), np.float32)
    _, where = MaxPool(kernel_shape=(2, 2), strides=(2, 2)).meaning(x)
    np.testing.assert_array_equal(where, [[[[0, 2], [8, 10]]]])


def test_column_major_indices_count_down_the_columns() -> None:
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    _, where = MaxPool(kernel_shape=(3, 4), storage_order=1).meaning(x)
    assert where.item() == 11
    _, where = MaxPool(kernel_shape=(1, 4), storage_order=1).meaning(x)
    np.testing.assert_array_equal(where.ravel(), [9, 10, 11])


def test_nan_wins_and_is_pointed_at() -> None:
    x = np.array([[[1.0, np.nan, 3.0, 4.0]]], np.float32)
    greatest, where = MaxPool(kernel_shape=(2,), strides=(2,)).meaning(x)
    assert np.isnan(greatest[0, 0, 0])
    np.testing.assert_array_equal(where, [[[1, 3]]])


def test_a_window_of_minus_infinity_is_pointed_at_too() -> None:
    x = np.full((1, 1, 4), -np.inf, np.float32)
    greatest, where = MaxPool(kernel_shape=(2,), strides=(2,), pads=(1, 1)).meaning(x)
    assert np.isneginf(greatest).all()
    np.testing.assert_array_equal(where, [[[0, 1, 3]]])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_maxima_of_integers_ignore_the_padding(dtype: type) -> None:
    x = np.array([[[5, 3]]], dtype)
    operator = MaxPool(kernel_shape=(2,), pads=(1, 1), output_count=1)
    np.testing.assert_array_equal(operator.meaning(x), np.array([[[5, 5, 3]]], dtype))


def test_global_pools_are_pools_over_everything() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    whole = {"kernel_shape": (4, 5)}
    np.testing.assert_allclose(GlobalAveragePool().meaning(x), AveragePool(**whole).meaning(x))
    np.testing.assert_allclose(GlobalMaxPool().meaning(x), MaxPool(**whole).meaning(x)[0])
    np.testing.assert_allclose(GlobalLpPool(p=3).meaning(x), LpPool(**whole, p=3).meaning(x))


def test_unpooling_puts_maxima_back() -> None:
    x = np.random.default_rng(0).permutation(2 * 3 * 16).reshape(2, 3, 4, 4).astype(np.float32)
    pool = {"kernel_shape": (2, 2), "strides": (2, 2)}
    greatest, where = MaxPool(**pool).meaning(x)
    back = MaxUnpool(**pool).meaning(greatest, where)
    np.testing.assert_array_equal(back, np.where(np.isin(x, greatest), x, 0))


@pytest.mark.parametrize("version", [7, 8, 9, 10, 11])
def test_older_versions_pool_alike(version: int) -> None:
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    attributes = {"kernel_shape": (2, 2), "strides": (2, 2)}
    values = [[[[5, 7], [13, 15]]]]
    greatest = find("", "MaxPool", version).from_attributes(attributes).meaning(x)
    np.testing.assert_array_equal(greatest[0] if version >= 8 else greatest, values)
    mean = find("", "AveragePool", version).from_attributes(attributes).meaning(x)
    np.testing.assert_array_equal(mean, np.array(values) - 2.5)
