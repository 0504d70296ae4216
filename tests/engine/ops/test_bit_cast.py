"""BitCast keeps bits: there and back is nothing, and known patterns are read right."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType
from engine.ops.bit_cast import bit_width
from engine.ops.dtype_codes import CODES
from tests.engine.ops.single_node import ours

NUMBERS = {dtype: code for code, dtype in CODES.items()}
PAIRS = [
    (a, b)
    for a in DType
    for b in DType
    if a is not b and DType.STRING not in (a, b) and DType.BOOL not in (a, b)
    if bit_width(a) == bit_width(b)
]


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.value)
def test_there_and_back_is_nothing(source: DType, target: DType) -> None:
    data = np.arange(2).astype(source.numpy).reshape(2, 1)
    (there,) = ours("BitCast", [data], 26, to=NUMBERS[target])
    (back,) = ours("BitCast", [there], 26, to=NUMBERS[source])
    assert there.shape == data.shape
    assert back.tobytes() == data.tobytes()


def test_one_is_its_bit_pattern() -> None:
    (found,) = ours("BitCast", [np.array(1, np.float32)], 26, to=NUMBERS[DType.INT32])
    assert found == 0x3F800000
    (found,) = ours(
        "BitCast", [np.array([-1]).astype(DType.INT4.numpy)], 26, to=NUMBERS[DType.UINT4]
    )
    assert found.astype(int).tolist() == [15]


@pytest.mark.parametrize("target", [DType.INT64, DType.STRING, DType.INT8])
def test_another_width_is_refused(target: DType) -> None:
    with pytest.raises(ValueError, match="width"):
        ours("BitCast", [np.zeros(2, np.float32)], 26, to=NUMBERS[target])
