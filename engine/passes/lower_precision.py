"""Float16 arithmetic for a float32 model: a rewrite that stays visible as casts.

Inputs and outputs of the graph keep their types. What stays in float32 is listed with its reason:
operators that no fast kernel computes, constants that float16 cannot hold, and what reads numbers
made with them, up to an operator whose results are bounded.
"""

from __future__ import annotations

import numpy as np

from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import Array, DType, TensorType
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.operator import Operator, find

__all__ = ["lower_precision"]

GREATEST = 65504.0
#: Operators beside elementwise ones that are computed in float16, with wider sums inside.
_NARROWED = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Attention"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        *("BatchNormalization", "LayerNormalization", "RMSNormalization"),
        *("InstanceNormalization", "GroupNormalization", "Softmax"),
        *("ReduceMean", "ReduceMax", "ReduceMin"),
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "View"),
        *("GatherElements", "GatherND", "Pad", "Trilu"),
    }
)
#: Functions that overflow or lose everything in float16 between two roundings.
_WIDE = frozenset({"Exp", "Log", "Pow", "Reciprocal", "Sum"})
#: What these give fits into float16 whatever they read, as a softmax over masked scores.
_BOUNDED = frozenset(
    {
        *("Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Clip"),
        *("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"),
    }
)


def lower_precision(graph: Graph) -> bool:
    """Compute in float16 wherever an operator allows it."""
    half: dict[int, Value] = {}
    vast: set[int] = set()  # values that may hold numbers beyond float16's
    changed = False
    for node in list(graph.nodes):
        if not any(_is_single(value) for value in node.inputs):
            continue
        reason = _refusal(node)
        beyond = _holds_more(node) or _reads(node, vast)
        if beyond and node.kind not in _BOUNDED:
            vast.update(id(value) for value in node.outputs)
        if reason or beyond:
            graph.decide("float16", node.sources, False, reason or beyond)
            continue
        _narrow(graph, node, half)
        changed = True
    return changed


def _is_single(value: Value | None) -> bool:
    return (
        value is not None
        and isinstance(value.type, TensorType)
        and value.type.dtype is DType.FLOAT32
    )


def _refusal(node: Node) -> str:
    """Why a node stays in float32, or nothing."""
    if node.bodies:
        return "its body is not rewritten"
    if node.kind in ("Cast", "CastLike"):
        return "the model asks for this type"
    pointwise = isinstance(node.op, ElementwiseOperator) and node.kind not in _WIDE
    if not pointwise and node.kind not in _NARROWED:
        return f"{node.kind} is computed in float32"
    return ""


def _holds_more(node: Node) -> str:
    """Which constant of a node float16 cannot hold, or nothing."""
    for value in node.inputs:
        if value is not None and value.constant is not None and _is_single(value):
            if not _fits(value.constant):
                return f"the constant %{value.name} holds values that float16 cannot"
    return ""


def _reads(node: Node, vast: set[int]) -> str:
    """Which input of a node may hold more than float16 can, or nothing."""
    for value in node.inputs:
        if value is not None and id(value) in vast:
            return f"%{value.name} may hold values that float16 cannot"
    return ""


def _fits(array: Array) -> bool:
    finite = array[np.isfinite(array)]
    return not finite.size or float(np.max(np.abs(finite))) <= GREATEST


def _narrow(graph: Graph, node: Node, half: dict[int, Value]) -> None:
    """Make one node read and write float16; others still find its results in float32."""
    for index, value in enumerate(node.inputs):
        if value is not None and _is_single(value):
            node.set_input(index, _narrowed(graph, node, value, half))
    results = list(node.outputs)
    infer_node(graph, node)
    position = node
    for old in results:
        if not isinstance(old.type, TensorType) or old.type.dtype is not DType.FLOAT16:
            continue
        wide = Value(
            graph.fresh_name(f"{old.name}.wide"), TensorType(DType.FLOAT32, old.type.shape)
        )
        graph.replace_value(old, wide)
        back = Node(_cast(DType.FLOAT32), [old], [wide], name=graph.fresh_name(f"{node.name}.wide"))
        graph.insert_after(position, back)
        infer_node(graph, back)
        position = back
        half[id(wide)] = old


def _narrowed(graph: Graph, node: Node, value: Value, half: dict[int, Value]) -> Value:
    """The float16 form of a value: a constant rounded, the value before its cast, or a cast."""
    found = half.get(id(value))
    if found is None:
        if value.constant is not None:
            found = graph.constant(value.name, value.constant.astype(np.float16))
        else:
            found = Value(
                graph.fresh_name(f"{value.name}.half"),
                TensorType(DType.FLOAT16, value.tensor.shape),
            )
            cast = Node(
                _cast(DType.FLOAT16), [value], [found], name=graph.fresh_name(f"{node.name}.half")
            )
            graph.insert_before(node, cast)
            infer_node(graph, cast)
        half[id(value)] = found
    return found


def _cast(dtype: DType) -> Operator:
    code = {DType.FLOAT32: 1, DType.FLOAT16: 10}[dtype]
    return find("", "Cast", 21).from_attributes({"to": code})
