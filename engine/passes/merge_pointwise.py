"""Merge chains and diamonds of elementwise operators into one, and name known activations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import Array, DType, TensorType
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.expression import Expression, constant, evaluate, load, loads, order, substitute
from engine.ops.pointwise import Pointwise
from engine.passes.rows import row_form

__all__ = ["activation_name", "merge_pointwise"]

MOST_NODES = 96
MOST_OPERANDS = 8


def merge_pointwise(graph: Graph) -> bool:
    """Take an elementwise producer in where all its readers are the one elementwise node."""
    changed = False
    for node in list(graph.nodes):
        if node.graph is graph and _is_pointwise(node):
            changed |= _absorb_inputs(graph, node)
    return changed


def _is_pointwise(node: Node) -> bool:
    kind = node.outputs[0].type if node.outputs else None
    if not isinstance(node.op, ElementwiseOperator) or not isinstance(kind, TensorType):
        return False
    return kind.shape is not None and row_form(node) is not None


def _absorb_inputs(graph: Graph, node: Node) -> bool:
    """Merge all producers that qualify; one new node in the place of all of them."""
    shape = node.outputs[0].tensor.shape
    absorbed = [
        value
        for value in dict.fromkeys(value for value in node.inputs if value is not None)
        if value.producer is not None
        and _is_pointwise(value.producer)
        and value.tensor.shape == shape
        and not graph.is_output(value)
        and all(user is node for user, _ in value.uses)
    ]
    if not absorbed and isinstance(node.op, Pointwise):
        return False
    inputs: list[Value] = []
    body = _inline(node, [id(value) for value in absorbed], inputs)
    if len(inputs) > MOST_OPERANDS or len(order(body)) > MOST_NODES or not inputs:
        return False
    if not absorbed and not any(_is_scalar(value) for value in node.inputs):
        return False
    made = [value.producer for value in absorbed if value.producer is not None]
    sources = dict.fromkeys(s for item in (*made, node) for s in item.sources)
    output = node.outputs[0]
    result = Value(graph.fresh_name(output.name), output.type)
    merged = Node(
        Pointwise(body, activation_name(body)),
        inputs,
        [result],
        name=graph.fresh_name(node.name),
        sources=tuple(sources),
    )
    graph.insert_before(node, merged)
    infer_node(graph, merged)
    if result.type != output.type:
        graph.remove(merged)
        return False
    graph.replace_value(output, result)
    graph.remove(node)
    for item in made:
        if item.graph is graph:
            graph.remove(item)
    _report(graph, merged)
    return True


def _is_scalar(value: Value | None) -> bool:
    return value is not None and value.constant is not None and value.constant.size == 1


def _inline(node: Node, absorbed: list[int], inputs: list[Value]) -> Expression:
    """The expression of a node over the values that it will read from outside."""
    assert isinstance(node.op, ElementwiseOperator)
    operands: list[Expression | None] = []
    for value in node.inputs:
        if value is None:
            operands.append(None)
        elif id(value) in absorbed and value.producer is not None:
            operands.append(_inline(value.producer, [], inputs))
        else:
            operands.append(_leaf(value, inputs))
    formal = [None if item is None else load(i, item.dtype) for i, item in enumerate(operands)]
    body = node.op.expression(*formal)
    return substitute(body, {i: item for i, item in enumerate(operands) if item is not None})


def _leaf(value: Value, inputs: list[Value]) -> Expression:
    """A load of an input, or the number itself when it is one."""
    if _is_scalar(value) and value.constant is not None and len(value.tensor.dims) <= 1:
        return constant(value.constant.reshape(-1)[0].item(), value.tensor.dtype)
    if not any(item is value for item in inputs):
        inputs.append(value)
    position = next(i for i, item in enumerate(inputs) if item is value)
    return load(position, value.tensor.dtype)


def _report(graph: Graph, node: Node) -> None:
    label = node.op.label if isinstance(node.op, Pointwise) else ""
    if label:
        graph.decide(f"elementwise chain => {label}", node.sources, True)


def _gelu(x: Array) -> Array:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


#: Activations known by name, told apart by their values at a few points.
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": _sigmoid,
}
_POINTS = np.array([-6.5, -3.2, -1.7, -0.6, -0.05, 0.1, 0.4, 1.3, 2.9, 4.8, 7.1])


#: What rounding may add at the points, by element type.
_TOLERANCES = {DType.FLOAT32: 1e-5, DType.FLOAT16: 2e-3, DType.BFLOAT16: 2e-2}


def activation_name(body: Expression) -> str:
    """The name of the activation that an expression over one load computes, or ""."""
    dtype = body.dtype
    if list(loads(body).items()) != [(0, dtype)] or dtype not in _TOLERANCES:
        return ""
    points = _POINTS.astype(dtype.numpy)
    found = evaluate(body, [points]).astype(np.float64)
    tolerance = _TOLERANCES[dtype]
    for name, function in _ACTIVATIONS.items():
        if np.allclose(found, function(points.astype(np.float64)), rtol=tolerance, atol=tolerance):
            return name
    return ""
