"""The shared shape rules broadcast, normalise axes and join sizes without guessing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ir.sizes import maximum, symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops.contents import element_count, integers, known_integers
from engine.ops.dtype_codes import CODES, dtype_of_code
from engine.ops.precision import widened
from engine.ops.shapes import agree, broadcast, normalize_axes, normalize_axis, unknown

SHAPE = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(SHAPE, SHAPE)
def test_broadcast_is_that_of_numpy(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    try:
        expected = np.broadcast_shapes(left, right)
    except ValueError:
        with pytest.raises(ValueError, match="broadcast"):
            broadcast(left, right)
    else:
        assert broadcast(left, right) == expected


def test_symbols_broadcast_as_far_as_they_are_known() -> None:
    n, m = symbol("n"), symbol("m")
    assert broadcast((n, 1), (m,)) == (n, m)
    assert broadcast((n,), (4,)) == (4,)
    assert broadcast((n,), (m,)) == (maximum(n, m),)
    assert broadcast((n,), None) is None


@given(st.integers(-5, 5), st.integers(1, 4))
def test_axes_lie_within_the_rank(axis: int, rank: int) -> None:
    if -rank <= axis < rank:
        assert normalize_axis(axis, rank) == range(rank)[axis]
    else:
        with pytest.raises(ValueError, match=f"axis is {axis}"):
            normalize_axis(axis, rank)


def test_an_axis_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        normalize_axes([0, -2], 2)


def test_equal_sizes_agree_on_the_known_one() -> None:
    n = symbol("n")
    assert agree(n, 4) == 4
    assert agree(4, n) == 4
    assert agree(n, n) == n
    with pytest.raises(ValueError, match="length is 3"):
        agree(3, 4, name="length")
    with pytest.raises(ValueError, match="size"):
        agree(n, n + 1)


def test_an_unknown_size_carries_its_bound() -> None:
    assert unknown(symbol("n")) == UnknownSize(symbol("n"))


def test_contents_are_read_only_when_they_are_numbers() -> None:
    n = symbol("n")
    kind = TensorType(DType.INT64, (2,))
    assert known_integers(Operand(kind, np.array([1, 2]))) == [1, 2]
    assert known_integers(Operand(kind, content=np.array([1, n], object))) is None
    assert known_integers(Operand(kind)) is None
    assert element_count(Operand(kind)) == 2
    assert element_count(Operand(TensorType(DType.INT64, (n,)))) is None
    with pytest.raises(ValueError, match="symbolic"):
        integers(np.array([1, n], object))


def test_type_numbers_are_those_of_onnx() -> None:
    from onnx import TensorProto, helper

    for code, dtype in CODES.items():
        assert helper.tensor_dtype_to_np_dtype(code) == dtype.numpy, TensorProto.DataType.Name(code)
    assert set(CODES) == set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
    with pytest.raises(ValueError, match="99"):
        dtype_of_code(99)


@pytest.mark.parametrize("dtype", list(DType))
def test_only_narrow_floats_are_widened(dtype: DType) -> None:
    narrow = dtype.is_float and dtype.nbytes < 4
    wide = widened(np.zeros(1, dtype.numpy))
    assert wide.dtype == (np.float32 if narrow else dtype.numpy)
