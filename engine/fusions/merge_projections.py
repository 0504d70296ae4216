"""x @ wq, x @ wk, x @ wv that feed one attention => one product with the filters side by side."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim
from engine.ir.types import Array, TensorType
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.ops.operator import find

__all__ = ["merge_projections"]


@dataclass(slots=True)
class _Projection:
    """x @ w + b with a constant w [K, N], and b [N] or nothing."""

    source: Value
    weight: Array
    bias: Array | None
    result: Value
    nodes: list[Node]


@fusion("q, k, v = x @ wq, x @ wk, x @ wv => qkv = x @ w", "FusedAttention", stage="projections")
def merge_projections(graph: Graph, node: Node) -> Match | Refused | None:
    """Queries, keys and values of one tensor are projected at once and read in place."""
    op = node.op
    assert isinstance(op, FusedAttention)
    roots = node.inputs[:3]
    if any(root is None for root in roots) or len({id(root) for root in roots}) != 3:
        return None
    found = [_projection(graph, root, node) for root in roots if root is not None]
    parts = [item for item in found if isinstance(item, _Projection)]
    if len(parts) != 3:
        return next(item for item in found if isinstance(item, Refused))
    if any(part.source is not parts[0].source for part in parts):
        return Refused("queries, keys and values come from different tensors")
    if any((part.bias is None) != (parts[0].bias is None) for part in parts):
        return Refused("some of the projections have a bias, others none")
    widths = [part.weight.shape[1] for part in parts]
    accesses = []
    for index, access in enumerate((op.query, op.key, op.value)):
        moved = _moved(access, parts[index].result, widths[index], sum(widths), sum(widths[:index]))
        if moved is None:
            return Refused("a projection is read in another order than it is written")
        accesses.append(moved)
    merged = _merged(graph, node, parts)
    operands = (merged.tensor.dims,) * 3 + op.operands[3:]
    changed = dataclasses.replace(
        op, query=accesses[0], key=accesses[1], value=accesses[2], operands=operands
    )
    inputs: list[Value | None] = [merged, merged, merged, *node.inputs[3:]]
    nodes = [item for part in parts for item in part.nodes]
    return Match(changed, inputs, node.outputs[0], [*nodes, node])


def _projection(graph: Graph, root: Value, reader: Node) -> _Projection | Refused:
    """A root as a projection that only this attention reads."""
    if any(user is not reader for user in root.users) or graph.is_output(root):
        return Refused("something else reads a projection")
    nodes: list[Node] = []
    bias = None
    node = root.producer
    if node is not None and node.kind == "Add":
        first, second = node.inputs
        constant, other = (
            (first, second) if first and first.constant is not None else (second, first)
        )
        if constant is None or constant.constant is None or other is None:
            return Refused("a projection's bias is not constant")
        if len(other.uses) != 1 or constant.constant.ndim != 1:
            return Refused("a projection's bias is no vector, or its product has other readers")
        bias = constant.constant
        nodes.append(node)
        node = other.producer
    if node is None or node.kind != "MatMul":
        return Refused("queries, keys or values are no projection")
    source, weight = node.inputs
    if source is None or weight is None or weight.constant is None or weight.constant.ndim != 2:
        return Refused("a projection's filters are not constant")
    nodes.insert(0, node)
    return _Projection(source, weight.constant, bias, root, nodes)


def _moved(
    access: HeadAccess, root: Value, width: int, whole: int, before: int
) -> HeadAccess | None:
    """The same read in the merged tensor: rows are ``whole`` wide instead of ``width``."""
    if access.row != width or access.offset != 0:
        return None
    ratio_batch = _scaled(access.batch, width, whole)
    return None if ratio_batch is None else HeadAccess(before, ratio_batch, access.head, whole)


def _scaled(stride: Dim, width: int, whole: int) -> Dim | None:
    """A stride of whole rows, in wider rows."""
    rows = stride // width
    return rows * whole if rows * width == stride else None


def _merged(graph: Graph, anchor: Node, parts: list[_Projection]) -> Value:
    """The merged product (and bias), made just before the first of the old ones."""
    order = {id(item): index for index, item in enumerate(graph.nodes)}
    first = min((item for part in parts for item in part.nodes), key=lambda n: order[id(n)])
    sources = tuple(s for part in parts for item in part.nodes for s in item.sources)
    weight = graph.constant(
        f"{anchor.name}.projections", np.concatenate([part.weight for part in parts], axis=1)
    )
    result = _insert(graph, first, "MatMul", [parts[0].source, weight], sources)
    biases = [part.bias for part in parts if part.bias is not None]
    if biases:
        bias = graph.constant(f"{anchor.name}.biases", np.concatenate(biases))
        result = _insert(graph, first, "Add", [result, bias], sources)
    return result


def _insert(
    graph: Graph, anchor: Node, kind: str, inputs: list[Value], sources: tuple[str, ...]
) -> Value:
    op = find("", kind, 14).from_attributes({})
    value = Value(
        graph.fresh_name(f"{anchor.name}.merged"), TensorType(inputs[0].tensor.dtype, None)
    )
    node = Node(
        op, inputs, [value], name=graph.fresh_name(f"{anchor.name}.merged"), sources=sources
    )
    graph.insert_before(anchor, node)
    infer_node(graph, node)
    return value
