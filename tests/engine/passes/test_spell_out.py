"""Operators that are a few others in a row: they mean the same, and reach fast layers."""

from __future__ import annotations

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.passes import run_pipeline
from tests.engine.small_models import assert_close, check, graph_of, random_feeds

RNG = np.random.default_rng(4)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def kinds(text: str, opset: int = 21, **weights: np.ndarray) -> list[str]:
    """What layers a model has, after a comparison with what it means."""
    graph, plain = (graph_of(text, opset=opset, weights=weights) for _ in range(2))
    run_pipeline(graph, checked=True)
    for sizes in ({"N": 2, "S": 5}, {"N": 1, "S": 1}):
        feeds = random_feeds(plain, **sizes)
        assert_close(interpret(graph, feeds), interpret(plain, feeds))
    return [node.kind for node in graph.nodes if node.kind not in ("View", "Transpose")]


EQUATIONS = {
    "bij,bjk->bik": ("N, S, 8", "N, 8, 4"),
    "bqhd,bkhd->bhqk": ("N, S, 4, 8", "N, 6, 4, 8"),
    "bhqk,bkhd->bqhd": ("N, 4, 5, 6", "N, 6, 4, 8"),
    "bld,dhk->bhlk": ("N, S, 6", "6, 2, 4"),
    "ij,kj->ki": ("N, 8", "5, 8"),
    "...ij,...jk": ("N, 3, S, 8", "N, 3, 8, 4"),
    "bi,bj->bij": ("N, 3", "N, 4"),
    "bi,bi->b": ("N, 7", "N, 7"),
    "nchw,nkhw->nck": ("N, 3, 4, 5", "N, 6, 4, 5"),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_sums_of_products(equation: str) -> None:
    first, second = EQUATIONS[equation]
    text = (
        f"(float[{first}] x, float[{second}] z) => (float[] y) {{"
        f'y = Einsum <equation = "{equation}"> (x, z) }}'
    )
    assert "Einsum" not in kinds(text)


def test_sums_that_are_no_products_stay() -> None:
    for equation in ("ii,ij->j", "ij,jk->k", "ij->i"):
        more = ", float[4, 4] z" if "," in equation else ""
        text = (
            f"(float[4, 4] x{more}) => (float[] y) {{"
            f'y = Einsum <equation = "{equation}"> (x{", z" if more else ""}) }}'
        )
        assert kinds(text) == ["Einsum"]


def test_an_equation_that_only_turns_is_a_transpose() -> None:
    text = '(float[N, 3, S] x) => (float[] y) { y = Einsum <equation = "abc->cab"> (x) }'
    assert kinds(text) == []


@pytest.mark.parametrize("opset", [18, 21])
def test_norms_of_groups(opset: int) -> None:
    text = """(float[N, 12, 3, 5] x) => (float[] y) {
        n = GroupNormalization <num_groups = 4> (x, s, b) e = Sigmoid (n) y = Mul (n, e) }"""
    count = 12 if opset == 21 else 4
    assert kinds(text, opset, s=weight(count), b=weight(count)) == ["Region", "Region"]
    check(text, sizes={"N": 2}, opset=opset, weights={"s": weight(count), "b": weight(count)})


@pytest.mark.parametrize("name", ["Average", "Max"])
def test_pools_of_everything_over_open_sizes(name: str) -> None:
    for shape in ("N, 3, S", "N, 3, S, S", "N, 3, 4, 5, 2"):
        text = f"(float[{shape}] x) => (float[] y) {{ y = Global{name}Pool (x) }}"
        assert kinds(text) == ["Region"]
    check(
        f"(float[N, 3, S, S] x) => (float[] y) {{ y = Global{name}Pool (x) }}",
        sizes={"N": 2, "S": 5},
    )


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("name", ["Sum", "Mean", "Max", "LogSumExp"])
def test_reductions_over_axes_that_lie_apart(name: str, keep: int) -> None:
    text = (
        "(float[N, 4, S, 3] x) => (float[] y) {"
        f"y = Reduce{name} <axes = [0, 2], keepdims = {keep}> (x) }}"
    )
    found = kinds(text, 11)
    assert found == (["Region"] if name != "LogSumExp" else ["ReduceLogSumExp"])
    if name == "Mean":
        check(text, sizes={"N": 2, "S": 5}, opset=11)


@pytest.mark.parametrize("p", [1, 2])
def test_rows_of_norm_one(p: int) -> None:
    text = f"(float[N, S] x) => (float[] y) {{ y = LpNormalization <p = {p}> (x) }}"
    assert kinds(text) == ["Region"]
    zeros = np.array([[1, -2, 3], [0, 0, 0]], np.float32)
    check(text, {"x": zeros})
