"""Quantisation rounds half to even, saturates, and comes back within half a step."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ops import find
from engine.ops.conversions import limits
from engine.ops.quantize import DequantizeLinear, QuantizeLinear, requantize
from tests.engine.ops.single_node import assert_agree

INTEGERS = [
    np.int8,
    np.uint8,
    np.int16,
    np.uint16,
    ml_dtypes.int4,
    ml_dtypes.uint4,
    ml_dtypes.int2,
    ml_dtypes.uint2,
]
FLOATS = [
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float6_e2m3fn,
    ml_dtypes.float6_e3m2fn,
    ml_dtypes.float4_e2m1fn,
]


def scalar(value: float, dtype: type = np.float32) -> np.ndarray:
    return np.array(value, dtype)


@pytest.mark.parametrize("dtype", INTEGERS)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), max_size=8), zero=st.integers(0, 1)
)
def test_integers_saturate_and_round_half_to_even(dtype: type, values: list, zero: int) -> None:
    from engine.ir.types import DType

    low, high = limits(DType.of(np.dtype(dtype)))
    x = np.array([*values, 0.25, 0.75, np.inf, -np.inf], np.float32)
    found = QuantizeLinear().meaning(x, scalar(0.5), scalar(zero, dtype))
    expected = [min(max(np.rint(np.float64(v) * 2) + zero, low), high) for v in x]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float64), expected)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_every_quantised_number_survives_the_way_there_and_back(dtype: type) -> None:
    bits = np.arange(256, dtype=np.uint8).view(np.int8)
    quantised = bits.astype(np.float32).astype(dtype)
    scale = scalar(0.25)
    there = DequantizeLinear().meaning(quantised, scale)
    back = QuantizeLinear().meaning(there, scale, scalar(0, dtype))
    np.testing.assert_array_equal(back.astype(np.float32), quantised.astype(np.float32))


@pytest.mark.parametrize("dtype", FLOATS[:4])
def test_eight_bit_floats_saturate_unless_told_not_to(dtype: type) -> None:
    x, scale, zero = np.array([1e9, -1e9], np.float32), scalar(1), scalar(0, dtype)
    greatest = float(ml_dtypes.finfo(dtype).max)
    kept = QuantizeLinear().meaning(x, scale, zero).astype(np.float32)
    np.testing.assert_array_equal(kept, [greatest, -greatest])
    lost = QuantizeLinear(saturate=0).meaning(x, scale, zero).astype(np.float32)
    assert not np.isfinite(lost).any()


@given(st.integers(0, 1), st.integers(1, 5), st.integers(0, 99))
def test_blocks_are_repeated_scales(axis: int, block: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((4, 6)).astype(np.float32) * 50
    shape = [4, 6]
    shape[axis] = -(-shape[axis] // block)
    scale = random.uniform(0.1, 1, shape).astype(np.float32)
    zero = random.integers(-9, 9, shape).astype(np.int8)
    whole = [np.repeat(p, block, axis)[:4, :6] for p in (scale, zero)]
    found = QuantizeLinear(axis=axis, block_size=block).meaning(x, scale, zero)
    expected = np.clip(np.rint(x / whole[0]) + whole[1], -128, 127)
    np.testing.assert_array_equal(found, expected)
    back = DequantizeLinear(axis=axis, block_size=block).meaning(found, scale, zero)
    np.testing.assert_allclose(back, (expected - whole[1]) * whole[0], rtol=1e-6)


def test_the_division_is_done_in_the_precision_asked_for() -> None:
    x, scale, zero = scalar(2049), scalar(1), scalar(0, np.int16)
    assert QuantizeLinear().meaning(x, scale, zero) == 2049
    assert QuantizeLinear(precision=10).meaning(x, scale, zero) == 2048


def test_nan_becomes_the_least_surprising_number() -> None:
    found = requantize(np.array([np.nan, 1.0], np.float32), scalar(5, np.uint8))
    np.testing.assert_array_equal(found, np.array([0, 6], np.uint8))


@pytest.mark.parametrize("version", [10, 13, 19, 21])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_every_version_agrees_with_a_peer(version: int, dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32) * 9
    scale, zero = scalar(0.07), scalar(3, dtype)
    assert_agree("QuantizeLinear", [x, scale, zero], version)
    codes = np.arange(-60, 60).astype(dtype)
    assert_agree("DequantizeLinear", [codes, scale, zero], version)


def test_quantised_products_and_ranges_agree_with_a_peer() -> None:
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (2, 4, 6)).astype(np.uint8)
    b = random.integers(-128, 128, (6, 3)).astype(np.int8)
    inputs = [a, scalar(0.02), scalar(120, np.uint8), b, scalar(0.01), scalar(3, np.int8)]
    assert_agree("QLinearMatMul", [*inputs, scalar(0.05), scalar(99, np.uint8)], 10)
    for x in (random.standard_normal((9, 9)), np.full(3, 2.0), np.full(3, -2.0), np.zeros(4)):
        assert_agree("DynamicQuantizeLinear", [x.astype(np.float32)], 11, outputs=3)


def test_scales_that_fit_no_axis_are_refused() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="scale or zero point"):
        QuantizeLinear(axis=1).meaning(x, np.ones(2, np.float32), np.zeros(2, np.int8))
    with pytest.raises(ValueError, match="blocks of 2"):
        QuantizeLinear(block_size=2).meaning(x, np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="output_dtype"):
        QuantizeLinear(output_dtype=3).meaning(x, scalar(1), scalar(0, np.uint8))


def test_without_a_zero_point_the_type_is_the_attribute_or_uint8() -> None:
    x = np.zeros((2, 3), np.float32)
    assert QuantizeLinear().meaning(x, scalar(1)).dtype == np.uint8
    assert QuantizeLinear(output_dtype=3).meaning(x, scalar(1)).dtype == np.int8
    assert find("", "QuantizeLinear", 10)().meaning(x, scalar(1)).dtype == np.uint8
