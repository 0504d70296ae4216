"""Softmax and its kin over one axis and over all the rest."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ir.types import DType, Operand, TensorType
from engine.ops.softmax import Hardmax, LogSoftmax, Softmax
from tests.engine.ops.single_node import assert_agree


@given(st.integers(-3, 2), st.floats(-1e4, 1e4), st.integers(0, 9))
def test_softmax_sums_to_one_and_ignores_a_shift(axis: int, shift: float, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 3, 4))
    found = Softmax(axis=axis).meaning(x + shift)
    np.testing.assert_allclose(found.sum(axis=axis), 1)
    np.testing.assert_allclose(found, Softmax(axis=axis).meaning(x), rtol=1e-9)
    np.testing.assert_allclose(LogSoftmax(axis=axis).meaning(x), np.log(found), rtol=1e-6)
    hard = Hardmax(axis=axis).meaning(x)
    np.testing.assert_array_equal(hard, x == x.max(axis=axis, keepdims=True))


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("version", [7, 11, 13])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_both_generations_agree_with_a_peer(name: str, version: int, axis: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    assert_agree(name, [x], version, axis=axis)


def test_hardmax_marks_only_the_first_of_equals() -> None:
    np.testing.assert_array_equal(Hardmax().meaning(np.ones((1, 3))), [[1, 0, 0]])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
@pytest.mark.parametrize("operator", [Softmax(), LogSoftmax(), Hardmax()])
def test_nothing_gives_nothing(shape: tuple[int, ...], operator: Softmax) -> None:
    assert operator.meaning(np.zeros(shape, np.float32)).shape == shape


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_rounded_once(dtype: type) -> None:
    x = np.linspace(-8, 8, 100).astype(dtype)
    expected = Softmax().meaning(x.astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(Softmax().meaning(x), expected)


def test_an_axis_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="axis"):
        Softmax(axis=2).infer(Operand(TensorType(DType.FLOAT32, (2, 3))))
