"""Optionals hold a value or none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from engine.ir.types import DType, Operand, OptionalType, SequenceType, TensorType
from engine.ops import find

FLOATS = TensorType(DType.FLOAT32, (2,))


def op(name: str, version: int = 18, **attributes: Any) -> Any:
    return find("", name, version).from_attributes(attributes)


def test_a_value_goes_in_and_comes_out() -> None:
    x = np.zeros(2)
    held = op("Optional").meaning(x)
    assert op("OptionalHasElement").meaning(held)
    assert op("OptionalGetElement").meaning(held) is x


def test_an_absent_value_is_none_and_cannot_be_taken_out() -> None:
    nothing = op("Optional", type=FLOATS).meaning()
    assert nothing is None
    assert not op("OptionalHasElement").meaning(nothing)
    with pytest.raises(ValueError, match="empty optional"):
        op("OptionalGetElement").meaning(nothing)


def test_the_type_of_an_absent_value_is_the_attribute() -> None:
    (kind,) = op("Optional", type=SequenceType(FLOATS)).infer()
    assert kind == OptionalType(SequenceType(FLOATS))
    with pytest.raises(ValueError, match="neither"):
        op("Optional").infer()


def test_the_type_survives_json_without_its_sizes() -> None:
    operator = op("Optional", type=SequenceType(FLOATS))
    again = op("Optional", **json.loads(json.dumps(operator.attributes())))
    (kind,) = again.infer()
    assert kind == OptionalType(SequenceType(TensorType(DType.FLOAT32, None)))


@pytest.mark.parametrize("wrong", [["tensor"], ["map", "int8"], ["tensor", "int9"], 3, [[]]])
def test_a_type_that_is_no_type_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"type|int9"):
        op("Optional", type=wrong)


def test_what_is_not_optional_passes_through() -> None:
    (kind,) = op("OptionalGetElement").infer(Operand(FLOATS))
    assert kind == FLOATS
    (kind,) = op("OptionalGetElement").infer(Operand(OptionalType(FLOATS)))
    assert kind == FLOATS
