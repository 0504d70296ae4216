"""Transposes of rows pass through products with one matrix: towards an attention, from both sides.

Attention modules that put the sequence first turn their input, project it, and turn the result of
the attention back. A product of rows with one matrix does not mind their order, so the transposes
can stand next to the attention, which reads and writes through strides.
"""

from __future__ import annotations

from engine.fusions.fusion import only_user
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim, product
from engine.ir.types import TensorType, is_bound
from engine.ops.view import View
from engine.passes.choose_layout import transpose_before

__all__ = ["move_row_transposes"]

Perm = tuple[int, ...]


def move_row_transposes(graph: Graph) -> bool:
    """One sweep over all transposes that keep the last axis."""
    changed = False
    for node in list(graph.nodes):
        if node.graph is graph and node.kind == "Transpose" and _keeps_last(node):
            changed |= _behind(graph, node) or _before(graph, node)
    return changed


def _perm(node: Node) -> Perm:
    return tuple(getattr(node.op, "perm", None) or ())


def _keeps_last(node: Node) -> bool:
    perm = _perm(node)
    bound = all(v is not None and is_bound(v.type) for v in (*node.inputs, *node.outputs))
    return bound and len(perm) > 1 and perm[-1] == len(perm) - 1


def _is_matrix(value: Value | None) -> bool:
    return value is not None and value.constant is not None and value.constant.ndim == 2


def _is_row(value: Value | None) -> bool:
    """A constant that has one value per column, or one in all."""
    return (
        value is not None
        and value.constant is not None
        and all(size == 1 for size in value.constant.shape[:-1])
    )


def _behind(graph: Graph, node: Node) -> bool:
    """MatMul(transpose(x), w) => transpose(MatMul(x, w)), and the same for an added row."""
    source, turned = node.inputs[0], node.outputs[0]
    user = only_user(graph, turned)
    if source is None or user is None or user.kind not in ("MatMul", "Add"):
        return False
    place = 0 if user.inputs[0] is turned else 1
    other = user.inputs[1 - place]
    if user.kind == "MatMul":
        if place != 0 or not _is_matrix(other):
            return False
    elif not _is_row(other) or user.outputs[0].tensor.dims != turned.tensor.dims:
        return False
    inputs: list[Value | None] = [source, other] if place == 0 else [other, source]
    result = graph.value(user.outputs[0].name, user.outputs[0].type)
    moved = Node(user.op, inputs, [result], name=graph.fresh_name(user.name), sources=user.sources)
    graph.insert_before(user, moved)
    infer_node(graph, moved)
    graph.replace_value(user.outputs[0], transpose_before(graph, user, result, _perm(node)))
    graph.remove(user)
    graph.remove(node)
    return True


def _before(graph: Graph, node: Node) -> bool:
    """transpose(view(Gemm(view(x), w))) => view(Gemm(view(transpose(x)), w))."""
    found = _flattened(graph, node)
    if found is None:
        return False
    chain, source = found
    perm, shape = _perm(node), source.tensor.dims
    rows = len(perm) - 1
    turned = transpose_before(graph, chain[0], source, (*perm[:-1], *range(rows, len(shape))))
    flat = chain[1].inputs[0]
    assert flat is not None
    value = _view(graph, chain[0], turned, flat.tensor.dims)
    for step in chain[1:-1]:
        inputs = [
            value if item is step.inputs[_place(step, chain)] else item for item in step.inputs
        ]
        result = graph.value(step.outputs[0].name, step.outputs[0].type)
        name = graph.fresh_name(step.name)
        made = Node(step.op, inputs, [result], name=name, sources=step.sources)
        graph.insert_before(node, made)
        infer_node(graph, made)
        value = result
    graph.replace_value(node.outputs[0], _view(graph, node, value, node.outputs[0].tensor.dims))
    graph.remove(node)
    for step in reversed(chain):
        graph.remove(step)
    return True


def _place(step: Node, chain: list[Node]) -> int:
    """Which input of a step of the chain comes from the step before."""
    before = chain[chain.index(step) - 1].outputs[0]
    return next(i for i, item in enumerate(step.inputs) if item is before)


def _flattened(graph: Graph, node: Node) -> tuple[list[Node], Value] | None:
    """The nodes between a transpose and what was flattened above it, first to last."""
    chain: list[Node] = []
    value = node.inputs[0]
    below = node
    while value is not None and value.producer is not None:
        step = value.producer
        if only_user(graph, value) is not below:
            return None
        chain.insert(0, step)
        if step.kind == "View":
            if len(chain) > 1:
                source = step.inputs[0]
                assert source is not None
                return (chain, source) if _fits(chain, source, node) else None
            value = step.inputs[0]
        elif _multiplies_rows(step):
            value = step.inputs[0]
        elif step.kind == "Add" and any(map(_is_row, step.inputs)):
            value = step.inputs[1] if _is_row(step.inputs[0]) else step.inputs[0]
        else:
            return None
        below = step
    return None


def _multiplies_rows(step: Node) -> bool:
    """A product of rows with one matrix, and at most a row added to it."""
    if step.kind not in ("Gemm", "MatMul") or not _is_matrix(step.inputs[1]):
        return False
    bias = step.inputs[2] if len(step.inputs) > 2 else None
    return not getattr(step.op, "transA", 0) and (bias is None or _is_row(bias))


def _fits(chain: list[Node], source: Value, node: Node) -> bool:
    """The rows of the source are those of the transpose, flattened to one axis in between."""
    if chain[-1].kind != "View" or len(chain) < 3:
        return False
    before = node.inputs[0]
    flat = chain[0].outputs[0].tensor.dims
    assert before is not None
    rows = before.tensor.dims[:-1]
    shape = source.tensor.dims
    return len(flat) == 2 and shape[: len(rows)] == rows and flat[0] == product(rows)


def _view(graph: Graph, anchor: Node, value: Value, shape: tuple[Dim, ...]) -> Value:
    if value.tensor.dims == shape:
        return value
    result = graph.value(value.name, TensorType(value.tensor.dtype, shape))
    name = graph.fresh_name(f"{anchor.name}.view")
    graph.insert_before(anchor, Node(View(shape), [value], [result], name=name))
    return result
