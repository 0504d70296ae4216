"""Regions move into the one region that reads them, and what they mean stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.ir.text import graph_text
from engine.ir.verify import verify
from engine.ops.region import Region
from engine.passes import canonicalise
from engine.passes.absorb_reads import MOST_PARTS, absorb_reads
from engine.passes.make_regions import make_regions
from engine.passes.move_data import concat_region, move_data
from engine.passes.remove_dead import remove_dead
from tests.engine.small_models import assert_close, check, graph_of, random_feeds

RNG = np.random.default_rng(11)
SIZES = ({"N": 1, "L": 2}, {"N": 4, "L": 3})


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS: dict[str, np.ndarray] = {
    "table": array(9, 8),
    "places": array(1, 5, 8),
    "gain": array(8),
    "token": array(1, 1, 8),
    "row": array(1, 1, 8),
}
LINES = "(int64[N, 5] ids, int64[N, 5] more, float[N, 5, 8] x, float[N, 4, 8] z, float[N, L, 8] w)"

#: Graphs in which everything becomes one region, by the regions and copies before.
ONE = {
    "an embedding look-up and the normalisation behind it": (
        "a = Gather (table, ids) b = Add (a, places) y = LayerNormalization <axis = -1> (b, gain)",
        2,
    ),
    "two look-ups": (
        """a = Gather (table, ids) b = Gather (table, more) c = Add (a, b)
        y = Softmax <axis = -1> (c)""",
        3,
    ),
    "a slice": (
        "a = Slice (x, from, to, axes) b = Add (a, z) y = Softmax <axis = -1> (b)",
        2,
    ),
    "rows in another order": ("a = Transpose <perm = [1, 0, 2]> (x) y = Sigmoid (a)", 2),
    "a view between": ("a = Gather (table, ids) b = Unsqueeze (a, axes) y = Tanh (b)", 2),
    "two parts beside each other": (
        "a = Concat <axis = 1> (x, z) y = LayerNormalization <axis = -1> (a, gain)",
        2,
    ),
    "a part of any length at the end": ("a = Concat <axis = 1> (x, w) y = Exp (a)", 2),
    "a token in front, once for each image": (
        """n = Shape <end = 1> (z) s = Concat <axis = 0> (n, ones) t = Expand (token, s)
        a = Concat <axis = 1> (t, z) b = Add (a, places) y = Softmax <axis = -1> (b)""",
        3,
    ),
    "a copy that is read as one row for all": (
        """n = Shape <end = 1> (x) s = Concat <axis = 0> (n, ones) t = Expand (row, s)
        y = Mul (x, t)""",
        2,
    ),
}
#: Graphs in which nothing may move.
APART = {
    "a value read twice": (
        "a = Gather (table, ids) b = Unsqueeze (a, axes) y = Tanh (b) q = Exp (a)"
    ),
    "a result of the model": "q = Gather (table, ids) b = Unsqueeze (q, axes) y = Tanh (b)",
    "a reduction": "a = Softmax <axis = -1> (x) b = Unsqueeze (a, axes) y = Exp (b)",
    "a read in another order": "a = Sin (x) y = Transpose <perm = [1, 0, 2]> (a)",
    "indices of a look-up": "a = Mod (ids, few) b = Unsqueeze (a, axes) y = Gather (table, b)",
    "a part of what is computed": "a = Exp (x) y = Slice (a, from, to, axes)",
}
CONSTANTS = """<int64[1] from = {1}, int64[1] to = {5}, int64[1] axes = {1}, int64[2] ones = {1, 1},
    int64 few = {4}>"""


def before(lines: str) -> Graph:
    """A graph as the pass finds it: regions made, data movement too."""
    outputs = ", ".join(f"float[] {name}" for name in ("y", "q") if f"{name} = " in lines)
    given = {name: item for name, item in WEIGHTS.items() if f"{name}" in lines}
    graph = graph_of(f"{LINES} => ({outputs}) {CONSTANTS} {{ {lines} }}", weights=given)
    canonicalise(graph)
    make_regions(graph)
    move_data(graph)
    remove_dead(graph)
    return graph


def feeds_of(graph: Graph, sizes: dict[str, int]) -> dict[str, Any]:
    return random_feeds(graph, **sizes)


def layers(graph: Graph) -> list[str]:
    return [node.kind for node in graph.nodes if node.kind != "View"]


def absorbed(graph: Graph) -> bool:
    """Absorb until nothing is left to do, verified after each round, meaning what it meant."""
    samples = [feeds_of(graph, sizes) for sizes in SIZES]
    expected = [interpret(graph, feeds) for feeds in samples]
    changed = False
    for _ in range(10):
        text = graph_text(graph)
        if not absorb_reads(graph):
            assert graph_text(graph) == text
            break
        changed = True
        verify(graph)
        for feeds, wanted in zip(samples, expected):
            assert_close(interpret(graph, feeds), wanted)
    else:
        raise AssertionError("the pass never says that it is done")
    return changed


@pytest.mark.parametrize("name", ONE)
def test_what_only_one_region_reads_becomes_part_of_it(name: str) -> None:
    lines, count = ONE[name]
    graph = before(lines)
    assert len(layers(graph)) == count
    assert absorbed(graph)
    remove_dead(graph)
    assert layers(graph) == ["Region"]
    assert any("region, region => region" in item.rule for item in graph.decisions)


@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_computed_at_one_point_stays(name: str) -> None:
    graph = before(APART[name])
    assert len(layers(graph)) >= 2
    assert not absorbed(graph)


def test_a_concatenation_of_many_parts_is_copied() -> None:
    for parts in (MOST_PARTS, MOST_PARTS + 1):
        names = ", ".join(["x"] * parts)
        graph = before(f"a = Concat <axis = 1> ({names}) y = Exp (a)")
        assert absorbed(graph) == (parts <= MOST_PARTS)


@pytest.mark.parametrize("name", ["two look-ups", "a token in front, once for each image"])
def test_engines_compute_the_same(name: str) -> None:
    lines, _ = ONE[name]
    given = {key: item for key, item in WEIGHTS.items() if key in lines}
    ids = np.array([[0, 8, 3, 2, 2], [7, 1, 0, 4, 5]])
    feeds = {
        "ids": ids,
        "more": ids[::-1].copy(),
        "x": array(2, 5, 8),
        "z": array(2, 4, 8),
        "w": array(2, 3, 8),
    }
    check(f"{LINES} => (float[] y) {CONSTANTS} {{ {lines} }}", feeds, weights=given)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_concatenation_is_a_region_of_bounded_loads(axis: int) -> None:
    shapes = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    shapes[0][axis], shapes[2][axis] = 1, 6
    inputs = ", ".join(f"float{shape} x{i}" for i, shape in enumerate(shapes))
    graph = graph_of(f"({inputs}) => (float[] y) {{ y = Concat <axis = {axis}> (x0, x1, x2) }}")
    region = concat_region(graph.nodes[0])
    assert isinstance(region, Region) and len(region.loads) == 3
    arrays = [array(*shape) for shape in shapes]
    found = region.meaning(*arrays)
    found = found[0] if isinstance(found, (tuple, list)) else found
    np.testing.assert_array_equal(found, np.concatenate(arrays, axis))


def test_where_a_part_begins_must_be_known_when_it_is_built() -> None:
    for order, fits in (("x, w", True), ("w, x", False)):
        line = f"y = Concat <axis = 1> ({order})"
        graph = graph_of(f"(float[N, 5, 8] x, float[N, L, 8] w) => (float[] y) {{ {line} }}")
        assert (concat_region(graph.nodes[0]) is not None) == fits
