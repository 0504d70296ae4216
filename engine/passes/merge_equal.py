"""Compute equal expressions once."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from engine.ir.graph import Graph, Node, Value
from engine.ir.types import Array

__all__ = ["merge_equal"]

#: Constants up to this many bytes are compared by content; larger ones by identity.
_COMPARED_NBYTES = 1 << 16


def merge_equal(graph: Graph) -> bool:
    """Let users of an equal node read the first one; small equal constants are one constant."""
    changed = _merge_constants(graph)
    seen: dict[tuple[Any, ...], Node] = {}
    outputs = {id(value) for value in graph.outputs}
    for node in list(graph.nodes):
        if not node.op.deterministic or node.bodies:
            continue
        key = _key(node)
        first = seen.setdefault(key, node)
        if first is node or any(id(value) in outputs for value in node.outputs):
            continue
        for old, new in zip(node.outputs, first.outputs):
            graph.replace_value(old, new)
        first.sources = tuple(dict.fromkeys(first.sources + node.sources))
        graph.remove(node)
        changed = True
    return changed


def _key(node: Node) -> tuple[Any, ...]:
    op = node.op
    attributes = json.dumps(op.attributes(), sort_keys=True, default=str)
    inputs = tuple(None if value is None else id(value) for value in node.inputs)
    return op.domain, op.name, op.since, attributes, inputs, len(node.outputs)


def _merge_constants(graph: Graph) -> bool:
    changed = False
    seen: dict[tuple[Any, ...], Value] = {}
    for value in graph.constants():
        array = value.constant
        assert array is not None
        first = seen.setdefault(_constant_key(array, value), value)
        if first is not value and not graph.is_output(value):
            graph.replace_value(value, first)
            changed = True
    return changed


def _constant_key(array: Array, value: Value) -> tuple[Any, ...]:
    if array.nbytes > _COMPARED_NBYTES or array.dtype == object:
        return ("identity", id(value))
    return (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest())
