"""Expressions: interning, JSON, hostile JSON, the NumPy printer."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.types import DType
from engine.ops.expression import (
    Expression,
    call,
    cast,
    constant,
    evaluate,
    from_json,
    index,
    load,
    loads,
    order,
    roots_from_json,
    roots_to_json,
    substitute,
    to_json,
)
from engine.ops.functions import FUNCTIONS, result_type
from engine.ops.special import erf
from tests.engine.random_expressions import exact_expressions, values

F = DType.FLOAT32
X = load(0, F)


def doubled(times: int) -> Expression:
    node = X
    for _ in range(times):
        node = call("add", node, node)
    return node


def test_equal_expressions_are_one_object() -> None:
    assert call("add", load(0, F), constant(1, F)) is call("add", load(0, F), constant(1.0, F))
    assert constant(0.0, F) is not constant(-0.0, F)
    assert constant(1, DType.INT32) is not constant(1, DType.INT64)
    assert constant(math.nan, F) is constant(math.nan, F)
    assert constant(0.1, F).value == float(np.float32(0.1))


def test_shared_parts_cost_once_everywhere() -> None:
    deep = doubled(100)  # 2**100 paths
    assert len(order(deep)) == 101
    assert from_json(json.loads(json.dumps(to_json(deep)))) is deep
    assert pickle.loads(pickle.dumps(deep)) is deep
    assert hash(deep) == hash(doubled(100))
    assert evaluate(deep, [np.float32([2.0**-90])])[0] == 2.0**10
    assert len(str(deep)) < 1000


def test_an_expression_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="cannot be changed"):
        X.value = 3


@settings(max_examples=60, deadline=None)
@given(expression=exact_expressions())
def test_json_brings_back_the_same_object(expression: Expression) -> None:
    assert from_json(json.loads(json.dumps(to_json(expression)))) is expression
    both = [expression, X]
    assert roots_from_json(json.loads(json.dumps(roots_to_json(both)))) == both


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        [],
        [[]],
        ["load"],
        [["load", "float32"]],
        [["load", "float32", -1]],
        [["load", "float32", True]],
        [["load", "float33", 0]],
        [["load", "float32", 10**9]],
        [["constant", "float32", "system"]],
        [["constant", "int8", 300]],
        [["constant", "bool", 1]],
        [["constant", "int64", 1.5]],
        [["constant", "string", "x"]],
        [["load", "float32", 0], ["exp", 1]],
        [["load", "float32", 0], ["exp", -1]],
        [["load", "float32", 0], ["exp", 0, 0]],
        [["load", "float32", 0], ["__import__", 0]],
        [["load", "float32", 0], ["row_sum", 0]],
        [["index", "int64", 0]],
        [["load", "float32", 0], ["load", "int32", 1], ["add", 0, 1]],
        [["load", "float32", 0], ["cast", "string", 0]],
        [["load", "bool", 0], ["add", 0, 0]],
        [["load", "float32", 0]] * 5000,
        [["load", "float32", [[[[0]]]]]],
        {"nodes": []},
    ],
)
def test_hostile_json_is_refused(hostile: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(hostile)


def test_types_are_checked_when_calls_are_made() -> None:
    with pytest.raises(ValueError, match="one type"):
        call("add", X, load(1, DType.FLOAT64))
    with pytest.raises(ValueError, match="takes 2 operands"):
        call("add", X)
    with pytest.raises(ValueError, match="bool condition"):
        call("select", X, X, X)
    with pytest.raises(ValueError, match="no function"):
        call("pow", X, X)
    with pytest.raises(ValueError, match="takes integer operands"):
        call("bitwise_and", X, X)


def test_loads_and_substitution() -> None:
    node = call("add", X, call("multiply", load(3, F), X))
    assert loads(node) == {0: F, 3: F}
    assert substitute(node, {3: constant(2, F)}) is call(
        "add", X, call("multiply", constant(2, F), X)
    )
    with pytest.raises(ValueError, match="float32, found int32"):
        substitute(node, {0: load(0, DType.INT32)})


def test_an_index_has_no_value_outside_a_region() -> None:
    with pytest.raises(ValueError, match="inside a region"):
        evaluate(cast(index(0), F), [])


def test_evaluation_leaves_its_operands_alone() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    kept = x.copy()
    node = call("add", call("negative", call("add", X, X)), X)
    np.testing.assert_array_equal(evaluate(node, [x]), -x)
    np.testing.assert_array_equal(x, kept)
    x.flags.writeable = False
    np.testing.assert_array_equal(evaluate(node, [x]), -kept)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.INT64, DType.UINT16])
def test_integer_rules(dtype: DType) -> None:
    a, b = values(dtype, 200, 1), values(dtype, 200, 2)
    pair = load(0, dtype), load(1, dtype)
    quotient = evaluate(call("divide", *pair), [a, b])
    low = np.iinfo(dtype.numpy).min
    for x, y, found in zip(a.tolist(), b.tolist(), quotient.tolist(), strict=True):
        exact = 0 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        assert found == (low if low < 0 and (x, y) == (low, -1) else exact)
    width = dtype.nbytes * 8
    for place, count in enumerate((1, width - 1, width, 100)):
        shifted = evaluate(call("shift_left", *pair), [a, np.full_like(a, count)])
        expected = [(x << count) & (1 << width) - 1 for x in a.tolist()]
        assert (shifted.astype(object) & (1 << width) - 1).tolist() == expected, place
        back = evaluate(call("shift_right", *pair), [a, np.full_like(a, count)])
        assert back.tolist() == [x >> count for x in a.tolist()]


def test_integer_powers_wrap_and_truncate() -> None:
    pair = load(0, DType.INT32), load(1, DType.INT32)
    base = np.int32([2, 3, -2, -1, 1, 0, 2, 7])
    power = np.int32([10, 0, 3, -3, -5, 4, -1, 13])
    found = evaluate(call("power", *pair), [base, power])
    wrapped = (7**13 + 2**31) % 2**32 - 2**31
    assert found.tolist() == [1024, 1, -8, -1, 1, 0, 0, wrapped]


def test_minimum_and_maximum_propagate_nan_and_rounding_is_half_to_even() -> None:
    x = np.float32([np.nan, 1, 0.5, 1.5, 2.5, -0.5])
    one = constant(1, F)
    assert np.isnan(evaluate(call("min", X, one), [x])[0])
    assert np.isnan(evaluate(call("max", one, X), [x])[0])
    assert evaluate(call("round", X), [x])[2:].tolist() == [0, 2, 2, -0.0]


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if "float" in f.takes])
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_narrow_floats_are_computed_wide_and_rounded_once(name: str, dtype: DType) -> None:
    row = FUNCTIONS[name]
    if name == "select":
        return  # computes nothing
    arrays = [values(dtype, 64, seed) for seed in range(row.arity)]
    found = evaluate(call(name, *(load(i, dtype) for i in range(row.arity))), arrays)
    wide = [array.astype(np.float32) for array in arrays]
    direct = evaluate(call(name, *(load(i, F) for i in range(row.arity))), wide)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = direct.astype(found.dtype).astype(np.float32)
    np.testing.assert_array_equal(found.astype(np.float32), rounded)
    assert found.dtype == (np.bool_ if row.boolean else dtype.numpy)


def test_result_types() -> None:
    assert result_type("less", (F, F)) is DType.BOOL
    assert result_type("select", (DType.BOOL, F, F)) is F


@given(x=st.floats(-8, 8))
def test_erf_is_good_to_float64(x: float) -> None:
    found = float(erf(np.float64(x)))
    assert found == pytest.approx(math.erf(x), rel=1e-15, abs=1e-300)


def test_erf_keeps_special_values() -> None:
    found = erf(np.float32([np.nan, np.inf, -np.inf, -0.0]))
    assert found.dtype == np.float32
    assert str(found.tolist()) == "[nan, 1.0, -1.0, -0.0]"
