"""A matrix product between two views is computed in the shape that is read.

Exporters flatten the leading axes before a product and restore them behind it. With the views in
front of the product alone, what reads the result is next to it and can join it.
"""

from __future__ import annotations

from engine.fusions.fusion import only_user
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim, product
from engine.ir.types import TensorType
from engine.ops.fused import FusedMatMul
from engine.ops.view import View

__all__ = ["lift_views"]


def lift_views(graph: Graph) -> bool:
    """Move the view behind a product of rows with one matrix in front of it."""
    changed = False
    for node in list(graph.nodes):
        if isinstance(node.op, FusedMatMul):
            changed |= _lift(graph, node)
    return changed


def _lift(graph: Graph, node: Node) -> bool:
    a, b, output = node.inputs[0], node.inputs[1], node.outputs[0]
    view = only_user(graph, output)
    if a is None or b is None or view is None or view.kind != "View":
        return False
    op = node.op
    assert isinstance(op, FusedMatMul)
    shape, found = view.outputs[0].tensor.dims, output.tensor.dims
    rows, columns = product(found[:-1]), found[-1]
    if b.tensor.rank != 2 or not shape or shape[-1] != columns or product(shape[:-1]) != rows:
        return False
    if a.tensor.rank < 2 or len(shape) < 2 or "row" in op.kinds:
        return False
    inputs: list[Value | None] = [_viewed(graph, node, a, (*shape[:-1], a.tensor.dims[-1])), b]
    for kind, value in zip(op.kinds, node.inputs[2:], strict=True):
        assert value is not None
        inputs.append(_viewed(graph, node, value, shape) if kind == "full" else value)
    result = graph.value(view.outputs[0].name, view.outputs[0].type)
    made = Node(op, inputs, [result], name=graph.fresh_name(node.name), sources=node.sources)
    graph.insert_before(node, made)
    infer_node(graph, made)
    graph.replace_value(view.outputs[0], result)
    graph.remove(view)
    graph.remove(node)
    return True


def _viewed(graph: Graph, anchor: Node, value: Value, shape: tuple[Dim, ...]) -> Value:
    """A value in another shape, by a view in front of the anchor."""
    if value.tensor.dims == shape:
        return value
    if value.constant is not None and all(isinstance(size, int) for size in shape):
        return graph.constant(value.name, value.constant.reshape(shape))
    result = graph.value(f"{value.name}.rows", TensorType(value.tensor.dtype, shape))
    name = graph.fresh_name(f"{anchor.name}.view")
    graph.insert_before(anchor, Node(View(shape), [value], [result], name=name))
    return result
