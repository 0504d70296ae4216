from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import PlanCorruptError
from engine.ir.sizes import Dim, ceildiv, dim_to_json, evaluate, floordiv, maximum, minimum, modulo
from engine.ir.sizes import symbol as named
from engine.plan.expressions import interval, read_dim

KNOWN = frozenset({"n", "m"})
dims = st.recursive(
    st.one_of(st.integers(-50, 50), st.sampled_from([named("n"), named("m")])),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, inner).map(lambda pair: minimum(*pair)),
        st.tuples(inner, inner).map(lambda pair: maximum(*pair)),
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: floordiv(*pair)),
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: ceildiv(*pair)),
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: modulo(*pair)),
        st.tuples(inner, st.just(named("n") + 1)).map(lambda pair: floordiv(*pair)),
        st.tuples(inner, st.just(named("m") + 1)).map(lambda pair: ceildiv(*pair)),
        st.tuples(inner, st.just(named("m") + 1)).map(lambda pair: modulo(*pair)),
    ),
    max_leaves=6,
)


@given(dims, st.integers(0, 40), st.integers(0, 40), st.data())
def test_an_interval_holds_every_value(dim: Dim, n: int, m: int, data: Any) -> None:
    ranges = {
        "n": (data.draw(st.integers(0, n)), data.draw(st.integers(n, 60))),
        "m": (data.draw(st.integers(0, m)), data.draw(st.sampled_from([60, float("inf")]))),
    }
    least, most = interval(dim, ranges)
    assert least <= evaluate(dim, {"n": n, "m": m}) <= most


@given(dims)
def test_what_is_written_is_read_back_or_refused_as_too_long(dim: Dim) -> None:
    written = json.loads(json.dumps(dim_to_json(dim)))
    assert read_dim(written, "here", KNOWN) == dim


def doubled(operator: str, rounds: int) -> Any:
    found: Any = ["+", "n", ["*", 3, "m"]]
    for _ in range(rounds):
        found = [operator, found, found]
    return found


def chain(operator: str, length: int) -> Any:
    found: Any = "n"
    for index in range(length):
        found = [operator, ["+", found, index], ["+", "m", index]]
    return found


@pytest.mark.parametrize("operator", ["+", "*", "max", "min", "floordiv", "mod", "ceildiv"])
@pytest.mark.parametrize("build", [doubled, chain])
@pytest.mark.parametrize("count", [3, 6, 12, 15, 60])
def test_hostile_expressions_are_read_or_refused_at_once(
    operator: str, build: Any, count: int
) -> None:
    written = build(operator, count)
    started = time.process_time()
    with contextlib.suppress(PlanCorruptError):
        read_dim(written, "here", KNOWN)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "value", [True, None, 1.5, "o", [], ["+", 1], ["^", 1, 2], {"a": 1}, 1 << 49, ["mod", "n", 0]]
)
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(PlanCorruptError, match="here"):
        read_dim(value, "here", KNOWN)
