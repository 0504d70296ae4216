"""Editing a graph keeps uses, producers and order true; `verify` sees when they are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.graph import Graph, Node, Value
from engine.ir.text import graph_text
from engine.ir.types import DType, TensorType
from engine.ir.verify import verify
from engine.ops import find
from tests.engine.small_models import graph_of

KIND = TensorType(DType.FLOAT32, (4,))


def node(graph: Graph, operator: str, *inputs: Value) -> Node:
    result = graph.value(operator.lower(), KIND)
    return Node(find("", operator, 14)(), inputs, [result], name=graph.fresh_name(operator))


def chain(length: int = 3) -> Graph:
    """x -> Neg -> Neg -> ... -> output."""
    graph = Graph("chain")
    value = graph.value("x", KIND)
    graph.inputs.append(value)
    for _ in range(length):
        value = graph.append(node(graph, "Neg", value)).outputs[0]
    graph.outputs = [value]
    return graph


def test_an_input_that_changes_hands_is_counted_once() -> None:
    graph = chain(1)
    first = graph.nodes[0]
    other = graph.constant("k", np.ones(4, np.float32))
    double = graph.append(node(graph, "Add", first.outputs[0], first.outputs[0]))
    assert first.outputs[0].uses == [(double, 0), (double, 1)]
    assert first.outputs[0].users == [double]
    double.set_input(0, other)
    assert first.outputs[0].uses == [(double, 1)] and other.uses == [(double, 0)]
    double.set_input(1, None)
    assert not first.outputs[0].uses
    verify(graph)


def test_a_value_is_replaced_for_all_its_readers_and_as_output() -> None:
    graph = chain(2)
    first, second = graph.nodes
    fresh = graph.insert_before(second, node(graph, "Abs", first.outputs[0]))
    graph.replace_value(second.outputs[0], fresh.outputs[0])
    graph.remove(second)
    assert graph.is_output(fresh.outputs[0]) and second.graph is None
    assert [item.kind for item in graph.nodes] == ["Neg", "Abs"]
    after = graph.insert_after(first, node(graph, "Sin", first.outputs[0]))
    assert graph.nodes[1] is after
    verify(graph)


def test_a_node_that_is_read_cannot_be_removed() -> None:
    graph = chain(2)
    for item in graph.nodes:
        with pytest.raises(ValueError, match="still feeds"):
            graph.remove(item)


def test_fresh_names_are_never_given_twice() -> None:
    graph = Graph()
    names = [graph.fresh_name(hint) for hint in ("a", "a", "a.1", "a", "", "")]
    assert len(set(names)) == 6 and names[0] == "a" and all(names)


@settings(max_examples=30, deadline=None)
@given(st.permutations(list(range(8))), st.lists(st.integers(0, 7), min_size=8, max_size=8))
def test_sorting_gives_an_order_that_can_run(order: list[int], sources: list[int]) -> None:
    graph = Graph()
    values = [graph.value("x", KIND)]
    graph.inputs = list(values)
    nodes = []
    for source in sources:
        item = node(graph, "Add", values[source % len(values)], values[-1])
        nodes.append(item)
        values.append(item.outputs[0])
    for place in order:
        graph.append(nodes[place])
    graph.outputs = [values[-1]]
    graph.sort()
    verify(graph)
    assert sorted(map(id, graph.nodes)) == sorted(map(id, nodes))
    before = list(graph.nodes)
    graph.sort()
    assert graph.nodes == before


def test_a_cycle_is_named() -> None:
    graph = chain(2)
    graph.nodes[0].set_input(0, graph.nodes[1].outputs[0])
    with pytest.raises(ValueError, match="depends on its own output"):
        graph.sort()


def make_stale_use(graph: Graph) -> None:
    graph.nodes[0].outputs[0].uses.append((graph.nodes[0], 0))


def forget_use(graph: Graph) -> None:
    graph.nodes[0].outputs[0].uses.clear()


def swap_order(graph: Graph) -> None:
    graph.nodes.reverse()


def steal_output(graph: Graph) -> None:
    graph.nodes[1].outputs[0].producer = graph.nodes[0]


def make_twice(graph: Graph) -> None:
    graph.append(Node(graph.nodes[0].op, [graph.inputs[0]], [graph.nodes[0].outputs[0]]))
    graph.nodes[0].outputs[0].producer = graph.nodes[0]


def loosen_output(graph: Graph) -> None:
    graph.outputs = [graph.value("loose", KIND)]


def share_name(graph: Graph) -> None:
    graph.nodes[0].outputs[0].name = "x"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (make_stale_use, "stale use"),
        (forget_use, "does not know its user"),
        (swap_order, "before it is made"),
        (steal_output, "does not know its producer"),
        (make_twice, "producer|twice"),
        (loosen_output, "loose"),
        (share_name, "two values are called"),
    ],
)
def test_verify_sees_damage(damage: Callable[[Graph], None], message: str) -> None:
    graph = chain(3)
    verify(graph)
    damage(graph)
    with pytest.raises(AssertionError, match=message):
        verify(graph)


BRANCHES = """(bool c, float[4] x) => (float[] y) <float[4] w = {1, 2, 3, 4}> {
    t = Add(x, w)
    y = If (c) <
        then_branch = one () => (float[4] a) { a = Neg(t) },
        else_branch = two () => (float[4] b) { b = Mul(t, x) }>
}"""


def test_text_shows_every_node_with_its_bodies_and_is_the_same_for_the_same_model() -> None:
    text = graph_text(graph_of(BRANCHES))
    assert text == graph_text(graph_of(BRANCHES))
    assert "%t: float32[4] = Add(%x, float32[4][1.0, 2.0, 3.0, 4.0])" in text
    assert "Neg(%t)" in text and "Mul(%t, %x)" in text and text.endswith("return %y\n}")
    assert text != graph_text(graph_of(BRANCHES.replace("Mul", "Sub")))


def test_walking_visits_bodies_with_the_graph_that_holds_each_node() -> None:
    graph = graph_of(BRANCHES)
    found = [(owner.name, item.kind) for owner, item in graph.walk()]
    assert found == [("small", "Add"), ("small", "If"), ("one", "Neg"), ("two", "Mul")]
    assert [item.kind for item in graph.each("If")] == ["If"]
    assert [value.name for value in graph.constants()] == ["w"]
