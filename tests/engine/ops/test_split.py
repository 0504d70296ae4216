"""Split cuts into equal, given or ceiled parts that add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from tests.engine.ops.single_node import assert_agree, ours


@pytest.mark.parametrize("axis", [0, -1])
def test_split_agrees_with_onnxruntime(axis: int) -> None:
    data = np.arange(36.0).reshape(6, 6)
    assert_agree("Split", [data, np.array([1, 0, 5])], 13, 3, axis=axis)
    assert_agree("Split", [data], 13, 3, axis=axis)
    assert_agree("Split", [data], 11, 2, axis=axis, split=(2, 4))
    assert_agree("Split", [data], 18, 4, axis=axis, num_outputs=4)


@settings(deadline=None)
@given(size=st.integers(0, 30), count=st.integers(1, 8))
def test_ceiled_parts_cover_the_axis_in_order(size: int, count: int) -> None:
    parts = ours("Split", [np.arange(size)], 18, count, num_outputs=count)
    assert len(parts) == count
    assert np.concatenate(parts).tolist() == list(range(size))
    lengths = [part.size for part in parts]
    assert lengths == sorted(lengths, reverse=True)


def test_symbolic_thirds_are_exact() -> None:
    n = symbol("n")
    operator = find("", "Split", 13).from_attributes({"axis": -1, "output_count": 3})
    found = operator.infer(Operand(TensorType(DType.FLOAT32, (n, n * 3))))
    assert [item.shape for item in found] == [(n, n)] * 3


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="equal parts"):
        ours("Split", [np.zeros(5)], 13, 2)
    with pytest.raises(ValueError, match="add up"):
        ours("Split", [np.zeros(5), np.array([1, 3])], 13, 2)
