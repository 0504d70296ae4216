"""Concatenation and splitting without copies: tensors inside a slice of a wider one.

A tensor [..., C] that is joined with others along the last axis is placed in the joined tensor
[..., W] at once: it starts some channels in, and its pixels lie W elements apart instead of C. This
is decided before steps are written, from the last concatenation to the first, so that the growing
tensors of a dense block all lie in one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim
from engine.lower.placement import (
    Placement,
    is_joining,
    part_place,
    restride_load,
    restride_store,
)
from engine.ops.region import Region
from engine.tactics import Candidate

__all__ = ["plan_slices"]


Choices = Mapping[str, tuple[Candidate, int]]


def plan_slices(
    graph: Graph, choices: Choices, fixed: Collection[str] = frozenset()
) -> dict[int, Placement]:
    """Placements by the identity of values; what is not listed has memory of its own.

    ``fixed`` names nodes that are run in some other way too, which cannot work in slices.
    """
    choices = {name: chosen for name, chosen in choices.items() if name not in fixed}
    placed: dict[int, Placement] = {}
    for node in reversed(graph.nodes):
        if is_joining(node) and node.name in choices and choices[node.name][0].strided:
            _place_inputs(graph, node, choices, placed)
    for node in graph.nodes:
        _place_part(graph, node, choices, placed)
    return placed


def _place_part(graph: Graph, node: Node, choices: Choices, placed: dict[int, Placement]) -> None:
    """Leave a part of a result where it is, if all that read it can work in a slice."""
    if node.name not in choices or not choices[node.name][0].strided:
        return
    place = part_place(node, placed)
    (output,) = node.outputs[:1]
    source = node.inputs[0]
    if place is None or source is None or id(output) in placed or graph.is_output(output):
        return
    # What is given from outside may be written over before the part is read.
    if source.producer is None or source.producer.kind == "View" or not output.uses:
        return
    if all(_works(user, output, choices, place.pixel) for user, _ in output.uses):
        placed[id(output)] = place


def _place_inputs(graph: Graph, node: Node, choices: Choices, placed: dict[int, Placement]) -> None:
    output = node.outputs[0]
    whole = placed.get(id(output), Placement(output, 0, output.tensor.dims[-1]))
    before: Dim = 0
    for value in node.inputs:
        assert value is not None
        channels = value.tensor.dims[-1]
        if id(value) not in placed and _fits(graph, value, node, choices, whole.pixel):
            placed[id(value)] = Placement(whole.root, whole.offset + before, whole.pixel)
        before = before + channels


def _fits(graph: Graph, value: Value, join: Node, choices: Choices, pixel: Dim) -> bool:
    """Whether a value's maker and all its readers can work in a slice."""
    maker = value.producer
    if maker is None or graph.is_output(value) or sum(u is join for u, _ in value.uses) != 1:
        return False
    nodes = [maker, *(user for user, _ in value.uses if user is not join)]
    return all(_works(node, value, choices, pixel) for node in nodes)


def _works(node: Node, value: Value, choices: Choices, pixel: Dim) -> bool:
    if node.name not in choices:
        return False
    if not choices[node.name][0].strided:
        return False
    if isinstance(node.op, Region):
        return _restrided(node, value, pixel)
    if is_joining(node):
        return True
    positions = [index for index, item in enumerate(node.inputs) if item is value]
    kinds = getattr(node.op, "kinds", ())
    return all(index == 0 or kinds[index - 2] == "full" for index in positions)


def _restrided(node: Node, value: Value, pixel: Dim) -> bool:
    """Whether every access of a region to a value has a form for other pixel strides."""
    op, channels = node.op, value.tensor.dims[-1]
    assert isinstance(op, Region)
    inputs = [index for index, item in enumerate(node.inputs) if item is value]
    outputs = [index for index, item in enumerate(node.outputs) if item is value]
    loads = [item for item in op.loads if item.operand in inputs]
    stores = [item for item in op.stores if item.output in outputs]
    return all(restride_load(item, channels, pixel, 0) is not None for item in loads) and all(
        restride_store(item, channels, pixel, 0) is not None for item in stores
    )
