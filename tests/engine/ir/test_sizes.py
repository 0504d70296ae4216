"""Sizes: a normal form, values as Python integers have them, and JSON that may be hostile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import (
    Dim,
    Size,
    bounds,
    ceildiv,
    dim_from_json,
    dim_to_json,
    evaluate,
    floordiv,
    maximum,
    minimum,
    modulo,
    product,
    provably_equal,
    substitute,
    symbol,
    symbols,
)

NAMES = ("a", "b", "c")
KNOWN = frozenset(NAMES)
OPERATIONS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[int, int], int]]] = {
    "+": (lambda x, y: x + y, lambda x, y: x + y),
    "-": (lambda x, y: x - y, lambda x, y: x - y),
    "*": (lambda x, y: x * y, lambda x, y: x * y),
    "min": (minimum, min),
    "max": (maximum, max),
    "floordiv": (floordiv, lambda x, y: x // y),
    "ceildiv": (ceildiv, lambda x, y: -(-x // y)),
    "mod": (modulo, lambda x, y: x % y),
}
Pair = tuple[Dim, Callable[[dict[str, int]], int]]


def leaf(value: int | str) -> Pair:
    if isinstance(value, int):
        return value, lambda point: value
    return symbol(value), lambda point: point[value]


def joined(name: str, left: Pair, right: Pair, divisor: int) -> Pair:
    sized, plain = OPERATIONS[name]
    if name in ("floordiv", "ceildiv", "mod"):
        right = leaf(divisor)
    return sized(left[0], right[0]), lambda point: plain(left[1](point), right[1](point))


PAIRS = st.recursive(
    st.one_of(st.integers(-4, 9), st.sampled_from(NAMES)).map(leaf),
    lambda inner: st.builds(
        joined, st.sampled_from(sorted(OPERATIONS)), inner, inner, st.integers(1, 6)
    ),
    max_leaves=10,
)
POINTS = st.fixed_dictionaries({name: st.integers(0, 40) for name in NAMES})


@given(PAIRS, POINTS)
def test_a_size_has_the_value_that_python_integers_have(pair: Pair, point: dict[str, int]) -> None:
    size, plain = pair
    assert evaluate(size, point) == plain(point)


@given(PAIRS, PAIRS, PAIRS)
def test_equal_sums_and_products_are_one_object_in_normal_form(
    first: Pair, second: Pair, third: Pair
) -> None:
    x, y, z = first[0], second[0], third[0]
    assert x + y == y + x and x * y == y * x
    assert (x + y) + z == x + (y + z)
    assert x * (y + z) == x * y + x * z
    assert x - x == 0 and isinstance(x - x, int)
    assert hash(x + y) == hash(y + x)


@given(PAIRS, POINTS)
def test_bounds_and_certain_comparisons_hold(pair: Pair, point: dict[str, int]) -> None:
    size, _ = pair
    value = evaluate(size, point)
    lower, upper = bounds(size)
    assert lower is None or lower <= value
    assert upper is None or value <= upper
    certain = provably_equal(size, 3)
    assert certain is None or certain == (value == 3)


@given(PAIRS)
def test_json_gives_the_same_size_back(pair: Pair) -> None:
    size = pair[0]
    assert dim_from_json(dim_to_json(size), KNOWN) == size


@given(PAIRS, POINTS)
def test_substituting_is_evaluating_in_steps(pair: Pair, point: dict[str, int]) -> None:
    size = pair[0]
    partly = substitute(size, {"a": point["a"], "b": symbol("c") + 1})
    assert symbols(partly) <= {"c"}
    whole = {"a": point["a"], "b": point["c"] + 1, "c": point["c"]}
    assert evaluate(partly, whole) == evaluate(size, whole)


def test_what_divides_exactly_is_divided() -> None:
    n, m = symbol("n"), symbol("m")
    assert (n * 12 + n * 52) // 64 == n
    assert floordiv(n * m, m) == n
    assert floordiv(n * 6 + 3, 6) == n
    assert modulo(n * 6, 3) == 0
    assert ceildiv(n * 4, 2) == n * 2
    assert product([2, n, 3]) == n * 6
    assert str(n * 2 - 1) == "2*n - 1"
    assert isinstance(n + 1 - n, int)


def test_a_symbol_without_a_value_is_named() -> None:
    with pytest.raises(KeyError, match="batch"):
        evaluate(symbol("batch") + 1, {})


def nested(operation: str, depth: int) -> Any:
    found: Any = "a"
    for _ in range(depth):
        found = [operation, found, "b"]
    return found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (True, "boolean"),
        (None, "neither"),
        (1.5, "neither"),
        ({}, "neither"),
        (["+", 1], "neither"),
        ([["+"], 1, 2], "neither"),
        (["power", 1, 2], "power"),
        (["+", 1, "elsewhere"], "elsewhere"),
        (2**63, "out of range"),
        (["floordiv", "a", 0], "zero"),
        (["mod", "a", ["+", 1, -1]], "zero"),
        (nested("min", 70), "nested"),
        (nested("+", 500), "nested"),
    ],
)
def test_a_hostile_expression_is_refused_by_name(text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dim_from_json(text, KNOWN)


def test_products_of_sums_cannot_grow_without_limit() -> None:
    names = [f"s{index}" for index in range(120)]
    text: Any = 1
    for first, second in zip(names[::2], names[1::2]):
        text = ["*", text, ["+", first, second]]
    started = time.process_time()
    with pytest.raises(ValueError, match="too"):
        dim_from_json(text, frozenset(names))
    assert time.process_time() - started < 1


@settings(max_examples=50)
@given(
    st.recursive(
        st.one_of(st.integers(), st.sampled_from([*NAMES, "x", None, 0.5])),
        lambda inner: st.lists(st.one_of(inner, st.sampled_from(sorted(OPERATIONS))), max_size=4),
    )
)
def test_any_json_is_read_or_refused(text: Any) -> None:
    try:
        found = dim_from_json(text, KNOWN)
    except ValueError:
        return
    assert isinstance(found, (int, Size)) and symbols(found) <= KNOWN
