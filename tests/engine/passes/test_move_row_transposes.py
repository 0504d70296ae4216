"""Transposes of rows move through products of rows, towards what reads through strides."""

from __future__ import annotations

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.ir.verify import verify
from engine.passes import canonicalise
from engine.passes.move_row_transposes import move_row_transposes
from tests.engine.small_models import assert_close, graph_of, random_feeds

RNG = np.random.default_rng(9)
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {
        "w": (8, 12),
        "v": (12, 8),
        "b": (12,),
        "c": (8,),
        "whole": (5, 1, 12),
    }.items()
}
CONSTANTS = """<int64[2] flat = {-1, 12}, int64[3] apart = {5, -1, 8}, int64[2] eight = {-1, 8},
    int64[3] other = {-1, 5, 8}>"""

#: Lines, and where the last transpose ends up: the kinds of all nodes but views.
MOVED = {
    "behind a product": (
        "t = Transpose <perm = [1, 0, 2]> (x) y = MatMul (t, w)",
        ["MatMul", "Transpose"],
    ),
    "behind a product and its bias": (
        "t = Transpose <perm = [1, 0, 2]> (x) a = MatMul (t, w) y = Add (a, b)",
        ["MatMul", "Add", "Transpose"],
    ),
    "behind a bias given first": (
        "t = Transpose <perm = [1, 0, 2]> (x) a = MatMul (t, w) y = Add (b, a)",
        ["MatMul", "Add", "Transpose"],
    ),
    "before a product of flattened rows": (
        """u = Tanh (z) f = Reshape (u, flat) g = Gemm (f, v, c) h = Reshape (g, apart)
        y = Transpose <perm = [1, 0, 2]> (h)""",
        ["Tanh", "Transpose", "Gemm"],
    ),
    "before a product and its bias": (
        """u = Tanh (z) f = Reshape (u, flat) g = MatMul (f, v) i = Add (c, g)
        h = Reshape (i, apart) y = Transpose <perm = [1, 0, 2]> (h)""",
        ["Tanh", "Transpose", "MatMul", "Add"],
    ),
}
STAY = {
    "a transpose of the last axis": "t = Transpose <perm = [0, 2, 1]> (q) y = MatMul (t, w)",
    "a transpose that two read": (
        """t = Transpose <perm = [1, 0, 2]> (x) a = MatMul (t, w) d = Exp (t) e = ReduceSum (d)
        y = Mul (a, e)"""
    ),
    "a product with something computed": (
        "t = Transpose <perm = [1, 0, 2]> (x) e = Exp (matrix) y = MatMul (t, e)"
    ),
    "a matrix on the left": "t = Transpose <perm = [1, 0, 2]> (last) y = MatMul (v, t)",
    "an operand of every row": (
        "t = Transpose <perm = [1, 0, 2]> (x) a = Tanh (t) y = Add (a, other_rows)"
    ),
    "rows in an order of their own": (
        """u = Tanh (z) f = Reshape (u, flat) g = Gemm (f, v, c) h = Reshape (g, other)
        y = Transpose <perm = [1, 0, 2]> (h)"""
    ),
    "a product of the transpose of a matrix": (
        """u = Tanh (z) f = Reshape (u, flat) k = Transpose (f) g = Gemm <transA = 1> (k, v, c)
        h = Reshape (g, apart) e = Exp (h) y = Transpose <perm = [1, 0, 2]> (e)"""
    ),
}
INPUTS = """(float[N, 5, 8] x, float[5, N, 12] z, float[N, 8, 8] q, float[5, N, 8] other_rows,
    float[8, 12] matrix, float[8, 8, N] last)"""


def graph_with(lines: str) -> Graph:
    given = {name: item for name, item in WEIGHTS.items() if name in lines}
    graph = graph_of(f"{INPUTS} => (float[] y) {CONSTANTS} {{ {lines} }}", weights=given)
    canonicalise(graph)
    return graph


def moved(graph: Graph) -> bool:
    samples = [random_feeds(graph, N=n) for n in (1, 3, 8)]
    expected = [interpret(graph, feeds) for feeds in samples]
    changed = False
    for _ in range(10):
        if not move_row_transposes(graph):
            break
        changed = True
        verify(graph)
        for feeds, wanted in zip(samples, expected):
            assert_close(interpret(graph, feeds), wanted)
    else:
        raise AssertionError("the pass never says that it is done")
    return changed


@pytest.mark.parametrize("name", MOVED)
def test_transposes_of_rows_move(name: str) -> None:
    lines, kinds = MOVED[name]
    graph = graph_with(lines)
    assert moved(graph)
    assert [node.kind for node in graph.nodes if node.kind != "View"] == kinds


@pytest.mark.parametrize("name", STAY)
def test_other_transposes_stay(name: str) -> None:
    assert not moved(graph_with(STAY[name]))
