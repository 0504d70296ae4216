"""Sequences behave like lists, and splitting undoes concatenating."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, SequenceType, TensorType, UnknownSize
from engine.ops import find


def op(name: str, **attributes: Any) -> Any:
    return find("", name, 24).from_attributes(attributes)


def tensors(count: int) -> list[np.ndarray[Any, Any]]:
    return [np.full((2, index + 1), index) for index in range(count)]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.data())
def test_insert_at_and_erase_are_those_of_lists(length: int, data: st.DataObject) -> None:
    given_list, new = tensors(length), np.zeros(1)
    place = data.draw(st.integers(-length, length))
    inserted = op("SequenceInsert").meaning(given_list, new, np.array(place))
    expected = list(given_list)
    expected.insert(place, new)
    assert [id(item) for item in inserted] == [id(item) for item in expected]
    index = data.draw(st.integers(-length, length - 1))
    assert op("SequenceAt").meaning(given_list, np.array(index)) is given_list[index]
    erased = op("SequenceErase").meaning(given_list, np.array(index))
    assert len(erased) == op("SequenceLength").meaning(erased) == length - 1
    assert len(given_list) == length


def test_without_a_position_the_end_is_meant() -> None:
    given_list = tensors(3)
    assert op("SequenceErase").meaning(given_list) == given_list[:2]
    assert op("SequenceInsert").meaning(given_list, given_list[0])[-1] is given_list[0]


@pytest.mark.parametrize("place", [-4, 3])
def test_a_position_outside_is_refused(place: int) -> None:
    with pytest.raises(ValueError, match=f"position is {place}"):
        op("SequenceAt").meaning(tensors(3), np.array(place))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(0, 7), st.integers(0, 2))
def test_concatenating_undoes_splitting(part: int, size: int, axis: int) -> None:
    shape = [2, 3, 4]
    shape[axis] = size
    x = np.arange(np.prod(shape)).reshape(shape)
    pieces = op("SplitToSequence", axis=axis).meaning(x, np.array(part))
    assert all(a.shape[axis] == part for a, _ in pairwise(pieces))
    assert len(pieces) == -(-size // part)
    if pieces:
        np.testing.assert_array_equal(op("ConcatFromSequence", axis=axis).meaning(pieces), x)


def test_stacking_undoes_splitting_without_the_axis() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    pieces = op("SplitToSequence", axis=1, keepdims=0).meaning(x)
    assert [item.shape for item in pieces] == [(2, 4)] * 3
    np.testing.assert_array_equal(op("ConcatFromSequence", axis=1, new_axis=1).meaning(pieces), x)


def test_sizes_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 5"):
        op("SplitToSequence").meaning(np.zeros(5), np.array([2, 2]))


def test_equal_symbolic_parts_have_a_known_shape_and_others_have_not() -> None:
    n = symbol("n")
    x = Operand(TensorType(DType.FLOAT32, (n * 4, 3)))

    def element(split: list[int] | int) -> Any:
        value = np.array(split)
        kind = TensorType(DType.INT64, value.shape)
        (found,) = op("SplitToSequence").infer(x, Operand(kind, value))
        return found.element.shape

    assert element(4) == (4, 3)
    assert element(3) is None
    assert element([2, 2]) == (2, 3)
    assert element([1, 2]) is None


def test_elements_of_different_shapes_make_a_sequence_without_a_shape() -> None:
    a, b = (Operand(TensorType(DType.FLOAT32, shape)) for shape in ((2, 3), (2, 4)))
    (same,) = op("SequenceConstruct").infer(a, a)
    (different,) = op("SequenceConstruct").infer(a, b)
    assert same == SequenceType(a.type)
    assert different == SequenceType(TensorType(DType.FLOAT32, None))
    with pytest.raises(ValueError, match="one type"):
        op("SequenceConstruct").infer(a, Operand(TensorType(DType.INT64, (2, 3))))


def test_a_concatenated_sequence_has_one_unknown_size() -> None:
    sequence = Operand(SequenceType(TensorType(DType.INT8, (2, symbol("n")))))
    (joined,) = op("ConcatFromSequence", axis=-1).infer(sequence)
    (stacked,) = op("ConcatFromSequence", axis=-1, new_axis=1).infer(sequence)
    assert joined.shape == (2, UnknownSize())
    assert stacked.shape == (2, symbol("n"), UnknownSize())


def test_an_empty_sequence_has_the_element_type_that_its_code_names() -> None:
    assert op("SequenceEmpty").meaning() == []
    (kind,) = op("SequenceEmpty", dtype=7).infer()
    assert kind == SequenceType(TensorType(DType.INT64, None))
