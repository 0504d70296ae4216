"""act(conv + bias + residual) and act(matmul + bias + residual) become one layer."""

from __future__ import annotations

import dataclasses

from engine.fusions.fusion import Match, Refused, fusion, only_user
from engine.ir.graph import Graph, Node, Value
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.expression import Expression, load, substitute
from engine.ops.fused import CONTRACTED, FusedConv, FusedMatMul
from engine.ops.widen import widen

__all__ = ["contraction_epilogue"]

#: What the printers of contractions take.
MOST_OPERANDS = 8


@fusion(
    "f(contraction, operands) => contraction with epilogue f",
    "FusedConv",
    "FusedMatMul",
    stage="layout",
)
def contraction_epilogue(graph: Graph, node: Node) -> Match | Refused | None:
    """Take in the one elementwise node that reads a contraction's result."""
    op, result = node.op, node.outputs[0]
    assert isinstance(op, (FusedConv, FusedMatMul))
    user = only_user(graph, result)
    if user is None or not isinstance(user.op, ElementwiseOperator):
        return None
    if user.outputs[0].type != result.type:
        return Refused(f"{user.kind} changes the type to {user.outputs[0].type}")
    operands: list[Expression | None] = []
    inputs, kinds = list(node.inputs), list(op.kinds)
    for value in user.inputs:
        if value is result or value is None:
            operands.append(op.epilogue if value is result else None)
            continue
        kind = _kind(value, result)
        if kind is None:
            return Refused(f"{user.kind} reads {value.type}, which no epilogue can")
        if value.constant is None and not _made_before(graph, value, node):
            return Refused(f"%{value.name} is made after the contraction")
        inputs.append(value)
        kinds.append(kind)
        operands.append(load(len(kinds), value.tensor.dtype))
    if len(kinds) > MOST_OPERANDS:
        return Refused(f"the epilogue would read {len(kinds)} operands, more than {MOST_OPERANDS}")
    over = [None if item is None else load(i, item.dtype) for i, item in enumerate(operands)]
    whole = widen(
        substitute(
            user.op.expression(*over),
            {i: item for i, item in enumerate(operands) if item is not None},
        )
    )
    changed = dataclasses.replace(op, epilogue=whole, kinds=tuple(kinds))
    return Match(changed, inputs, user.outputs[0], [node, user])


def _kind(value: Value, result: Value) -> str | None:
    if value.tensor.dtype not in CONTRACTED or value.tensor.shape is None:
        return None
    shape, whole = value.tensor.shape, result.tensor.dims
    if shape == whole:
        return "full"
    if all(dim == 1 for dim in shape):
        return "scalar"
    if shape[-1] == whole[-1] and all(dim == 1 for dim in shape[:-1]):
        return "column"
    return None


def _made_before(graph: Graph, value: Value, node: Node) -> bool:
    """Whether a value does not depend on the node: then the node can wait for it."""
    if value.producer is None:
        return True
    seen: set[int] = set()
    stack = [value.producer]
    while stack:
        current = stack.pop()
        if current is node:
            return False
        if id(current) in seen:
            continue
        seen.add(id(current))
        stack += [v.producer for v in current.inputs if v is not None and v.producer is not None]
    return True
