"""Conversions between element types."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ir.types import DType
from engine.ops.conversions import convert, limits
from tests.engine.random_expressions import TYPES, values

NUMBERS = [d for d in DType if d is not DType.STRING and not d.is_complex]
INTEGERS = [d for d in NUMBERS if d.is_integer]


@pytest.mark.parametrize("target", NUMBERS)
@pytest.mark.parametrize("source", NUMBERS)
def test_zero_and_one_survive_every_conversion(source: DType, target: DType) -> None:
    x = np.array([1.0, 1.0], np.float32).astype(source.numpy)
    found = convert(x, target)
    assert found.dtype == target.numpy
    assert found.astype(np.float32).tolist() == [1.0, 1.0]


@given(value=st.floats(width=32), dtype=st.sampled_from([d for d in INTEGERS if d.nbytes * 8 > 8]))
def test_floats_become_integers_by_truncation_and_saturation(value: float, dtype: DType) -> None:
    low, high = limits(dtype)
    exact = 0 if np.isnan(value) else int(np.clip(np.float64(value), -1e30, 1e30))
    for kind in (np.float32, np.float64):
        assert int(convert(np.array([value], kind), dtype)[0]) == min(max(exact, low), high)


@given(value=st.integers(-(2**63), 2**63 - 1), dtype=st.sampled_from(INTEGERS))
def test_integers_keep_their_low_bits(value: int, dtype: DType) -> None:
    low, high = limits(dtype)
    expected = (value - low) % (high - low + 1) + low
    assert int(convert(np.array([value], np.int64), dtype)[0]) == expected


@pytest.mark.parametrize("name", ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz"])
def test_eight_bit_floats_saturate_or_not(name: str) -> None:
    dtype = DType(f"float8{name}")
    greatest = float(ml_dtypes.finfo(dtype.numpy).max)
    x = np.float32([1e9, -1e9, np.inf, -np.inf, np.nan, greatest])
    kept = convert(x, dtype).astype(np.float32)
    assert kept[[0, 1, 2, 3, 5]].tolist() == [greatest, -greatest] * 2 + [greatest]
    assert np.isnan(kept[4])
    lost = convert(x, dtype, saturate=False).astype(np.float32)
    beyond = np.inf if name == "e5m2" else np.nan
    np.testing.assert_array_equal(np.abs(lost[:4]), [beyond] * 4)


def test_bare_exponents_round_as_asked() -> None:
    x = np.float32([3.0, 5.0, 1.0, 6.0])
    for mode, expected in {
        "up": [4, 8, 1, 8],
        "down": [2, 4, 1, 4],
        "nearest": [4, 4, 1, 8],
    }.items():
        found = convert(x, DType.FLOAT8E8M0, round_mode=mode).astype(np.float32)
        assert found.tolist() == expected
    with pytest.raises(ValueError, match="round_mode"):
        convert(x, DType.FLOAT8E8M0, round_mode="sideways")


@pytest.mark.parametrize("dtype", TYPES)
def test_truth_is_being_other_than_zero(dtype: DType) -> None:
    x = values(dtype, 40, 3)
    np.testing.assert_array_equal(convert(x, DType.BOOL), x.astype(np.float64) != 0)
