"""Elementwise operators: expressions, shape arithmetic, types, edge cases beyond the suite."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

from engine.ir.sizes import Size, symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import (
    elementwise_activation,
    elementwise_binary,
    elementwise_cast,
    elementwise_select,
    elementwise_unary,
)
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.expression import Expression, evaluate, load
from engine.ops.operator import Operator, find, known
from engine.ops.symbolic import holds_sizes

F = DType.FLOAT32
TABLES = [elementwise_unary.TABLE, elementwise_binary.TABLE, elementwise_activation.TABLE]
ELEMENTWISE = [
    c for versions in known().values() for c in versions if issubclass(c, ElementwiseOperator)
]


def operator(name: str, version: int = 28, **attributes: Any) -> Any:
    return find("", name, version).from_attributes(attributes)


def sizes(*items: Any) -> Any:
    result = np.empty(len(items), object)
    result[:] = items
    return result


def test_every_row_of_the_tables_is_registered() -> None:
    names = {cls.name for cls in ELEMENTWISE}
    rows = {row[0] for table in TABLES for row in table}
    assert rows <= names
    assert {"Cast", "CastLike", "Where", "Clip", "Mod", "BitShift", "IsInf"} <= names
    assert elementwise_cast.Cast.name == "Cast"
    assert elementwise_select.Where.name == "Where"


def test_an_operator_s_expression_is_its_meaning() -> None:
    x = np.linspace(-3, 3, 25, dtype=np.float32)
    for name in ("Relu", "Gelu", "Mish", "Selu", "HardSwish", "Softplus", "Erf", "Tanh", "Round"):
        found = operator(name)
        expression = found.expression(load(0, F))
        assert isinstance(expression, Expression)
        np.testing.assert_array_equal(evaluate(expression, [x]), found.meaning(x))


def test_operators_come_back_from_their_attributes() -> None:
    for found in (operator("Gelu", approximate="tanh"), operator("Clip", 6, min=-1.0, max=2.0)):
        again = type(found).from_attributes(json.loads(json.dumps(found.attributes())))
        assert again == found
        assert hash(again) == hash(found)
        assert pickle.loads(pickle.dumps(found)) == found
        assert copy.deepcopy(found) == found


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_narrow_floats_are_rounded_once(dtype: DType) -> None:
    x = np.linspace(-3, 3, 101).astype(dtype.numpy)
    wide = operator("Gelu").meaning(x.astype(np.float32))
    np.testing.assert_array_equal(operator("Gelu").meaning(x), wide.astype(dtype.numpy))


def test_a_narrow_second_operand_does_not_narrow_the_result() -> None:
    base, power = np.float32([1.1, 3.3]), np.float16([2, 0.5])
    found = operator("Pow").meaning(base, power)
    np.testing.assert_allclose(found, [1.21, 3.3**0.5], rtol=1e-6)
    wide = operator("Cast", to=1).meaning(power)
    assert wide.dtype == np.float32
    assert operator("Where").meaning(np.array([True]), power, power).dtype == np.float16


def test_shape_arithmetic_follows_symbols() -> None:
    n = symbol("n")
    doubled = operator("Mul").meaning(sizes(n, 3), np.int64([2, 5]))
    assert doubled.tolist() == [n * 2, 15]
    assert operator("Div").meaning(sizes(n * 12), np.int64([4])).tolist() == [n * 3]
    assert operator("Div").meaning(sizes(-7), np.int64(2)).tolist() == [-3]
    assert operator("Mod").meaning(sizes(n * 4), np.int64(4)).tolist() == [0]
    assert operator("Max").meaning(sizes(n + 1), np.int64(1)).tolist() == [n + 1]
    assert operator("Cast", to=6).meaning(sizes(n)).tolist() == [n]
    assert operator("Neg").meaning(sizes(n)).tolist() == [-n]
    equal = operator("Equal").meaning(sizes(n, 4), sizes(n, 5))
    assert equal.dtype == bool
    assert equal.tolist() == [True, False]
    chosen = operator("Where").meaning(equal, sizes(n, n), np.int64([1, 1]))
    assert chosen.tolist() == [n, 1]
    assert operator("Greater").meaning(sizes(n + 1), np.int64(0)).tolist() == [True]
    assert operator("Abs").meaning(sizes(n)).tolist() == [n]
    assert operator("Floor").meaning(sizes(n)).tolist() == [n]


def test_undecided_shape_arithmetic_says_so() -> None:
    n, m = symbol("n"), symbol("m")
    for name, operands in {
        "Equal": (sizes(n), sizes(m)),
        "Less": (sizes(n), np.int64([3])),
        "Div": (sizes(n), np.int64([0])),
        "Abs": (sizes(n - m),),
        "Exp": (sizes(n),),
    }.items():
        with pytest.raises(ValueError, match=r"undecided|takes float"):
            operator(name).meaning(*operands)
    with pytest.raises(ValueError, match="undecided"):
        operator("Cast", to=1).meaning(sizes(n))
    with pytest.raises(ValueError, match="undecided"):
        operator("Add").meaning(sizes(n), np.float32([1]))


def test_strings_are_no_sizes() -> None:
    words = np.array(["a", "b"], object)
    assert not holds_sizes(words)
    assert holds_sizes(sizes(Size(((("n",), 1),))))
    assert operator("Equal").meaning(words, np.array(["a", "c"], object)).tolist() == [True, False]
    picked = operator("Where").meaning(np.array([True, False]), words, words[::-1])
    assert picked.tolist() == ["a", "a"]


def test_strings_are_read_and_written() -> None:
    words = np.array(["1.5", "-INF", "nan", "1e3"], object)
    found = operator("Cast", to=1).meaning(words)
    np.testing.assert_array_equal(found, np.float32([1.5, -np.inf, np.nan, 1000]))
    assert operator("Cast", to=7).meaning(np.array(["100.5", "-7"], object)).tolist() == [100, -7]
    assert operator("Cast", to=8).meaning(np.int32([3, -4])).tolist() == ["3", "-4"]
    assert operator("Cast", to=8).meaning(np.float32([0.1])).tolist() == ["0.1"]
    with pytest.raises(ValueError, match="spells no float32"):
        operator("Cast", to=1).meaning(np.array(["Hello"], object))


def test_forms_that_expressions_lack_are_refused_but_have_a_meaning() -> None:
    loose = operator("Cast", to=17, saturate=0)
    with pytest.raises(ValueError, match="saturates"):
        loose.expression(load(0, F))
    assert np.isnan(loose.meaning(np.float32([1e9])).astype(np.float32)[0])
    with pytest.raises(ValueError, match="does not convert string"):
        operator("Cast", to=8).expression(load(0, F))


def test_inference_follows_symbols_and_unknown_ranks() -> None:
    n = symbol("n")
    known_type, scalar = TensorType(F, (n, 1, 4)), TensorType(F, ())
    (found,) = operator("Add").infer(Operand(known_type), Operand(TensorType(F, (3, 1))))
    assert found == TensorType(F, (n, 3, 4))
    (found,) = operator("Less").infer(Operand(TensorType(F, None)), Operand(scalar))
    assert found == TensorType(DType.BOOL, None)
    (found,) = operator("Clip").infer(Operand(known_type), None, Operand(scalar))
    assert found == known_type
    with pytest.raises(ValueError, match="one type"):
        operator("Add").infer(Operand(scalar), Operand(TensorType(DType.INT32, ())))
    with pytest.raises(ValueError, match="do not broadcast"):
        operator("Add").infer(Operand(TensorType(F, (2,))), Operand(TensorType(F, (3,))))


def test_scalars_and_empty_tensors() -> None:
    for name in ("Exp", "Relu", "Gelu", "Neg"):
        for x in (np.float32(0.5), np.zeros((0, 3), np.float32), np.array(2.0, np.float32)):
            found = operator(name).meaning(x)
            assert isinstance(found, np.ndarray)
            assert (found.dtype, found.shape) == (np.float32, x.shape)
    found = operator("Add").meaning(np.zeros((0, 1), np.float32), np.zeros((1, 4), np.float32))
    assert found.shape == (0, 4)


def test_stable_forms_do_not_overflow() -> None:
    x = np.float32([-200, 200, 0])
    np.testing.assert_allclose(operator("Softplus").meaning(x), [0, 200, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(operator("Mish").meaning(x), [0, 200, 0], atol=1e-6)
    np.testing.assert_allclose(operator("Sigmoid").meaning(x), [0, 1, 0.5], atol=1e-30)


def test_wrong_attribute_values_are_refused() -> None:
    for name, attributes in {
        "Gelu": {"approximate": "maybe"},
        "BitShift": {"direction": "UP"},
        "Cast": {"to": 99},
    }.items():
        found: Operator = operator(name, **attributes)
        types = [Operand(TensorType(DType.UINT8 if name == "BitShift" else F, ()))]
        with pytest.raises(ValueError, match=r"maybe|UP|99"):
            found.infer(*(types * (2 if name == "BitShift" else 1)))
