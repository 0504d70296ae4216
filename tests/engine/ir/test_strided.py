"""Values followed through views, transposes and slices to where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.sizes import evaluate
from engine.ir.strided import trace
from engine.passes import canonicalise
from tests.engine.small_models import graph_of, random_feeds

CASES = {
    "merged and parted again": (
        """(float[B, 5, 12] x) => (float[] y) <int64[4] heads = {-1, 5, 3, 4},
        int64[3] flat = {-1, 5, 4}, int64[4] apart = {-1, 3, 4, 5}> {
            a = Reshape (x, heads) b = Transpose <perm = [0, 2, 1, 3]> (a) c = Reshape (b, flat)
            d = Transpose <perm = [0, 2, 1]> (c) y = Reshape (d, apart) }""",
        "x",
    ),
    "sequence first": (
        """(float[5, B, 24] x) => (float[] y) <int64[5] parts = {1, 5, -1, 3, 8},
        int64[4] gone = {3, 5, -1, 8}, int64[3] flat = {5, -1, 4}, int64[4] apart = {-1, 2, 5, 4},
        int64 second = {1}> {
            a = Reshape (x, parts) b = Transpose <perm = [3, 1, 2, 0, 4]> (a)
            c = Reshape (b, gone) d = Gather (c, second) e = Reshape (d, flat)
            f = Transpose <perm = [1, 0, 2]> (e) y = Reshape (f, apart) }""",
        "x",
    ),
    "parts and slices": (
        """(float[B, 6, 8] x) => (float[] y) <int64[2] at = {2, 1}, int64[2] end = {5, -1},
        int64[2] axes = {1, 2}> {
            a, b = Split <axis = 1, num_outputs = 2> (x) c = Concat <axis = 1> (x, x)
            d = Slice (x, at, end, axes) y = Transpose <perm = [2, 0, 1]> (d) }""",
        "x",
    ),
    "a view that needs memory": (
        """(float[B, 6, 8] x) => (float[] y) <int64[2] flat = {-1, 16}> {
            a = Transpose <perm = [0, 2, 1]> (x) b = Reshape (a, flat)
            y = Transpose <perm = [1, 0]> (b) }""",
        "",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_read_finds_what_the_value_holds(name: str) -> None:
    """The elements at the offset and strides are those of the value."""
    body, root = CASES[name]
    graph = graph_of(body, opset=21)
    canonicalise(graph)
    found = trace(graph.outputs[0])
    assert (found.root.name == root) if root else (found.root.name != "x")
    feeds = random_feeds(graph, B=2)
    graph.outputs = [graph.outputs[0], found.root]
    graph.output_names = ["y", "root"]
    held = interpret(graph, feeds)
    shape = [evaluate(dim, {"B": 2}) for dim in found.shape]
    steps = [evaluate(step, {"B": 2}) * 4 for step in found.strides]
    flat = np.ascontiguousarray(held["root"]).reshape(-1)[evaluate(found.offset, {"B": 2}) :]
    read = np.lib.stride_tricks.as_strided(flat, shape, steps)
    np.testing.assert_array_equal(read, held["y"])
