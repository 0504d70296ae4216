"""Operators that cut, pad, repeat, pick or mask become regions that mean the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.passes import run_pipeline
from engine.passes.data_forms import DATA_FORMS, part_region
from engine.passes.turn_axes import TURNED_KINDS, turned_axes
from tests.engine.small_models import assert_close, check, graph_of, random_feeds

RNG = np.random.default_rng(5)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def same(text: str, feeds: dict[str, Any] | None = None, **weights: np.ndarray) -> list[str]:
    """The kinds of nodes of the optimised graph, after a comparison with the graph as read."""
    graph, plain = (graph_of(text, opset=17, weights=weights) for _ in range(2))
    run_pipeline(graph, checked=True)
    for size in (4, 9):
        given = {**random_feeds(plain, N=size), **(feeds or {})}
        assert_close(interpret(graph, given), interpret(plain, given))
    return kinds(graph)


def kinds(graph: Graph) -> list[str]:
    return [node.kind for node in graph.nodes if node.kind != "View"]


def test_a_part_is_read_where_it_begins() -> None:
    (x,) = graph_of("(float[N, 8] x) => (float[] y) { y = Relu (x) }").inputs
    region = part_region(x, 1, 3, 4)
    assert region is not None and region.loads[0].offset == 3
    array = RNG.random((2, 8)).astype(np.float32)
    np.testing.assert_array_equal(region.meaning(array), array[:, 3:7])


def test_pads_given_only_when_the_model_runs_stay() -> None:
    graph = graph_of("(float[4, 8] x, int64[4] p) => (float[] y) { y = Pad (x, p) }", opset=17)
    (node,) = graph.nodes
    assert DATA_FORMS["Pad"](node) is None and turned_axes(graph, node, (1, 0)) is None
    assert node.kind in TURNED_KINDS


PADS = {
    "on two axes": numbers(0, 0, 1, 2, 0, 0, 2, 1),
    "at one end": numbers(0, 3, 0, 0, 0, 0, 0, 0),
    "at the other end": numbers(0, 0, 0, 0, 0, 0, 0, 3),
}


@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding(mode: str, pads: str) -> None:
    text = f'(float[N, 5, 6, 7] x) => (float[] y) {{ y = Pad <mode = "{mode}"> (x, p) }}'
    assert same(text, p=PADS[pads]) == ["Region"]


def test_padding_that_cuts_and_fills() -> None:
    text = "(float[N, 8] x) => (float[] y) { y = Pad (x, p, v) }"
    fill = np.float32(-2.5)
    assert same(text, p=numbers(2, -3, -1, 4), v=fill) == ["Region"]
    assert same(text, p=numbers(-1, 3, 2, -4), v=fill) == ["Region"]


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_that_goes_round_more_than_once_or_over_open_sizes_keeps_its_meaning(
    mode: str,
) -> None:
    text = f'(float[N, 3] x) => (float[] y) {{ y = Pad <mode = "{mode}"> (x, p) }}'
    same(text, p=numbers(0, 7, 0, 2))
    same(text, p=numbers(2, 0, 3, 0))


def test_a_gate_of_two_halves_is_one_region() -> None:
    text = """(float[N, 64] x) => (float[] y) {
        a, b = Split <axis = 1> (x) s = Sigmoid (b) y = Mul (a, s) }"""
    assert same(text) == ["Region"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_of_unequal_sizes(axis: int) -> None:
    text = (
        f"(float[9, 9, 9] x) => (float[] a, float[] c) {{ a, b, c = Split <axis = {axis}> (x, p) }}"
    )
    assert same(text, p=numbers(2, 3, 4)) == ["Region", "Region"]


SLICES = {
    "a part": (1, 100, 0, 1),
    "the last ones": (-2, 100, 0, 1),
    "more from the end than there are": (-30, 100, 0, 2),
    "backwards": (-1, -(1 << 40), 0, -1),
    "backwards from before the axis": (-30, -(1 << 40), 0, -1),
    "backwards from beyond the axis": (100, 1, 0, -2),
    "another axis backwards": (3, -100, 1, -2),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_of_open_sizes(name: str) -> None:
    start, end, axis, step = SLICES[name]
    text = "(float[N, 6] x) => (float[] y) { y = Slice (x, a, b, c, d) }"
    given = {"a": numbers(start), "b": numbers(end), "c": numbers(axis), "d": numbers(step)}
    assert same(text, **given) == ["Region"]


def test_repeats() -> None:
    text = "(float[N, 3, 4] x) => (float[] y) { y = Tile (x, r) }"
    assert same(text, r=numbers(2, 1, 3)) == ["Region"]


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("diagonal", [-2, 0, 3])
def test_triangles(upper: int, diagonal: int) -> None:
    text = f"(float[N, 5, 7] x) => (float[] y) {{ y = Trilu <upper = {upper}> (x, k) }}"
    assert same(text, k=np.array(diagonal, np.int64)) == ["Region"]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vectors_with_one_element_on(axis: int) -> None:
    text = f"(int64[N, 3] x) => (float[] y) {{ y = OneHot <axis = {axis}> (x, d, v) }}"
    found = {"x": RNG.integers(-7, 8, (4, 3))}
    values = np.array([-1, 2], np.float32)
    graph, plain = (
        graph_of(text, opset=17, weights={"d": np.array(5, np.int64), "v": values})
        for _ in range(2)
    )
    run_pipeline(graph, checked=True)
    assert_close(interpret(graph, found), interpret(plain, found))
    assert kinds(graph) == ["Region"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_elements_by_index(axis: int) -> None:
    text = (
        "(float[4, 5, 6] x, int64[3, 4, 5] i) => (float[] y) {"
        f"y = GatherElements <axis = {axis}> (x, i) }}"
    )
    assert same(text, {"i": RNG.integers(-4, 4, (3, 4, 5))}) == ["Region"]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_to_pixels(mode: str) -> None:
    text = (
        "(float[N, 12, 3, 5] x) => (float[] y) {"
        f'y = DepthToSpace <blocksize = 2, mode = "{mode}"> (x) }}'
    )
    assert same(text) == ["Region"]


def test_pixels_to_channels() -> None:
    text = "(float[N, 3, 4, 6] x) => (float[] y) { y = SpaceToDepth <blocksize = 2> (x) }"
    assert same(text) == ["Region"]


def test_planes_of_mean_nothing_and_variance_one() -> None:
    text = "(float[N, 6, 5, 7] x) => (float[] y) { y = InstanceNormalization (x, s, b) }"
    assert same(text, s=weight(6), b=weight(6)) == ["Region"]


def test_parts_of_channels_stay_in_the_order_of_their_convolutions() -> None:
    text = """(float[N, 16, 8, 8] x) => (float[] y) {
        c = Conv (x, w) a, b = Split <axis = 1> (c) d = Conv <pads = [1, 1, 1, 1]> (b, v)
        g = Concat <axis = 1> (a, d) y = Conv (g, u) }"""
    found = same(text, w=weight(32, 16, 1, 1), v=weight(16, 16, 3, 3), u=weight(8, 32, 1, 1))
    assert found.count("Transpose") == 2


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pads_between_convolutions_stay_in_their_order(mode: str) -> None:
    text = f"""(float[N, 16, 8, 8] x) => (float[] y) {{
        c = Conv (x, w) r = Relu (c) p = Pad <mode = "{mode}"> (r, q) y = Conv (p, v) }}"""
    pads = numbers(0, 0, 2, 1, 0, 0, 1, 3)
    found = same(text, w=weight(16, 16, 1, 1), v=weight(16, 16, 3, 3), q=pads)
    assert found.count("Transpose") == 2 and "Pad" not in found


def test_slices_between_convolutions_stay_in_their_order() -> None:
    text = """(float[N, 16, 8, 8] x) => (float[] y) {
        c = Conv (x, w) a = Slice (c, from, to, axes) y = Conv (a, v) }"""
    given = {"from": numbers(3, 1), "to": numbers(9, 7), "axes": numbers(-3, 2)}
    found = same(text, w=weight(16, 16, 1, 1), v=weight(8, 6, 3, 3), **given)
    assert found.count("Transpose") == 2 and "Slice" not in found


COMPILED = {
    "reflected": ('y = Pad <mode = "reflect"> (x, p)', {"p": numbers(0, 0, 2, 1, 0, 0, 1, 2)}),
    "filled": ("y = Pad (x, p)", {"p": numbers(0, -1, 2, 1, 1, 3, -1, 2)}),
    "repeated": ("y = Tile (x, p)", {"p": numbers(1, 2, 1, 3)}),
    "a triangle": ("y = Trilu (x)", {}),
    "backwards": (
        "y = Slice (x, s, e, a, d)",
        {"s": numbers(-1), "e": numbers(-99), "a": numbers(0), "d": numbers(-1)},
    ),
    "pixels": ("y = DepthToSpace <blocksize = 2> (x)", {}),
    "channels": ("y = SpaceToDepth <blocksize = 2> (x)", {}),
    "planes": ("y = InstanceNormalization (x, s, b)", {"s": weight(4), "b": weight(4)}),
    "gates": ("a, b = Split <axis = 1> (x) s = Tanh (a) y = Mul (s, b)", {}),
}


@pytest.mark.parametrize("name", COMPILED)
def test_on_a_cpu_they_give_what_they_mean(name: str) -> None:
    body, weights = COMPILED[name]
    text = f"(float[N, 4, 6, 8] x) => (float[] y) {{ {body} }}"
    check(text, sizes={"N": 3}, opset=17, weights=weights)
