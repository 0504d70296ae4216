"""Products between views are computed in the shape that is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.debug.interpret import interpret
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer
from engine.ir.sizes import Dim, symbol
from engine.ir.types import DType, TensorType
from engine.ir.verify import verify
from engine.ops.expression import call, load
from engine.ops.fused import FusedMatMul
from engine.ops.view import View
from engine.passes import run_pipeline
from engine.passes.lift_views import lift_views
from tests.engine.small_models import assert_close, check, graph_of, random_feeds

RNG = np.random.default_rng(3)
N, L = symbol("N"), symbol("L")
SUM, EXTRA = load(0, DType.FLOAT32), load(1, DType.FLOAT32)
Shape = tuple[Dim, ...]


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


class Builder:
    """A graph of products and views, as it is when the pass runs."""

    def __init__(self) -> None:
        self.graph = Graph("views")

    def input(self, name: str, shape: Shape) -> Value:
        value = self.graph.value(name, TensorType(DType.FLOAT32, shape))
        self.graph.inputs.append(value)
        return value

    def weight(self, *shape: int) -> Value:
        return self.graph.constant("w", array(*shape))

    def node(self, op: Any, *inputs: Value) -> Value:
        result = self.graph.value("v", TensorType(DType.FLOAT32, None))
        name = self.graph.fresh_name(op.name)
        self.graph.append(Node(op, list(inputs), [result], name=name))
        infer(self.graph)
        return result

    def finished(self, *outputs: Value) -> Graph:
        self.graph.outputs = list(outputs)
        self.graph.output_names = [f"y{index}" for index in range(len(outputs))]
        infer(self.graph)
        verify(self.graph)
        return self.graph


def product(*kinds: str) -> FusedMatMul:
    return FusedMatMul(epilogue=call("add", SUM, EXTRA) if kinds else SUM, kinds=kinds)


def flattened(b: Builder) -> Value:
    return b.node(View((N * L, 8)), b.input("x", (N, L, 8)))


def lifted(graph: Graph) -> bool:
    """Run the pass; the graph means the same at several sizes and has nothing left to do."""
    samples = [random_feeds(graph, N=n, L=k) for n, k in ((1, 4), (3, 2))]
    expected = [interpret(graph, feeds) for feeds in samples]
    changed = lift_views(graph)
    verify(graph)
    for feeds, wanted in zip(samples, expected):
        assert_close(interpret(graph, feeds), wanted)
    assert not lift_views(graph)
    return changed


def shapes(graph: Graph) -> list[Shape]:
    """The shapes of all products."""
    return [n.outputs[0].tensor.dims for n in graph.nodes if isinstance(n.op, FusedMatMul)]


def test_rows_flattened_before_a_product_are_restored_before_it() -> None:
    b = Builder()
    found = b.node(product(), flattened(b), b.weight(8, 12))
    graph = b.finished(b.node(View((N, L, 12)), found))
    assert lifted(graph)
    assert shapes(graph) == [(N, L, 12)]
    assert graph.nodes[-1].kind == "FusedMatMul"


def test_operands_of_the_full_shape_are_seen_in_the_new_one() -> None:
    b = Builder()
    full = b.input("z", (N * L, 12))
    found = b.node(product("full"), flattened(b), b.weight(8, 12), full)
    graph = b.finished(b.node(View((N, L, 12)), found))
    assert lifted(graph) and shapes(graph) == [(N, L, 12)]


def test_constants_of_the_full_shape_are_reshaped() -> None:
    b = Builder()
    x = b.node(View((6, 8)), b.input("x", (2, 3, 8)))
    found = b.node(product("full"), x, b.weight(8, 12), b.weight(6, 12))
    graph = b.finished(b.node(View((2, 3, 12)), found))
    assert lifted(graph) and shapes(graph) == [(2, 3, 12)]
    assert [node.kind for node in graph.nodes] == ["View", "View", "FusedMatMul"]


def test_one_value_per_column_needs_no_view() -> None:
    b = Builder()
    found = b.node(product("column"), flattened(b), b.weight(8, 12), b.weight(12))
    graph = b.finished(b.node(View((N, L, 12)), found))
    assert lifted(graph) and shapes(graph) == [(N, L, 12)]


def test_what_does_not_keep_rows_and_columns_stays() -> None:
    b = Builder()
    found = b.node(product(), flattened(b), b.weight(8, 12))
    assert not lifted(b.finished(b.node(View((N, L, 3, 4)), found)))  # columns parted
    b = Builder()
    found = b.node(product(), flattened(b), b.weight(8, 12))
    assert not lifted(b.finished(b.node(View((N, L, 12)), found), found))  # read twice
    b = Builder()
    found = b.node(product("row"), flattened(b), b.weight(8, 12), b.input("r", (N * L,)))
    assert not lifted(b.finished(b.node(View((N, L, 12)), found)))  # one value per row
    b = Builder()
    found = b.node(product(), b.input("x", (N, 5, 8)), b.input("m", (N, 8, 12)))
    assert not lifted(b.finished(b.node(View((N, 1, 5, 12)), found)))  # many matrices


def test_a_residual_joins_a_product_of_flattened_rows() -> None:
    body = """(float[N, L, 8] x) => (float[] y) <int64[2] flat = {-1, 8},
        int64[1] width = {8}> {
        a = Reshape (x, flat) b = Gemm (a, w, c) n = Shape <end = 2> (x)
        s = Concat <axis = 0> (n, width) d = Reshape (b, s) y = Add (d, x) }"""
    weights = {"w": array(8, 8), "c": array(8)}
    graph = graph_of(body, weights=weights)
    run_pipeline(graph, checked=True)
    assert [node.kind for node in graph.nodes if node.kind != "View"] == ["FusedMatMul"]
    check(body, weights=weights, sizes={"N": 2, "L": 3})


@pytest.mark.parametrize("rank", [1, 2])
def test_a_product_that_is_read_without_a_view_stays(rank: int) -> None:
    b = Builder()
    shape: Shape = (8,) if rank == 1 else (N, 8)
    x = b.node(View((1, 8)), b.input("x", shape)) if rank == 1 else b.input("x", shape)
    assert not lifted(b.finished(b.node(product(), x, b.weight(8, 12))))
