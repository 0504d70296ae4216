"""What must always hold of a graph; run after every pass in tests."""

from __future__ import annotations

from engine.ir.graph import Graph, Node, Value

__all__ = ["verify"]


def verify(graph: Graph) -> None:
    """Raise AssertionError, naming the value or node, when the graph contradicts itself."""
    defined: set[int] = {id(value) for value in graph.inputs}
    names: dict[str, Value] = {}
    for value in graph.values():
        other = names.setdefault(value.name, value)
        assert other is value, f"two values are called %{value.name}"
    for node in graph.nodes:
        _verify_node(node, defined)
        for body in node.bodies:
            verify(body)
    for value in graph.outputs:
        assert value.constant is not None or id(value) in defined, f"output %{value.name} is loose"


def _verify_node(node: Node, defined: set[int]) -> None:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        assert value.constant is not None or id(value) in defined, (
            f"node {node.name!r} reads %{value.name} before it is made"
        )
        assert (node, index) in value.uses, f"%{value.name} does not know its user {node.name!r}"
    for value in node.outputs:
        assert value.producer is node, f"%{value.name} does not know its producer {node.name!r}"
        assert id(value) not in defined, f"%{value.name} is made twice"
        defined.add(id(value))
        for user, index in value.uses:
            assert user.inputs[index] is value, f"%{value.name} has a stale use"
