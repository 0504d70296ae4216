"""Elementwise operators behind a view that drops an axis of size 1 run before it.

A convolution over one axis is one over images of one line: with the views behind what reads it, the
next operators join it, and the view meets the one that makes an image of the result again.
"""

from __future__ import annotations

from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim
from engine.ir.types import TensorType, is_bound
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.fused import FusedConv
from engine.ops.view import View

__all__ = ["lift_unit_axes"]

Shape = tuple[Dim, ...]


def lift_unit_axes(graph: Graph) -> bool:
    """Rewrite every elementwise operator behind such a view of a convolution's result."""
    changed = False
    for node in list(graph.nodes):
        if node.graph is graph and isinstance(node.op, ElementwiseOperator):
            changed |= _lift(graph, node)
    return changed


def _lift(graph: Graph, node: Node) -> bool:
    output = node.outputs[0]
    found = [_image(value) for value in node.inputs]
    images = [item for item in found if item is not None]
    if not images or not is_bound(output.type):
        return False
    shape, wide = output.tensor.dims, images[0].tensor.dims
    if any(item.tensor.dims != wide for item in images):
        return False
    if [size for size in shape if size != 1] != [size for size in wide if size != 1]:
        return False
    inputs: list[Value | None] = []
    for value, image in zip(node.inputs, found, strict=True):
        other = (
            image if value is None or image is not None else _as_image(graph, value, shape, wide)
        )
        if value is not None and other is None:
            return False
        inputs.append(other)
    result = Value(graph.fresh_name(f"{output.name}.image"), TensorType(output.tensor.dtype, wide))
    made = Node(node.op, inputs, [result], name=graph.fresh_name(node.name), sources=node.sources)
    graph.insert_before(node, made)
    infer_node(graph, made)
    back = graph.value(output.name, output.type)
    view = Node(View(shape), [result], [back], name=graph.fresh_name(f"{node.name}.view"))
    graph.insert_before(node, view)
    infer_node(graph, view)
    graph.replace_value(output, back)
    graph.remove(node)
    return True


def _image(value: Value | None) -> Value | None:
    """The image that a value is a view of without an axis of size 1."""
    maker = None if value is None else value.producer
    if maker is None or maker.kind != "View" or value is None:
        return None
    (source,) = maker.inputs
    if source is None or source.producer is None or not is_bound(source.type):
        return None
    if source.tensor.rank != 4 or value.tensor.rank != 3:
        return None
    if not isinstance(source.producer.op, FusedConv | ElementwiseOperator):
        return None
    pairs = ([n for n in item.tensor.dims if n != 1] for item in (source, value))
    before, after = pairs
    return source if before == after else None


def _as_image(graph: Graph, value: Value, shape: Shape, wide: Shape) -> Value | None:
    """A constant that broadcasts to a shape, as it broadcasts to the image."""
    if value.constant is None:
        return None
    if value.constant.size == 1:
        return value
    array = value.constant
    sizes = iter([1] * (len(shape) - array.ndim) + list(array.shape))
    long = [size for size, whole in zip(sizes, shape) if whole != 1]
    places = iter(long)
    return graph.constant(
        value.name, array.reshape([next(places) if size != 1 else 1 for size in wide])
    )
