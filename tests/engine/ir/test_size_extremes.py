"""Minimum and maximum of sizes simplify where that is certain, and never change a value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.ir.sizes import Dim, evaluate, maximum, minimum, symbol

n, m = symbol("n"), symbol("m")
LEAVES = st.sampled_from([0, 5, n, m, n + 1, n * 2])
NESTS = st.recursive(
    LEAVES.map(lambda dim: (dim, lambda a, b: evaluate(dim, {"n": a, "m": b}))),
    lambda inner: st.tuples(st.booleans(), inner, inner).map(lambda parts: nest(*parts)),
    max_leaves=6,
)


def nest(least: bool, left: tuple, right: tuple) -> tuple:
    """A minimum or maximum, as a size and as a function of n and m."""
    dim = minimum(left[0], right[0]) if least else maximum(left[0], right[0])
    pick = min if least else max
    return dim, lambda a, b: pick(left[1](a, b), right[1](a, b))


@given(nested=NESTS, a=st.integers(0, 12), b=st.integers(0, 12))
def test_simplifying_keeps_the_value(nested: tuple, a: int, b: int) -> None:
    dim, function = nested
    assert evaluate(dim, {"n": a, "m": b}) == function(a, b)


def test_what_is_contained_is_absorbed() -> None:
    limited: Dim = minimum(n, 512)
    assert maximum(limited, n) == n
    assert maximum(n, maximum(n, m)) == maximum(m, n)
    assert minimum(maximum(n, m), m) == m
    assert minimum(limited, 512) == limited
    assert maximum(maximum(limited, n), n) == n
