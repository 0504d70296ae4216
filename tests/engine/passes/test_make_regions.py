"""Clusters of row-wise operators mean what the operators mean one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.passes import run_pipeline
from tests.engine.small_models import assert_close, graph_of, random_feeds

#: Reductions over a row of one element, whose results then meet longer rows.
OF_ONE = {
    "sum": "s = ReduceSum (x, last)",
    "sum of squares": "s = ReduceSumSquare (x, last)",
    "product": "s = ReduceProd (x, last)",
    "length": "s = ReduceL2 (x, last)",
    "softmax": "s = Softmax <axis = -1> (x)",
    "logarithm of softmax": "s = LogSoftmax <axis = -1> (x)",
    "normalisation": "s = LayerNormalization <axis = -1> (x, one, one)",
}


def same(text: str, **sizes: int) -> Any:
    """The optimised graph, after a comparison with the one as it was read."""
    graph, plain = graph_of(text), graph_of(text)
    run_pipeline(graph, checked=True)
    feeds = random_feeds(plain, **sizes)
    assert_close(interpret(graph, feeds), interpret(plain, feeds))
    return graph


@pytest.mark.parametrize("name", OF_ONE)
def test_a_reduction_of_one_element_is_not_one_of_the_row_that_it_meets(name: str) -> None:
    same(
        f"""(float[N, 1] x, float[N, 5] y) => (float[N, 5] z)
        <int64[1] last = {{1}}, float[1] one = {{1}}> {{ {OF_ONE[name]} z = Mul (s, y) }}"""
    )


def test_a_sum_of_sums_is_a_sum_of_one_element() -> None:
    graph = same(
        """(float[N, 5] x) => (float[N, 5] z) <int64[1] last = {1}> {
            s = ReduceSum (x, last) t = ReduceSum (s, last) z = Sub (x, t)
        }"""
    )
    assert all(node.kind == "Region" for node in graph.nodes)


def test_values_per_row_still_join_the_row() -> None:
    graph = same(
        """(float[N, 5] x, float[N, 1] y) => (float[N, 5] z) <int64[1] last = {1}> {
            e = Exp (y) s = ReduceSum (x, last) t = Mul (s, e) z = Sub (x, t)
        }"""
    )
    assert [node.kind for node in graph.nodes] == ["Region"]


def test_a_reduction_of_nothing_has_a_result() -> None:
    text = """(float[3, 0] x) => (float[3, 1] z, float[3, 1] w) <int64[1] last = {1}> {
        p = ReduceProd (x, last) z = Neg (p) w = ReduceMax (x, last)
    }"""
    graph = same(text)
    found = interpret(graph, {"x": np.zeros((3, 0), np.float32)})
    assert found["z"].tolist() == [[-1.0]] * 3 and np.isneginf(found["w"]).all()


def test_a_value_per_row_that_no_row_has_to_have_leaves_as_a_region_of_its_own() -> None:
    """Where M is 0 the joined region has no points, and the value per row would never be made."""
    text = """(float[N, 1] x, float[N, M] y) => (float[N, 1] p, float[N, M] q) {
        p = Exp (x) q = Add (p, y)
    }"""
    for size in (0, 4):
        same(text, M=size)
    inner = same(text.replace("float[N, 1] p, ", ""), M=4)
    assert [node.kind for node in inner.nodes] == ["Region"]
