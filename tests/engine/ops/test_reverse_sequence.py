"""ReverseSequence turns the beginning of every sample around."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from tests.engine.ops.single_node import assert_agree, ours


@pytest.mark.parametrize("batch", [0, 1])
def test_reversal_agrees_with_onnxruntime(batch: int) -> None:
    data = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    lengths = np.array([3, 1, 2] if batch == 0 else [3, 1, 0, 2])
    assert_agree("ReverseSequence", [data, lengths], batch_axis=batch, time_axis=1 - batch)


def test_the_two_axes_must_be_the_first_two() -> None:

    data = Operand(TensorType(DType.FLOAT32, (2, 2)))
    with pytest.raises(ValueError, match="expected 0 and 1"):
        find("", "ReverseSequence", 10)(batch_axis=1, time_axis=1).infer(data, data)


def test_twice_is_nothing() -> None:
    data, lengths = np.arange(12.0).reshape(4, 3), np.array([4, 2, 3])
    once = ours("ReverseSequence", [data, lengths])[0]
    assert ours("ReverseSequence", [once, lengths])[0].tolist() == data.tolist()
