"""The rule for errors: units of the spread, and answers that must not pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.debug.compare import difference, error, over_samples, random_values
from engine.ir.types import DType


def outputs(seed: int, count: int = 4, shape: tuple[int, ...] = (3, 5)) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for _ in range(count)]


@given(st.integers(0, 1000), st.integers(2, 6))
def test_an_answer_that_ignores_its_input_errs_by_one_or_more(seed: int, count: int) -> None:
    wanted = outputs(seed, count)
    for constant in (np.zeros((3, 5)), wanted[0], sum(wanted) / count):
        assert error([constant] * count, wanted) >= 1 - 1e-6
    assert error(wanted, wanted) == 0


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_the_error_does_not_depend_on_scale_or_shift(seed: int, scale: float, shift: float) -> None:
    wanted = [array.astype(np.float64) for array in outputs(seed)]
    found = [array + 0.01 * noise for array, noise in zip(wanted, outputs(seed + 1))]
    first = error(found, wanted)
    moved = error([scale * a + shift for a in found], [scale * a + shift for a in wanted])
    assert moved == pytest.approx(first, rel=1e-6)


def test_what_cannot_be_judged_is_infinitely_wrong() -> None:
    wanted = outputs(0)
    assert math.isinf(error(wanted[:1], wanted[:1]))  # one input has no spread
    assert math.isinf(error([wanted[0]] * 2, [wanted[0]] * 2))  # nor have equal outputs
    assert math.isinf(error([array[:2] for array in wanted], wanted))
    assert math.isinf(error([wanted[0] * np.nan, *wanted[1:]], wanted))


def test_over_samples_falls_back_where_the_spread_means_nothing() -> None:
    same = [np.ones(3, np.float32)] * 3
    assert over_samples("y", same, same).error == 0
    assert over_samples("y", [np.ones(3, np.int64)] * 2, [np.ones(3, np.int64)] * 2).error == 0
    whole = over_samples("y", [np.array([1, 2])] * 2, [np.array([1, 3])] * 2)
    assert whole.error > 0
    lengths = [np.ones(2, np.float32), np.ones(3, np.float32)]
    assert over_samples("y", lengths, lengths).error == 0
    assert math.isinf(over_samples("y", lengths, lengths[::-1]).error)
    wanted = outputs(3)
    assert over_samples("y", wanted, wanted).error == 0
    assert over_samples("y", [wanted[0]] * 4, wanted).error >= 1


def test_a_difference_minds_dtypes_not_a_numbers_and_lengths() -> None:
    one = np.ones(2, np.float32)
    assert math.isinf(difference("y", one, one.astype(np.float64)).error)
    assert math.isinf(difference("y", np.array([1, np.nan]), np.array([1.0, 2.0])).error)
    assert math.isinf(difference("y", [one], [one, one]).error)
    assert difference("y", np.array([np.inf, 1.0]), np.array([np.inf, 1.0])).error == 0


@pytest.mark.parametrize("dtype", list(DType), ids=lambda dtype: dtype.value)
def test_random_values_have_the_dtype_and_the_shape(dtype: DType) -> None:
    for shape in ((), (3,), (2, 3, 5, 7), (1, 1, 0, 4)):
        array = random_values(np.random.default_rng(0), dtype, shape)
        assert (array.dtype, array.shape) == (dtype.numpy, shape)


def test_random_images_still_differ_after_pooling() -> None:
    images = random_values(np.random.default_rng(0), DType.FLOAT32, (16, 3, 64, 64))
    pooled = images.mean(axis=(2, 3))
    assert pooled.std() > 0.1  # white noise would have 1/64
    assert images.std() == pytest.approx(1, abs=0.1)
