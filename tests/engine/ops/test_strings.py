"""String operators do what Python's string methods do, over tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops import find
from engine.ops.strings import string_array

TEXT = st.text(st.sampled_from("ab ,éß"), max_size=8)


def op(name: str, **attributes: Any) -> Any:
    return find("", name, 20).from_attributes(attributes)


def strings(*items: str) -> Any:
    return string_array(items, (len(items),))


@settings(deadline=None, max_examples=40)
@given(st.lists(TEXT, max_size=5), TEXT)
def test_concatenation_broadcasts(left: list[str], right: str) -> None:
    found = op("StringConcat").meaning(strings(*left), np.array(right, object))
    assert found.dtype == object
    assert found.tolist() == [item + right for item in left]


def test_scalars_concatenate_to_a_scalar() -> None:
    found = op("StringConcat").meaning(np.array("a", object), np.array("b", object))
    assert (found.shape, found.item()) == ((), "ab")


@settings(deadline=None, max_examples=40)
@given(st.lists(TEXT, max_size=5), st.sampled_from([None, "", ",", "ab"]), st.integers(0, 3))
def test_joining_undoes_splitting(items: list[str], delimiter: str | None, most: int) -> None:
    x = strings(*items)
    parts, counts = op("StringSplit", delimiter=delimiter, maxsplit=most).meaning(x)
    assert parts.shape == (len(items), counts.max(initial=0))
    for item, row, count in zip(items, parts.tolist(), counts.tolist(), strict=True):
        assert row[count:] == [""] * (len(row) - count)
        assert count <= most + 1
        if delimiter:
            assert delimiter.join(row[:count]) == item
        else:
            assert row[:count] == item.split(None, most)


def test_the_parts_lie_on_an_axis_of_unknown_size() -> None:
    x = Operand(TensorType(DType.STRING, (symbol("n"), 2)))
    parts, counts = op("StringSplit").infer(x)
    assert parts == TensorType(DType.STRING, (symbol("n"), 2, UnknownSize()))
    assert counts == TensorType(DType.INT64, (symbol("n"), 2))


def test_stop_words_are_found_in_any_case_unless_case_matters() -> None:
    x = strings("Monday", "monday", "Tuesday")
    loose = op("StringNormalizer", stopwords=("MONDAY",))
    strict = op("StringNormalizer", stopwords=("monday",), is_case_sensitive=1)
    assert loose.meaning(x).tolist() == ["Tuesday"]
    assert strict.meaning(x).tolist() == ["Monday", "Tuesday"]


def test_case_changes_after_stop_words_are_gone() -> None:
    operator = op(
        "StringNormalizer", stopwords=("a",), is_case_sensitive=1, case_change_action="UPPER"
    )
    assert operator.meaning(strings("a", "A", "é")).tolist() == ["A", "É"]


@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_nothing_left_is_one_empty_string(shape: tuple[int, ...]) -> None:
    found = op("StringNormalizer", stopwords=("x",)).meaning(string_array(["x", "X"], shape))
    assert found.shape == (*shape[:-1], 1)
    assert found.ravel().tolist() == [""]


def test_a_locale_with_rules_of_its_own_is_refused_only_where_case_matters() -> None:
    x = strings("I")
    assert op("StringNormalizer", locale="tr_TR").meaning(x).tolist() == ["I"]
    with pytest.raises(ValueError, match="tr_TR"):
        op("StringNormalizer", locale="tr_TR", case_change_action="LOWER").meaning(x)


def test_an_unknown_action_is_refused_when_a_model_is_built() -> None:
    with pytest.raises(ValueError, match="SWAP"):
        op("StringNormalizer", case_change_action="SWAP").infer(
            Operand(TensorType(DType.STRING, (2,)))
        )
