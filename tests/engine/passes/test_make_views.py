"""Transposes that undo each other over views, and look-ups of everything in order, are views."""

from __future__ import annotations

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.ir.verify import verify
from engine.passes import canonicalise
from engine.passes.make_views import make_views
from engine.passes.remove_dead import remove_dead
from tests.engine.small_models import assert_close, graph_of, random_feeds

CONSTANTS = """<int64[4] heads = {-1, 5, 2, 4}, int64[3] joined = {5, -1, 8},
    int64[4] parted = {5, -1, 2, 4}, int64[3] halves = {5, -1, 4}, int64[3] rows = {-1, 2, 20},
    int64[1] zero = {0}>"""
RESTORED = {
    "heads joined in between": """a = Reshape (x, heads) b = Transpose <perm = [1, 0, 2, 3]> (a)
        c = Reshape (b, joined) y = Transpose <perm = [1, 0, 2]> (c)""",
    "heads parted in between": """a = Transpose <perm = [1, 0, 2]> (x) b = Reshape (a, parted)
        y = Transpose <perm = [1, 0, 2, 3]> (b)""",
    "through a unit axis": """a = Reshape (x, heads) b = Transpose <perm = [1, 2, 0, 3]> (a)
        u = Unsqueeze (b, zero) y = Transpose <perm = [0, 3, 1, 2, 4]> (u)""",
}
KEPT = {
    "one to another order": """a = Transpose <perm = [1, 0, 2]> (x) b = Reshape (a, parted)
        y = Transpose <perm = [1, 2, 0, 3]> (b)""",
    "one of what was merged for good": """a = Transpose <perm = [0, 2, 1]> (x)
        b = Reshape (a, rows) y = Transpose <perm = [0, 2, 1]> (b)""",
    "one of half": """a = Reshape (x, heads) s, t = Split <axis = 3, num_outputs = 2> (a)
        b = Transpose <perm = [1, 0, 2, 3]> (s) c = Reshape (b, halves)
        y = Transpose <perm = [1, 0, 2]> (c)""",
}


def kept(graph: Graph) -> list[str]:
    """Run the pass until it has nothing to do; the meaning stays. Kinds of nodes without views."""
    samples = [random_feeds(graph, N=n) for n in (1, 4)]
    expected = [interpret(graph, feeds) for feeds in samples]
    for _ in range(10):
        changed = make_views(graph)
        remove_dead(graph)
        verify(graph)
        for feeds, wanted in zip(samples, expected):
            assert_close(interpret(graph, feeds), wanted)
        if not changed:
            return [node.kind for node in graph.nodes if node.kind != "View"]
    raise AssertionError("the pass never says that it is done")


def graph_with(lines: str) -> Graph:
    graph = graph_of(f"(float[N, 5, 8] x) => (float[] y) {CONSTANTS} {{ {lines} }}")
    canonicalise(graph)
    return graph


@pytest.mark.parametrize("name", RESTORED)
def test_what_ends_in_memory_order_is_a_view(name: str) -> None:
    assert kept(graph_with(RESTORED[name])) == []


@pytest.mark.parametrize("name", KEPT)
def test_what_does_not_stays_a_transpose(name: str) -> None:
    assert "Transpose" in kept(graph_with(KEPT[name]))


def lookup(places: np.ndarray, shape: str = "float[2, 3, N] x") -> Graph:
    return graph_of(f"({shape}) => (float[] y) {{ y = GatherND (x, at) }}", weights={"at": places})


ALL = np.stack(np.meshgrid(np.arange(2), np.arange(3), indexing="ij"), -1)


@pytest.mark.parametrize(
    "places",
    [ALL, ALL.reshape(6, 2), ALL.reshape(1, 6, 1, 2), ALL - [2, 3], np.arange(2)[:, None]],
    ids=["both axes", "a row", "more axes", "from the end", "one axis"],
)
def test_a_look_up_of_everything_in_order_is_a_view(places: np.ndarray) -> None:
    graph = lookup(places)
    assert kept(graph) == []


@pytest.mark.parametrize(
    "places",
    [ALL[::-1], ALL[:1], np.concatenate([ALL, ALL]), ALL.transpose(1, 0, 2), np.array([[0]])],
    ids=["backwards", "a part", "twice", "columns first", "one row"],
)
def test_any_other_look_up_stays(places: np.ndarray) -> None:
    assert kept(lookup(np.ascontiguousarray(places))) == ["GatherND"]


def test_a_look_up_along_an_axis_of_any_length_stays() -> None:
    graph = lookup(np.arange(3)[:, None], "float[N, 3] x")
    assert not make_views(graph)


def test_a_look_up_for_each_image_stays() -> None:
    graph = graph_of(
        "(float[2, 3] x) => (float[] y) { y = GatherND <batch_dims = 1> (x, at) }",
        weights={"at": np.array([[[0], [1], [2]], [[0], [1], [2]]])},
    )
    assert not make_views(graph)
