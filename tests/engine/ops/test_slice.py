"""Slice takes the ranges the standard means, and its shape rule counts them, known or symbolic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import evaluate, symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops import find
from engine.ops.slice import slice_size
from tests.engine.ops.single_node import assert_agree, ours

INDEX = st.one_of(st.integers(-8, 8), st.sampled_from([2**31 - 1, 2**63 - 1, -(2**31), -(2**63)]))
STEP = st.integers(-3, 3).filter(bool)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 6), start=INDEX, end=INDEX, step=STEP)
def test_slices_agree_with_onnxruntime(size: int, start: int, end: int, step: int) -> None:
    if step < 0 and end >= 2**31 - 1:
        end = size  # onnxruntime reads the greatest integer as "all", the standard as an index
    data = np.arange(size * 2, dtype=np.float32).reshape(2, size)
    numbers = [np.array([number], np.int64) for number in (start, end, -1, step)]
    assert_agree("Slice", [data, *numbers])


@settings(max_examples=300, deadline=None)
@given(size=st.integers(0, 6), start=INDEX, end=INDEX, step=STEP)
def test_the_size_rule_holds_for_every_size_of_a_symbol(
    size: int, start: int, end: int, step: int
) -> None:
    taken = ours("Slice", [np.zeros(size), *(np.array([n]) for n in (start, end, 0, step))])[0]
    rule = slice_size(symbol("n"), start, end, step)
    assert not isinstance(rule, UnknownSize)
    assert evaluate(rule, {"n": size}) == taken.size


def test_a_range_of_symbols_is_followed() -> None:
    past, new = symbol("past"), symbol("new")

    def operand(*contents: object) -> Operand:
        content = np.array(contents, object)
        return Operand(TensorType(DType.INT64, (len(contents),)), content=content)

    data = Operand(TensorType(DType.FLOAT32, (1, past + new)))
    axes = Operand(TensorType(DType.INT64, (1,)), np.array([1]))
    (found,) = find("", "Slice", 13)().infer(data, operand(past), operand(past + new), axes)
    assert found.shape == (1, new)


def test_common_forms_stay_simple() -> None:
    n = symbol("n")
    far = 2**63 - 1
    assert slice_size(n, 0, far, 1) == n
    assert slice_size(n, -1, -far, -1) == n
    assert slice_size(n * 2, 0, far, 2) == n
    assert str(slice_size(n, 0, 5, 1)) == "min(5, n)"


def test_an_undecided_sign_gives_an_unknown_size_with_a_bound() -> None:
    n, m = symbol("n"), symbol("m")
    found = slice_size(n, m - 3, n, 1)
    assert isinstance(found, UnknownSize)
    assert found.bound == n


def test_wrong_slices_are_refused() -> None:
    operator = find("", "Slice", 13)()
    one, two = np.array([1]), np.array([1, 2])
    with pytest.raises(ValueError, match="step"):
        operator.meaning(np.zeros(3), one, one, one * 0, one * 0)
    with pytest.raises(ValueError, match="lengths"):
        operator.meaning(np.zeros((3, 3)), one, two)
    with pytest.raises(ValueError, match="axes"):
        operator.meaning(np.zeros(3), one, one, one * 4)


def test_the_attribute_form_does_the_same() -> None:
    data = np.arange(12.0).reshape(3, 4)
    (found,) = ours("Slice", [data], 9, starts=(1, -3), ends=(100, -1))
    assert found.tolist() == data[1:, -3:-1].tolist()
