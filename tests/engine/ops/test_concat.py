"""Concat adds sizes up along its axis and lets the others agree."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from tests.engine.ops.single_node import assert_agree


def operand(*shape: object, dtype: DType = DType.FLOAT32) -> Operand:
    return Operand(TensorType(dtype, shape))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_agrees_with_onnxruntime(axis: int) -> None:
    shapes = [[2, 3], [2, 3], [2, 3]]
    for index, shape in enumerate(shapes):
        shape[axis] = index
    arrays = [np.random.default_rng(0).random(s, np.float32) for s in shapes]
    assert_agree("Concat", arrays, axis=axis)


def test_known_sizes_win_over_symbols() -> None:
    past, new = symbol("past"), symbol("new")
    concat = find("", "Concat", 13)(axis=1)
    (found,) = concat.infer(operand(symbol("n"), past, 4), operand(2, new, 4))
    assert found.shape == (2, past + new, 4)


def test_contradictions_are_refused() -> None:
    concat = find("", "Concat", 13)(axis=0)
    with pytest.raises(ValueError, match="axis 1 is 3"):
        concat.infer(operand(2, 3), operand(2, 4))
    with pytest.raises(ValueError, match="ranks"):
        concat.infer(operand(2, 3), operand(2))
    with pytest.raises(ValueError, match="types"):
        concat.infer(operand(2), operand(2, dtype=DType.INT8))
    with pytest.raises(ValueError, match="at least one"):
        concat.infer()
