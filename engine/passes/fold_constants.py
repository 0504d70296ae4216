"""Compute what does not depend on an input, up to a size limit."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import bounds
from engine.ir.types import DType, TensorType
from engine.ops.control import ControlOperator
from engine.ops.reference import Reference

__all__ = ["fold_constants"]

#: A folded result may have this many bytes; larger ones are computed when the engine runs.
FOLD_LIMIT_NBYTES = 1 << 30


def fold_constants(graph: Graph) -> bool:
    """Replace nodes whose inputs are all constant, and shape arithmetic that came out constant."""
    changed = False
    for node in list(graph.nodes):
        for body in node.bodies:
            changed |= fold_constants(body)
        if node.outputs and all(value.constant is not None for value in node.outputs):
            continue
        changed |= _fold_content(graph, node) or _fold(graph, node)
    return changed


def _fold_content(graph: Graph, node: Node) -> bool:
    """A shape tensor all of whose elements are integers needs no input at all."""
    output = node.outputs[0]
    content = output.content
    if len(node.outputs) != 1 or content is None or not isinstance(output.type, TensorType):
        return False
    if not all(isinstance(item, int) for item in content.reshape(-1)) or not _used(graph, output):
        return False
    _replace(graph, node, [content.astype(output.type.dtype.numpy)])
    return True


def _fold(graph: Graph, node: Node) -> bool:
    inputs = [value.constant if value is not None else None for value in node.inputs]
    missing = any(a is None and v is not None for a, v in zip(inputs, node.inputs))
    if missing or not node.op.deterministic or isinstance(node.op, (ControlOperator, Reference)):
        return False
    if not all(_foldable(value) for value in node.outputs):
        return False
    try:
        results = node.op.meaning(*inputs)
    except (EngineError, ValueError, TypeError, IndexError, ZeroDivisionError, NotImplementedError):
        return False  # it fails when it runs, with its name, if it ever runs
    if not isinstance(results, tuple):
        results = (results,)
    if not all(isinstance(item, (np.ndarray, np.generic)) for item in results[: len(node.outputs)]):
        return False
    _replace(graph, node, [np.asarray(item) for item in results])
    return True


def _foldable(value: Value) -> bool:
    if not isinstance(value.type, TensorType):
        return False
    if value.type.shape is None or value.type.dtype is DType.STRING:
        return True
    upper = bounds(value.type.elements)[1]
    return upper is None or upper * value.type.dtype.nbytes <= FOLD_LIMIT_NBYTES


def _used(graph: Graph, value: Value) -> bool:
    return bool(value.uses) or graph.is_output(value)


def _replace(graph: Graph, node: Node, results: list[Any]) -> None:
    for value, array in zip(list(node.outputs), results):
        if _used(graph, value):
            constant = graph.constant(value.name, array)
            graph.replace_value(value, constant)
    graph.remove(node)
