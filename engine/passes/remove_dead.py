"""Take out nodes whose results nobody reads."""

from __future__ import annotations

from engine.ir.graph import Graph

__all__ = ["remove_dead"]


def remove_dead(graph: Graph) -> bool:
    """Remove dead nodes from the end to the start; trim outputs that nobody reads."""
    changed = False
    outputs = {id(value) for value in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if any(value.uses or id(value) in outputs for value in node.outputs):
            kept.append(node)
            for body in node.bodies:
                changed |= remove_dead(body)
        else:
            node.detach()
            node.graph = None
            changed = True
    graph.nodes = kept[::-1]
    return changed
