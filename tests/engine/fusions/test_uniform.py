"""Constants seen through broadcasts and arithmetic of open sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.fusions.uniform import constant_like, range_axis, unit_axes
from engine.ir.sizes import symbol
from engine.passes import canonicalise
from tests.engine.small_models import graph_of, random_feeds

#: y from x [B, 3]; s is [batch size, 4], w is [1, 4].
HEAD = """(float[B, 3] x) => (int64[] y) <int64[1, 4] w = {5, 0, 7, 1}, int64[1] four = {4},
    int64[1] one = {1}, int64[1] three = {3}, int64[1] last = {-1}, int64 two = {2}> {
        n = Shape <start = 0, end = 1> (x) s = Concat <axis = 0> (n, four) e = Expand (w, s)"""


@pytest.mark.parametrize(
    "body",
    [
        "y = Add (e, two)",
        "y = CumSum (e, last)",
        "d = Slice (e, one, three, one) y = Mul (d, d)",
        "y = Concat <axis = -1> (e, w2)",
        "y = Transpose <perm = [1, 0]> (e)",
        "u = Unsqueeze (e, one) y = Max (u, column)",
        "c = ConstantOfShape (s) d = Cast <to = 7> (c) y = Sub (e, d)",
        "t = Unsqueeze (e, one) u = Max (t, column) y = Trilu <upper = 0> (u)",
    ],
)
def test_what_broadcasts_to_the_value_is_found(body: str) -> None:
    if "w2" in body:
        body = "f = Expand (w, s) " + body.replace("w2", "f")
    weights = {"column": np.arange(4).reshape(1, 4, 1)} if "column" in body else {}
    graph = graph_of(f"{HEAD} {body} }}", weights=weights)
    canonicalise(graph)
    found = constant_like(graph.outputs[0])
    assert found is not None
    held = interpret(graph, random_feeds(graph, B=3))["y"]
    assert found.ndim == held.ndim and found.size < held.size
    np.testing.assert_array_equal(np.broadcast_to(found, held.shape), held)


@pytest.mark.parametrize(
    "body",
    [
        "z = Cast <to = 7> (x) y = Concat <axis = 1> (e, z)",  # depends on the input
        "y = Reshape (e, last)",  # the rows merge with the batch
        "y = Concat <axis = 0> (e, w)",  # along the axis of open size
        "y = CumSum (e, zero)",
    ],
)
def test_what_is_not_certain_is_not_said(body: str) -> None:
    weights = {"zero": np.array(0)} if "zero" in body else {}
    graph = graph_of(f"{HEAD} {body} }}", weights=weights)
    canonicalise(graph)
    assert constant_like(graph.outputs[0]) is None


def test_ranges_are_followed_through_views() -> None:
    body = """(float[B, 3] x) => (int64[] y) <int64 zero = {0}, int64 one = {1},
    int64[2] apart = {1, 2}, int64[3] more = {1, 4, 2}> {
        s = Shape (x) n = Gather (s, zero) r = Range (zero, n, one) u = Unsqueeze (r, apart)
        y = Expand (u, more) }"""
    graph = graph_of(body)
    canonicalise(graph)
    assert range_axis(graph.outputs[0]) == 0
    assert range_axis(graph.inputs[0]) is None


def test_views_that_only_add_or_drop_units() -> None:
    size: Any = symbol("B")
    assert unit_axes((size, 1, 4), (1, size, 4, 1)) == {1: 0, 2: 2}
    assert unit_axes((size, 4), (4, size)) is None
