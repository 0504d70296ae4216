"""All parts of a tensor beside each other, in order, are the tensor itself."""

from __future__ import annotations

from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ops.identity import Identity

__all__ = ["concat_parts"]


@fusion("concat(split(x), y) => concat(x, y)", "Concat")
def concat_parts(graph: Graph, node: Node) -> Match | Refused | None:
    """So that what makes the tensor may write it where the concatenation has it."""
    shape = node.outputs[0].tensor.shape
    if shape is None or any(value is None for value in node.inputs):
        return None
    axis = int(getattr(node.op, "axis", 0)) % max(len(shape), 1)
    found: list[Value | None] = []
    place = 0
    while place < len(node.inputs):
        whole = _whole(node.inputs[place : len(node.inputs)], axis)
        if whole is None:
            found.append(node.inputs[place])
            place += 1
        else:
            source, count = whole
            found.append(source)
            place += count
    if len(found) == len(node.inputs):
        return None
    op = Identity() if len(found) == 1 else node.op
    return Match(op, found, node.outputs[0], [node])


def _whole(values: list[Value | None], axis: int) -> tuple[Value, int] | None:
    """The tensor whose parts the first values are, all of them, and how many these are."""
    first = values[0]
    maker = None if first is None else first.producer
    if maker is None or maker.kind != "Split" or maker.inputs[0] is None:
        return None
    source, parts = maker.inputs[0], maker.outputs
    if source.tensor.shape is None or len(values) < len(parts):
        return None
    if int(getattr(maker.op, "axis", 0)) % len(source.tensor.shape) != axis:
        return None
    alike = all(one is other for one, other in zip(values, parts))
    return (source, len(parts)) if alike else None
