"""Range counts as onnxruntime does, and its length follows symbols."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops import find
from tests.engine.ops.single_node import assert_agree, ours


@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(-9, 9),
    limit=st.integers(-9, 9),
    delta=st.integers(-4, 4).filter(bool),
    dtype=st.sampled_from([np.int64, np.int32, np.float32, np.float64]),
)
def test_range_agrees_with_onnxruntime(start: int, limit: int, delta: int, dtype: type) -> None:
    scale = 0.25 if np.issubdtype(dtype, np.floating) else 1
    assert_agree("Range", [np.array(n * scale, dtype) for n in (start, limit, delta)])


def test_bfloat16_is_counted_in_float32() -> None:
    numbers = [np.array(n, ml_dtypes.bfloat16) for n in (0, 600, 1)]
    (found,) = ours("Range", numbers, 27)
    assert found.astype(int).tolist() == np.arange(600).astype(ml_dtypes.bfloat16).tolist()


def test_the_length_follows_symbols() -> None:
    n = symbol("n")

    def operand(*, value: int | None = None, content: object = None) -> Operand:
        held = None if value is None else np.array(value)
        return Operand(
            TensorType(DType.INT64, ()),
            held,
            None if content is None else np.array(content, object),
        )

    infer = find("", "Range", 11)().infer
    zero, one = operand(value=0), operand(value=1)
    assert infer(zero, operand(content=n), one)[0].shape == (n,)
    assert infer(operand(content=n), operand(content=n * 3), one)[0].shape == (n * 2,)
    (found,) = infer(zero, operand(), one)
    assert isinstance(found.dims[0], UnknownSize)


def test_a_step_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="step"):
        ours("Range", [np.array(n) for n in (0, 3, 0)])
