"""Expand and Tile repeat as onnxruntime does."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from tests.engine.ops.single_node import assert_agree, ours

DATA = np.arange(3, dtype=np.float32).reshape(3, 1)


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (2, 1, 6), (2, 3, 0)])
def test_expand_agrees_with_onnxruntime(shape: tuple[int, ...]) -> None:
    assert_agree("Expand", [DATA, np.array(shape, np.int64)])


@pytest.mark.parametrize("repeats", [(1, 1), (2, 3), (0, 2)])
def test_tile_agrees_with_onnxruntime(repeats: tuple[int, ...]) -> None:
    assert_agree("Tile", [DATA, np.array(repeats)])


def test_expand_and_tile_follow_symbols() -> None:
    n = symbol("n")
    data = Operand(TensorType(DType.FLOAT32, (1, 4)))
    shape = Operand(TensorType(DType.INT64, (3,)), content=np.array([n, 2, 1], object))
    assert find("", "Expand", 13)().infer(data, shape)[0].shape == (n, 2, 4)
    repeats = Operand(TensorType(DType.INT64, (2,)), content=np.array([n, 2], object))
    assert find("", "Tile", 13)().infer(data, repeats)[0].shape == (n, 8)


def test_shapes_that_do_not_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        ours("Expand", [DATA, np.array([2, 4])])
    with pytest.raises(ValueError, match="repeats"):
        find("", "Tile", 13)().infer(
            Operand(TensorType(DType.FLOAT32, (1, 4))),
            Operand(TensorType(DType.INT64, (1,)), np.array([2])),
        )
