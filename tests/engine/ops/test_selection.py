"""NonZero, Compress and Unique find what onnxruntime finds, within the bounds they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.ops.single_node import assert_agree, ours


def data(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 0), (2, 2, 2)])
def test_non_zero_agrees_with_onnxruntime(shape: tuple[int, ...]) -> None:
    assert_agree("NonZero", [data(0, *shape)])


@pytest.mark.parametrize(("value", "columns"), [(0, 0), (7, 1)])
def test_a_scalar_has_no_axis_to_index(value: int, columns: int) -> None:
    (found,) = ours("NonZero", [np.array(value)])
    assert found.shape == (0, columns)


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("condition", [[], [True], [False, True, True]])
def test_compress_agrees_with_onnxruntime(axis: int | None, condition: list[bool]) -> None:
    attributes = {} if axis is None else {"axis": axis}
    assert_agree("Compress", [data(1, 3, 4), np.array(condition, bool)], **attributes)


@settings(max_examples=40, deadline=None)
@given(
    axis=st.sampled_from([None, 0, 1]),
    order=st.integers(0, 1),
    rows=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_unique_agrees_with_onnxruntime(axis: int | None, order: int, rows: int, seed: int) -> None:
    if axis == 1 and rows == 0:
        rows = 1
    attributes = {"sorted": order} | ({} if axis is None else {"axis": axis})
    assert_agree("Unique", [data(seed, rows, 2)], outputs=4, **attributes)


def test_the_parts_of_unique_give_the_whole_back() -> None:
    words = np.array([["b", "a"], ["c", "a"], ["b", "a"]], object)
    values, first, inverse, counts = ours("Unique", [words], outputs=4, axis=0, sorted=0)
    assert values[inverse].tolist() == words.tolist()
    assert words[first].tolist() == values.tolist()
    assert counts.tolist() == [2, 1]


def test_as_many_outputs_come_as_are_wanted() -> None:
    assert len(ours("Unique", [data(0, 4)], outputs=1)) == 1
