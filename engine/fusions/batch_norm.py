"""A batch norm that no convolution can take becomes one multiplication and one addition."""

from __future__ import annotations

from engine.fusions.conv_batch_norm import scale_and_shift
from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ops.operator import find

__all__ = ["batch_norm"]


@fusion("batch_norm(x) => x * s + t", "BatchNormalization")
def batch_norm(graph: Graph, node: Node) -> Match | Refused | None:
    """Only after the convolution's own rule had its turn."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.tensor.shape is None:
        return None
    if source.producer is not None and source.producer.kind == "Conv" and len(source.uses) == 1:
        return None
    if not node.only_first_read or getattr(node.op, "training_mode", False):
        return Refused("the batch norm is in training mode")
    found = scale_and_shift(node)
    if found is None:
        return Refused("the statistics are not constant")
    if source.tensor.shape[1:2] != found[0].shape:
        return Refused("its channels are not known")
    shape = (-1, *(1,) * (len(source.tensor.shape) - 2))
    kind = source.tensor.dtype.numpy
    scale, shift = (
        graph.constant(f"{node.name}.{name}", array.reshape(shape).astype(kind))
        for name, array in zip(("scale", "shift"), found)
    )
    product = Node(
        find("", "Mul", 14).from_attributes({}),
        [source, scale],
        [Value(graph.fresh_name(f"{node.name}.scaled"), output.type)],
        name=graph.fresh_name(f"{node.name}.scaled"),
        sources=node.sources,
    )
    graph.insert_before(node, product)
    infer_node(graph, product)
    add = find("", "Add", 14).from_attributes({})
    return Match(add, [product.outputs[0], shift], output, [node])
