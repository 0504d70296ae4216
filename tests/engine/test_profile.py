"""Profiles: what a shape may say, and what is refused by the name of the axis."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine.errors import InvalidModelError, ModelError, OptionError
from engine.ir.sizes import symbol
from engine.profile import OPEN_GREATEST, parse_shapes, profile_symbols
from tests.engine.small_models import built, graph_of, model

BODY = "(float[N, 4] x, float[M] z) => (float[] y) { y = Neg (x) }"


def test_an_axis_is_a_size_a_name_or_a_range() -> None:
    found = parse_shapes({"x": ("batch=1..8..32", 3, "height", "4..6", "w=7")})
    batch, height, third = symbol("batch"), symbol("height"), symbol("x_3")
    assert found.shapes == {"x": (batch, 3, height, third, 7)}
    assert found.ranges == {"batch": (1, 8, 32), "x_3": (4, 6, 6)}
    assert parse_shapes(None).to_json() == {"shapes": {}, "ranges": {}}


@pytest.mark.parametrize(
    "axis", ["", "1..", "8..4", "3..2..9", "a=b", "=4", "1..2..3..4", "-1", "a b", "0..0", "1.5"]
)
def test_an_axis_that_means_nothing_is_named(axis: str) -> None:
    with pytest.raises(OptionError, match="shape of 'x', axis 1"):
        parse_shapes({"x": (2, axis)})


@pytest.mark.parametrize("axis", [-1, 1 << 40, True])
def test_a_number_that_is_no_size_is_named(axis: Any) -> None:
    with pytest.raises(OptionError, match="shape of 'x', axis 0"):
        parse_shapes({"x": (axis,)})


def test_one_name_has_one_range() -> None:
    parse_shapes({"x": ("n=1..4",), "z": ("n=1..4",), "q": ("n",)})
    with pytest.raises(OptionError, match=r"'z', axis 0: n has the range \(1, 4, 4\) elsewhere"):
        parse_shapes({"x": ("n=1..4",), "z": ("n=1..5",)})


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_shapes({"x": (text,)})
    except OptionError:
        return
    assert len(found.shapes["x"]) == 1
    assert all(low <= usual <= high for low, usual, high in found.ranges.values())


def test_symbols_take_their_ranges_and_sources_from_inputs() -> None:
    profile = parse_shapes({"x": ("N=2..3..9", 4)})
    first, second = profile_symbols(graph_of(BODY), profile)
    assert (first.name, first.least, first.usual, first.greatest) == ("N", 2, (3,), 9)
    assert first.source == ("input", "x", 0)
    assert (second.name, second.least, second.greatest) == ("M", 0, OPEN_GREATEST)


def test_a_range_for_nothing_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="no input 'q'"):
        engine.build(model(BODY), shapes={"q": ("K=1..2",)}, level=0)
    with pytest.raises(ModelError, match="2 axes in the model, 3 were given"):
        engine.build(model(BODY), shapes={"x": ("N=1..2", 4, 4)}, level=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cuda.sm90"}, "no target 'cuda.sm90'"),
        ({"precision": "int3"}, "precision is 'int3'"),
        ({"level": 6}, "level is 6"),
        ({"level": -1}, "level is -1"),
        ({"tactics": ("c", "magic")}, "no tactic source 'magic'"),
    ],
)
def test_an_option_that_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        engine.build(model(BODY), **options)


def test_what_is_not_given_a_range_serves_any_size_up_to_the_default() -> None:
    import numpy as np

    net = built(model(BODY))
    assert net.profile == {"N": (0, (1,), OPEN_GREATEST), "M": (0, (1,), OPEN_GREATEST)}
    for n in (0, 1, 1000):
        found = net({"x": np.ones((n, 4), np.float32), "z": np.ones(3, np.float32)})
        assert found["y"].shape == (n, 4)
