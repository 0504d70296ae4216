"""Shape inference: types of all values, symbolic sizes, contents of shape tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.errors import EngineError, InvalidModelError
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Size, symbol
from engine.ir.types import (
    Array,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnknownSize,
)
from engine.ops.control import ControlOperator, merge_types

__all__ = ["infer", "infer_node"]

#: Integer tensors up to this many elements are followed symbolically.
CONTENT_LIMIT = 128


def infer(graph: Graph) -> None:
    """Set the type of every value, in order; InvalidModelError names the node that contradicts."""
    for node in graph.nodes:
        infer_node(graph, node)


def infer_node(graph: Graph, node: Node) -> None:
    """Set the types (and contents) of one node's outputs."""
    operands = [None if value is None else value.operand() for value in node.inputs]
    try:
        if isinstance(node.op, ControlOperator):
            types = _infer_control(node, node.op, operands)
        else:
            types = node.op.infer(*operands)
    except EngineError as error:
        raise type(error)(f"{_where(node)}: {error}") from None
    except (ValueError, TypeError, AssertionError, IndexError, AttributeError) as error:
        raise InvalidModelError(f"{_where(node)}: {error}") from error
    for value, kind in zip(node.outputs, types):
        value.type = _named(graph, kind, value.name)
        value.content = None
    if len(types) < len(node.outputs):
        raise InvalidModelError(
            f"{_where(node)} has {len(node.outputs)} outputs, expected at most {len(types)}"
        )
    _follow_content(node)


def _where(node: Node) -> str:
    domain = f"{node.op.domain}." if node.op.domain else ""
    return f"node {node.name!r} ({domain}{node.op.name})"


def _named(graph: Graph, kind: Type, hint: str) -> Type:
    """The type with every unknown size replaced by a symbol of its own."""
    if isinstance(kind, TensorType) and kind.shape is not None:
        if not any(isinstance(dim, UnknownSize) for dim in kind.shape):
            return kind
        return TensorType(
            kind.dtype,
            tuple(
                symbol(graph.fresh_name(f"?{hint}.{axis}")) if isinstance(dim, UnknownSize) else dim
                for axis, dim in enumerate(kind.shape)
            ),
        )
    if isinstance(kind, SequenceType):
        return SequenceType(_named(graph, kind.element, hint))
    if isinstance(kind, OptionalType):
        return OptionalType(_named(graph, kind.element, hint))
    return kind


def _infer_control(node: Node, op: ControlOperator, operands: Sequence[Any]) -> Sequence[Type]:
    """Types of a node with bodies: carried values are widened until nothing changes."""
    formal_types = [list(types) for types in op.body_inputs(operands)]
    # A value that changes may pass through every carried one before all have settled.
    for _ in range(4 + 3 * sum(map(len, formal_types))):
        results = []
        captured = [operand.type for operand in operands[op.formal :]]
        for body, types in zip(node.bodies, formal_types):
            if len(body.inputs) != len(types) + len(captured):
                raise ValueError(
                    f"its body takes {len(body.inputs) - len(captured)} inputs, "
                    f"expected {len(types)}"
                )
            for value, kind in zip(body.inputs, [*types, *captured]):
                value.type = kind
            infer(body)
            results.append([value.type for value in body.outputs])
        outputs = op.infer_bodies(operands, results)
        if op.name != "Loop" or not _widen(formal_types[0], results[0][1:]):
            return outputs
    raise ValueError("the types of the values carried through the loop do not settle")


def _widen(formal: list[Type], results: Sequence[Type]) -> bool:
    changed = False
    for index in range(2, min(len(formal), len(results) + 2)):
        wider = _without_marks(merge_types(formal[index], results[index - 2]))
        if wider != formal[index]:
            formal[index] = wider
            changed = True
    return changed


def _without_marks(kind: Type) -> Type:
    """Sizes that differ from turn to turn make the whole shape unknown."""
    if isinstance(kind, TensorType) and kind.shape is not None:
        if any(isinstance(dim, UnknownSize) for dim in kind.shape):
            return TensorType(kind.dtype, None)
    if isinstance(kind, SequenceType):
        return SequenceType(_without_marks(kind.element))
    if isinstance(kind, OptionalType):
        return OptionalType(_without_marks(kind.element))
    return kind


def _content(value: Value | None) -> Array | None:
    if value is None:
        return None
    if value.constant is not None:
        return value.constant.astype(object) if value.constant.size <= CONTENT_LIMIT else None
    return value.content


def _follow_content(node: Node) -> None:
    """Run shape arithmetic on symbolic sizes, where the operator's meaning allows it."""
    first = node.outputs[0]
    if not isinstance(first.type, TensorType) or not first.type.dtype.is_integer:
        if not (isinstance(first.type, TensorType) and first.type.dtype.value == "bool"):
            return
    if node.kind in ("Shape", "Size"):
        _shape_content(node, first)
        return
    if not node.op.symbolic or len(node.outputs) != 1:
        return
    inputs = [_content(value) for value in node.inputs]
    if any(a is None and v is not None for a, v in zip(inputs, node.inputs)):
        return
    try:
        result = np.asarray(node.op.meaning(*inputs), object)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, IndexError):
        return  # this arithmetic cannot be followed; the value stays opaque
    if result.size <= CONTENT_LIMIT and all(
        isinstance(item, (int, np.integer, Size, bool, np.bool_)) for item in result.reshape(-1)
    ):
        first.content = np.array(
            [_plain(item) for item in result.reshape(-1)] + [None],
            object,
        )[:-1].reshape(result.shape)


def _plain(item: Any) -> Any:
    """A size, a condition or a number as Python holds it."""
    if isinstance(item, (Size, bool)):
        return item
    return bool(item) if isinstance(item, np.bool_) else int(item)


def _shape_content(node: Node, output: Value) -> None:
    source = node.inputs[0]
    if source is None or not isinstance(source.type, TensorType) or source.type.shape is None:
        return
    shape = source.type.shape
    if node.kind == "Size":
        output.content = np.array(source.type.elements, object).reshape(())
        return
    start, end = getattr(node.op, "start", 0), getattr(node.op, "end", None)
    dims = shape[start:end]
    output.content = np.array([*dims, None], object)[:-1]
