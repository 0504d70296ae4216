"""Widened expressions: float32 inside, rounded once, closer to exact arithmetic than before."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType
from engine.ops.expression import Expression, call, cast, constant, evaluate, load, order
from engine.ops.widen import NARROW, widen


def chain(dtype: DType) -> Expression:
    """A sum of squares with a scale: three roundings when it is done step by step."""
    x, y = load(0, dtype), load(1, dtype)
    squares = call("add", call("multiply", x, x), call("multiply", y, y))
    return call("multiply", squares, constant(0.1, dtype))


@pytest.mark.parametrize("dtype", sorted(NARROW, key=str))
def test_arithmetic_is_float32_and_the_type_stays(dtype: DType) -> None:
    wide = widen(chain(dtype))
    assert wide.dtype is dtype and wide.function == "cast"
    for node in order(wide):
        assert node is wide or node.function == "load" or node.dtype is DType.FLOAT32


def test_the_result_is_closer_to_exact_arithmetic() -> None:
    random = np.random.default_rng(7)
    x, y = (random.standard_normal(2000).astype(np.float16) for _ in range(2))
    scale = float(np.float16(0.1))
    exact = (x.astype(float) ** 2 + y.astype(float) ** 2) * scale
    narrow = evaluate(chain(DType.FLOAT16), [x, y]).astype(float)
    wide = evaluate(widen(chain(DType.FLOAT16)), [x, y]).astype(float)
    assert np.abs(wide - exact).sum() < 0.75 * np.abs(narrow - exact).sum()
    np.testing.assert_array_equal(wide, exact.astype(np.float16).astype(float))


def test_what_has_no_narrow_float_is_the_same_object() -> None:
    plain = call("add", load(0, DType.FLOAT32), constant(1, DType.FLOAT32))
    assert widen(plain) is plain


def test_casts_to_a_narrow_type_in_between_disappear_and_others_stay() -> None:
    x = load(0, DType.FLOAT32)
    through_half = cast(cast(x, DType.FLOAT16), DType.FLOAT32)
    assert widen(through_half) is x
    through_integer = cast(cast(load(0, DType.FLOAT16), DType.INT32), DType.FLOAT16)
    found = evaluate(widen(through_integer), [np.array([1.75, -2.5], np.float16)])
    assert found.tolist() == [1.0, -2.0]
