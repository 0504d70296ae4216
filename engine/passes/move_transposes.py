"""Move transposes towards the outputs, through operators that do not mind, until they cancel."""

from __future__ import annotations

from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import TensorType, is_bound
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.operator import Operator, find
from engine.ops.view import View
from engine.passes.choose_layout import transpose_before
from engine.passes.turn_axes import TURNED_KINDS, turned_axes

__all__ = ["join_transposes", "move_transposes"]

Perm = tuple[int, ...]


def move_transposes(graph: Graph) -> bool:
    """One sweep in order; chains of transposes become one, pairs that cancel disappear."""
    changed = False
    for node in list(graph.nodes):
        if node.graph is not graph:
            continue
        if node.kind == "Transpose":
            changed |= _join(graph, node)
        elif isinstance(node.op, ElementwiseOperator):
            changed |= _through_elementwise(graph, node)
        elif node.kind == "Concat":
            changed |= _through_concat(graph, node)
        elif node.kind in TURNED_KINDS:
            changed |= _through_axes(graph, node)
        elif node.kind == "View":
            changed |= _through_view(graph, node)
    return changed


def join_transposes(graph: Graph) -> bool:
    """Chains of transposes become one, pairs that cancel disappear."""
    changed = False
    for node in list(graph.nodes):
        if node.graph is graph and node.kind == "Transpose":
            changed |= _join(graph, node)
    return changed


def _perm(node: Node, rank: int) -> Perm:
    return tuple(getattr(node.op, "perm", None) or tuple(range(rank))[::-1])


def inverse(perm: Perm) -> Perm:
    """The permutation that undoes another."""
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def _turned(value: Value | None) -> tuple[Value, Perm] | None:
    """What a value is a transpose of, and how."""
    if value is None or value.producer is None or value.producer.kind != "Transpose":
        return None
    source = value.producer.inputs[0]
    assert source is not None
    return source, _perm(value.producer, len(source.tensor.dims))


def _join(graph: Graph, node: Node) -> bool:
    found = _turned(node.inputs[0])
    if found is None:
        return False
    source, first = found
    second = _perm(node, len(first))
    joined = tuple(first[axis] for axis in second)
    output = node.outputs[0]
    if joined == tuple(range(len(joined))):
        if graph.is_output(output) and (source in graph.inputs or graph.is_output(source)):
            return False
        graph.replace_value(output, source)
    else:
        graph.replace_value(output, transpose_before(graph, node, source, joined))
    above = node.inputs[0].producer if node.inputs[0] is not None else None
    graph.remove(node)
    if above is not None and not above.outputs[0].uses and not graph.is_output(above.outputs[0]):
        graph.remove(above)
    return True


def _through_elementwise(graph: Graph, node: Node) -> bool:
    """f(transpose(a), transpose(b)) => transpose(f(a, b)); constants are turned on the spot."""
    output = node.outputs[0]
    if not isinstance(output.type, TensorType) or output.type.shape is None:
        return False
    perms = [found[1] for value in node.inputs if (found := _turned(value)) is not None]
    rank = len(output.type.shape)
    if not perms or len(set(perms)) != 1 or len(perms[0]) != rank:
        return False
    perm = perms[0]
    inputs: list[Value | None] = []
    for value in node.inputs:
        found = _turned(value)
        if value is None or found is not None:
            inputs.append(found[0] if found else None)
            continue
        turned = _turn_other(graph, node, value, perm, output)
        if turned is None:
            return False
        inputs.append(turned)
    _rewrite(graph, node, node.op, inputs, perm)
    return True


def _turn_other(graph: Graph, node: Node, value: Value, perm: Perm, output: Value) -> Value | None:
    """An input that is no transpose, as the moved operator must read it."""
    shape = value.tensor.shape
    if shape is None:
        return None
    if all(dim == 1 for dim in shape):
        return value
    back = inverse(perm)
    if value.constant is not None:
        array = value.constant.reshape((1,) * (len(perm) - len(shape)) + value.constant.shape)
        return graph.constant(value.name, array.transpose(back).copy(), origin=None)
    if shape == output.tensor.dims:
        return transpose_before(graph, node, value, back)
    return None


def _through_concat(graph: Graph, node: Node) -> bool:
    found = [_turned(value) for value in node.inputs]
    perms = {item[1] for item in found if item is not None}
    if not found or any(item is None for item in found) or len(perms) != 1:
        return False
    (perm,) = perms
    axis = int(getattr(node.op, "axis", 0))
    axis = axis + len(perm) if axis < 0 else axis
    op = find("", "Concat", 13).from_attributes({"axis": perm[axis]})
    _rewrite(graph, node, op, [item[0] for item in found if item is not None], perm)
    return True


def _through_axes(graph: Graph, node: Node) -> bool:
    """What cuts or pads a transposed tensor does so before the transpose."""
    found = _turned(node.inputs[0])
    if found is None or not all(isinstance(v.type, TensorType) for v in node.outputs):
        return False
    source, perm = found
    made = turned_axes(graph, node, perm)
    if made is None:
        return False
    _rewrite(graph, node, made[0], [source, *made[1]], perm)
    return True


def _through_view(graph: Graph, node: Node) -> bool:
    """A view that adds or drops axes of size 1 does so before the transpose."""
    found = _turned(node.inputs[0])
    if found is None or node.inputs[0] is None or not is_bound(node.inputs[0].type):
        return False
    source, perm = found
    turned, shape = node.inputs[0].tensor.dims, node.outputs[0].tensor.dims
    kept = [axis for axis, size in zip(perm, turned) if size != 1]
    long = [place for place, size in enumerate(shape) if size != 1]
    if [shape[place] for place in long] != [size for size in turned if size != 1] or not long:
        return False
    # An axis of size 1 stays before the axis that follows it, or behind the last one.
    groups = {
        axis: list(range((long[i - 1] + 1) if i else 0, place + 1))
        for i, (axis, place) in enumerate(zip(kept, long, strict=True))
    }
    groups[kept[-1]] += range(long[-1] + 1, len(shape))
    order = [place for axis in sorted(kept) for place in groups[axis]]
    op = View(tuple(shape[place] for place in order))
    _rewrite(graph, node, op, [source], inverse(tuple(order)))
    return True


def _rewrite(
    graph: Graph, node: Node, op: Operator, inputs: list[Value | None], perm: Perm
) -> None:
    """Replace a node by the operator over untransposed inputs, followed by the transpose."""
    results = [Value(graph.fresh_name(output.name), output.type) for output in node.outputs]
    moved = Node(op, inputs, results, name=graph.fresh_name(node.name), sources=node.sources)
    graph.insert_before(node, moved)
    infer_node(graph, moved)
    for output, result in zip(list(node.outputs), results, strict=True):
        graph.replace_value(output, transpose_before(graph, node, result, perm))
    producers = [v.producer for v in node.inputs if v is not None and v.producer is not None]
    graph.remove(node)
    for producer in dict.fromkeys(producers):
        value = producer.outputs[0]
        if producer.kind == "Transpose" and not value.uses and not graph.is_output(value):
            graph.remove(producer)
