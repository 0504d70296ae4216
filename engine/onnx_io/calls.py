"""Local functions before any is inlined: that their calls end, and how many nodes they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from engine.errors import InvalidModelError

__all__ = ["check_calls"]

Key = tuple[str, str, str]

_MAX_DEPTH = 64
#: Nodes of a graph with all functions inlined: a few functions can call each other very often.
_MAX_NODES = 1_000_000


def check_calls(graph: onnx.GraphProto, functions: Mapping[Key, onnx.FunctionProto]) -> None:
    """Raise InvalidModelError for functions that call themselves, or make too many nodes."""
    if functions:
        _count(graph.node, functions, {}, 0)


def _count(
    nodes: Iterable[onnx.NodeProto],
    functions: Mapping[Key, onnx.FunctionProto],
    known: dict[Key, int],
    depth: int,
) -> int:
    """The nodes that these become when every call is inlined."""
    total = 0
    for node in _with_bodies(nodes):
        key = (node.domain, node.op_type, node.overload)
        function = functions.get(key)
        if function is None:
            total += 1
        else:
            if depth > _MAX_DEPTH:
                raise InvalidModelError(
                    f"function {function.name!r} is nested more than {_MAX_DEPTH} deep; "
                    "functions must not call themselves"
                )
            if key not in known:
                known[key] = _count(function.node, functions, known, depth + 1)
            total += known[key]
    if total > _MAX_NODES:
        raise InvalidModelError(
            f"the model has more than {_MAX_NODES} nodes in all, its functions written out"
        )
    return total


def _with_bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_bodies(attribute.g.node)
