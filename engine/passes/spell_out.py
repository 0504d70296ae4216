"""Operators that are a few others in a row: sums of products, group norms, means of whole planes.

What they become has fast forms everywhere, and joins its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim, product
from engine.ir.types import TensorType, is_bound
from engine.ops.einsum import Einsum
from engine.ops.normalization import (
    GroupNormalization,
    GroupNormalization18,
    InstanceNormalization,
)
from engine.ops.operator import Operator, find
from engine.ops.reduce import ReduceOverAttribute, ReduceOverInput
from engine.ops.view import View

__all__ = ["spell_out"]

Made = Value | None


def spell_out(graph: Graph) -> bool:
    """Rewrite each such operator; the decision names it."""
    changed = False
    for node in list(graph.nodes):
        maker = _MAKERS.get(node.kind)
        values = [value for value in node.inputs if value is not None]
        if maker is None or not node.only_first_read or not values:
            continue
        if not all(isinstance(v.type, TensorType) and is_bound(v.type) for v in values):
            continue
        if not is_bound(node.outputs[0].type):
            continue
        result = maker(graph, node)
        if result is not None:
            graph.replace_value(node.outputs[0], result)
            graph.decide(f"{node.kind} => smaller operators", node.sources, True)
            graph.remove(node)
            changed = True
    return changed


def _put(graph: Graph, node: Node, op: Operator, *inputs: Value | None) -> Value:
    """The result of a new operator in front of a node."""
    source = inputs[0]
    assert source is not None
    result = graph.value(f"{node.outputs[0].name}.part", TensorType(source.tensor.dtype, None))
    made = Node(op, inputs, [result], name=graph.fresh_name(node.name), sources=node.sources)
    graph.insert_before(node, made)
    infer_node(graph, made)
    return result


def _viewed(graph: Graph, node: Node, value: Value, shape: Sequence[Dim]) -> Value:
    return (
        value if value.tensor.dims == tuple(shape) else _put(graph, node, View(tuple(shape)), value)
    )


def _turned(graph: Graph, node: Node, value: Value, perm: Sequence[int]) -> Value:
    if list(perm) == list(range(len(perm))):
        return value
    return _put(
        graph, node, find("", "Transpose", 13).from_attributes({"perm": tuple(perm)}), value
    )


# ---- sums of products ---------------------------------------------------------------------------


def _einsum(graph: Graph, node: Node) -> Made:
    """A product of two operands without diagonals: transposes around one matrix product."""
    op, output = node.op, node.outputs[0]
    assert isinstance(op, Einsum)
    values = [value for value in node.inputs if value is not None]
    if not output.tensor.dtype.is_float or not 1 <= len(values) <= 2:
        return None
    terms, wanted = op._axes([value.tensor.rank for value in values])
    if any(len(set(term)) < len(term) for term in terms):
        return None
    if len(values) == 1:
        (term,) = terms
        alike = sorted(term) == sorted(wanted) and term
        return _turned(graph, node, values[0], [term.index(x) for x in wanted]) if alike else None
    left, right = terms
    sizes: dict[str, Dim] = {}
    for term, value in zip(terms, values, strict=True):
        for label, size in zip(term, value.tensor.dims, strict=True):
            if sizes.setdefault(label, size) != size:
                return None
    if any(x not in wanted for x in set(left) ^ set(right)):
        return None  # a sum over one operand alone
    batch = [x for x in wanted if x in left and x in right]
    inner = [x for x in left if x in right and x not in wanted]
    rows, columns = ([x for x in wanted if x in term and x not in batch] for term in terms)

    def many(labels: Sequence[str]) -> list[Dim]:
        return [sizes[x] for x in labels]

    a = _turned(graph, node, values[0], [left.index(x) for x in (*batch, *rows, *inner)])
    b = _turned(graph, node, values[1], [right.index(x) for x in (*batch, *inner, *columns)])
    depth = product(many(inner))
    height = many(rows) if rows and not batch else [product(many(rows))]
    a = _viewed(graph, node, a, [*many(batch), *height, depth])
    b = _viewed(graph, node, b, [*many(batch), depth, product(many(columns))])
    result = _put(graph, node, find("", "MatMul", 13).from_attributes({}), a, b)
    order = [*batch, *rows, *columns]
    result = _viewed(graph, node, result, many(order))
    return _turned(graph, node, result, [order.index(x) for x in wanted])


# ---- normalisation, means -----------------------------------------------------------------------


def _group_norm(graph: Graph, node: Node) -> Made:
    """Groups are planes of their own; what scales channels comes behind."""
    x, scale, bias = node.inputs[:3]
    op = node.op
    assert x is not None and scale is not None and bias is not None
    assert isinstance(op, GroupNormalization | GroupNormalization18)
    shape, groups = x.tensor.dims, op.num_groups
    channels = shape[1]
    length = product(shape[1:])
    if not isinstance(channels, int) or not isinstance(length, int) or channels % groups:
        return None
    if not x.tensor.dtype.is_float or getattr(op, "stash_type", 1) not in (1, 10, 16):
        return None
    planes = _viewed(graph, node, x, (shape[0], groups, length // groups))
    per_channel = isinstance(op, GroupNormalization)
    kind = x.tensor.dtype.numpy
    one = graph.constant(f"{node.name}.one", np.ones(groups, kind)) if per_channel else scale
    none = graph.constant(f"{node.name}.none", np.zeros(groups, kind)) if per_channel else bias
    normal = _put(graph, node, InstanceNormalization(epsilon=op.epsilon), planes, one, none)
    result = _viewed(graph, node, normal, shape)
    if not per_channel:
        return result
    column = (channels, *(1,) * (len(shape) - 2))
    for name, value in (("Mul", scale), ("Add", bias)):
        along = _viewed(graph, node, value, column)
        result = _put(graph, node, find("", name, 14).from_attributes({}), result, along)
    return result


def _global_pool(graph: Graph, node: Node) -> Made:
    """Of other tensors than images of fixed size: a reduction over all their pixels."""
    (x,) = node.inputs[:1]
    assert x is not None
    shape = x.tensor.dims
    if not x.tensor.dtype.is_float or len(shape) < 3:
        return None
    if len(shape) == 4 and all(isinstance(size, int) for size in shape[2:]):
        return None
    kind = "ReduceMean" if node.kind == "GlobalAveragePool" else "ReduceMax"
    rows = _viewed(graph, node, x, (shape[0], shape[1], product(shape[2:])))
    op = find("", kind, 11).from_attributes({"axes": (2,), "keepdims": 1})
    return _viewed(graph, node, _put(graph, node, op, rows), node.outputs[0].tensor.dims)


def _reduction(graph: Graph, node: Node) -> Made:
    """Over axes with others between them: these come first, so that rows are reduced."""
    x = node.inputs[0]
    axes = _axes(node)
    if x is None or not axes:
        return None
    shape, rank = x.tensor.dims, x.tensor.rank
    named = sorted({axis % rank for axis in axes})
    long = [axis for axis in named if shape[axis] != 1]
    if not long or len([a for a in range(long[0], long[-1]) if shape[a] != 1]) == len(long) - 1:
        return None
    kept = [axis for axis in range(rank) if axis not in named]
    turned = _turned(graph, node, x, [*kept, *named])
    lead = [shape[axis] for axis in kept]
    rows = _viewed(graph, node, turned, [*lead, product(shape[axis] for axis in named)])
    op = find("", node.kind, 11).from_attributes({"axes": (len(kept),), "keepdims": 0})
    return _viewed(graph, node, _put(graph, node, op, rows), node.outputs[0].tensor.dims)


def _axes(node: Node) -> list[int] | None:
    """The axes that a reduction names, where it names any that are known."""
    if isinstance(node.op, ReduceOverAttribute):
        return list(node.op.axes or ())
    if isinstance(node.op, ReduceOverInput) and len(node.inputs) > 1:
        given = node.inputs[1]
        if given is not None and given.constant is not None:
            return [int(item) for item in given.constant.reshape(-1)]
    return None


_MAKERS: dict[str, Callable[[Graph, Node], Made]] = {
    "Einsum": _einsum,
    "GroupNormalization": _group_norm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    **{
        f"Reduce{kind}": _reduction
        for kind in (
            *("Sum", "Mean", "Max", "Min", "Prod", "SumSquare"),
            *("L1", "L2", "LogSum", "LogSumExp"),
        )
    },
}
