"""Turn every operator that only changes a shape into one kind of node, the view."""

from __future__ import annotations

import numpy as np

from engine.ir.graph import Graph, Node
from engine.ir.sizes import Dim
from engine.ir.strided import contiguous_strides, trace
from engine.ir.types import DType, is_bound
from engine.ops.view import View

__all__ = ["make_views"]

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "View")


def make_views(graph: Graph) -> bool:
    """Rewrite reshapes, transposes of unit axes and gathers of everything in order; join chains."""
    changed = False
    for node in list(graph.nodes):
        if node.kind in _RESHAPES or _moves_only_units(node) or _gathers_in_order(node):
            changed |= _rewrite(graph, node)
        elif node.kind == "Transpose":
            changed |= _restore_order(graph, node)
    return changed


def _moves_only_units(node: Node) -> bool:
    """A Transpose that keeps the order of all axes longer than one."""
    source = node.inputs[0] if node.inputs else None
    if node.kind != "Transpose" or source is None or not is_bound(source.type):
        return False
    shape = source.tensor.dims
    perm = getattr(node.op, "perm", None) or tuple(range(len(shape)))[::-1]
    kept = [axis for axis in perm if shape[axis] != 1]
    return kept == sorted(kept)


def _restore_order(graph: Graph, node: Node) -> bool:
    """A transpose that undoes what views and transposes above it did is a view of their source."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.producer is None or source.producer.kind != "View":
        return False
    found = trace(output)
    dense = contiguous_strides(found.shape)
    if found.root is source or found.offset != 0 or found.factor != 1.0:
        return False
    if found.root.tensor.elements != output.tensor.elements:
        return False
    pairs = zip(found.shape, found.strides, dense)
    if any(size != 1 and step != wanted for size, step, wanted in pairs):
        return False
    node.set_input(0, found.root)
    node.op = View(output.tensor.dims)
    return True


def _gathers_in_order(node: Node) -> bool:
    """A GatherND whose constant indices name every element once, in order."""
    if node.kind != "GatherND" or getattr(node.op, "batch_dims", 0) != 0:
        return False
    source, indices = node.inputs[0], node.inputs[1]
    if source is None or indices is None or indices.constant is None:
        return False
    places = indices.constant
    leading = source.tensor.dims[: places.shape[-1]] if is_bound(source.type) else ()
    if not places.size or not all(isinstance(size, int) for size in leading):
        return False
    sizes = np.array([int(size) for size in leading], np.int64)  # type: ignore[arg-type]
    if len(sizes) != places.shape[-1] or places.size != sizes.prod() * len(sizes):
        return False
    flat = places.reshape(-1, len(sizes))
    flat = np.where(flat < 0, flat + sizes, flat)
    steps = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
    return bool(np.array_equal(flat @ steps, np.arange(len(flat))))


def _rewrite(graph: Graph, node: Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or not is_bound(source.type) or not is_bound(output.type):
        return False
    if output.tensor.dtype is DType.STRING:
        return False  # strings are Python's, not bytes in a buffer
    if source.tensor.elements != output.tensor.elements:
        return False  # whether the sizes fit is seen when it runs
    above = source.producer
    joined = above is not None and above.kind == "View"
    if node.kind == "View" and not joined:
        return False
    if joined:
        assert above is not None
        source = above.inputs[0]
    shape: tuple[Dim, ...] = output.tensor.dims
    view = Node(
        View(shape),
        [source],
        [graph.value(output.name, output.type)],
        name=graph.fresh_name(node.name),
        sources=node.sources,
    )
    graph.insert_before(node, view)
    graph.replace_value(output, view.outputs[0])
    graph.remove(node)
    return True
