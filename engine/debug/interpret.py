"""Running a graph by its operators' meanings: slow, obviously right, every value on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import EngineError, KernelError
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Size, symbols
from engine.ir.types import TensorType, Type
from engine.ops.control import ControlOperator
from engine.ops.fixed_sizes import fix_sizes
from engine.ops.operator import DOMAIN
from engine.ops.reference import Reference
from engine.ops.view import View

__all__ = ["interpret", "run_node"]


def interpret(graph: Graph, feeds: Mapping[str, Any], *, keep: bool = False) -> dict[str, Any]:
    """The outputs by name, or every value by name when ``keep`` is set.

    KernelError names the node whose meaning fails.
    """
    values: dict[int, Any] = {}
    last = _last_uses(graph)
    for value in graph.inputs:
        values[id(value)] = feeds.get(value.name)
    kept: dict[str, Any] = {}
    for index, node in enumerate(graph.nodes):
        for value, result in zip(node.outputs, run_node(node, values, graph, feeds)):
            values[id(value)] = result
            if keep:
                kept[value.name] = result
        for source in node.inputs:
            if source is not None and last.get(id(source)) == index and not keep:
                values.pop(id(source), None)
    names = graph.output_names or [value.name for value in graph.outputs]
    outputs = {name: _get(values, value) for name, value in zip(names, graph.outputs)}
    return {**kept, **outputs}


def _last_uses(graph: Graph) -> dict[int, int]:
    last: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.inputs:
            if value is not None:
                last[id(value)] = index
    for value in graph.outputs:
        last.pop(id(value), None)
    return last


def _get(values: Mapping[int, Any], value: Value | None) -> Any:
    if value is None:
        return None
    return value.constant if value.constant is not None else values[id(value)]


def run_node(
    node: Node, values: Mapping[int, Any], graph: Graph, feeds: Mapping[str, Any]
) -> Sequence[Any]:
    """The outputs of one node by its meaning; ``values`` holds its inputs by the id of the value.

    KernelError names the node when its meaning fails.
    """
    inputs = [_get(values, value) for value in node.inputs]
    try:
        if isinstance(node.op, ControlOperator):
            results: Any = node.op.run([_Body(body) for body in node.bodies], *inputs)
        elif isinstance(node.op, Reference):
            from engine.onnx_io.reference import evaluate_node

            results = evaluate_node(node.op, inputs)
        elif isinstance(node.op, View):
            shape = fix_sizes(node.op, _sizes(graph, feeds)).shape
            results = np.asarray(inputs[0]).reshape(shape)
        elif node.op.domain == DOMAIN:  # only operators of our own hold symbolic sizes
            results = fix_sizes(node.op, _sizes(graph, feeds)).meaning(*inputs)
        else:
            results = node.op.meaning(*inputs)
    except EngineError:
        raise
    except Exception as error:
        raise KernelError(f"node {node.name!r} ({node.op.name}) failed: {error}") from error
    return results if isinstance(results, tuple) else (results,)


def _sizes(graph: Graph, feeds: Mapping[str, Any]) -> dict[str, int]:
    """The symbols of a graph, read off the feeds."""
    known: dict[str, int] = {}
    for value in graph.inputs:
        if isinstance(value.type, TensorType) and value.type.shape is not None:
            for dim, size in zip(value.type.shape, np.shape(feeds.get(value.name, ()))):
                if isinstance(dim, Size) and symbols(dim) == {str(dim)}:
                    known[str(dim)] = size
    return known


class _Body:
    """A body as `ControlOperator.run` calls it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @property
    def output_types(self) -> Sequence[Type]:
        return [value.type for value in self.graph.outputs]

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        values: dict[int, Any] = {id(value): item for value, item in zip(self.graph.inputs, inputs)}
        for node in self.graph.nodes:
            for value, result in zip(node.outputs, run_node(node, values, self.graph, {})):
                values[id(value)] = result
        return [_get(values, value) for value in self.graph.outputs]
