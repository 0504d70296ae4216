"""Constants hold exactly one value, of the type their attribute implies."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ops import find
from tests.engine.ops.single_node import ours


@pytest.mark.parametrize(
    ("name", "value", "dtype", "shape"),
    [
        ("value_float", 1.5, np.float32, ()),
        ("value_floats", (1.0, 2.0), np.float32, (2,)),
        ("value_int", 3, np.int64, ()),
        ("value_ints", (), np.int64, (0,)),
        ("value_string", "a", object, ()),
        ("value_strings", ("a", "bc"), object, (2,)),
        ("value", np.ones((2, 2), np.int8), np.int8, (2, 2)),
    ],
)
def test_every_attribute_has_its_type(name: str, value: object, dtype: type, shape: object) -> None:
    (found,) = ours("Constant", [], **{name: value})
    assert found.dtype == dtype
    assert found.shape == shape
    assert found.tolist() == np.asarray(value).tolist()


def test_a_constant_without_or_with_two_values_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        find("", "Constant", 13)().meaning()
    with pytest.raises(ValueError, match="exactly one"):
        find("", "Constant", 13)(value_int=1, value_float=1.0).meaning()


def test_constant_of_shape_fills_with_its_value() -> None:
    (found,) = ours("ConstantOfShape", [np.array([2, 0, 3])], value=np.array([7], np.int8))
    assert found.shape == (2, 0, 3)
    assert found.dtype == np.int8
    (found,) = ours("ConstantOfShape", [np.array([2])])
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match="elements"):
        ours("ConstantOfShape", [np.array([2])], value=np.zeros(2))
