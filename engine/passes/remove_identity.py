"""Take out nodes that pass their input through unchanged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.ir.graph import Graph, Node, Value
from engine.ir.types import TensorType

__all__ = ["remove_identity"]


def _same_type(node: Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.type == node.outputs[0].type


def _drops_nothing(node: Node) -> bool:
    """A Dropout at inference: no mask is read, and it is not told to train."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and (training.constant is None or bool(training.constant.any())):
        return False
    return node.only_first_read and _same_type(node)


def _keeps_order(node: Node) -> bool:
    perm = getattr(node.op, "perm", None)
    return perm is not None and tuple(perm) == tuple(range(len(perm)))


def _takes_all(node: Node) -> bool:
    """A Slice with unit steps whose result has its input's shape."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    forward = steps is None or (steps.constant is not None and bool((steps.constant == 1).all()))
    return forward and _keeps_shape(node)


def _keeps_shape(node: Node) -> bool:
    kind = node.outputs[0].type
    return isinstance(kind, TensorType) and kind.shape is not None and _same_type(node)


def _one_input(node: Node) -> bool:
    return len(node.inputs) == 1


def _neutral(number: float, positions: tuple[int, ...]) -> Callable[[Node], Value | None]:
    """A binary operator one of whose inputs changes nothing; the other input takes its place."""

    def survivor(node: Node) -> Value | None:
        for position in positions:
            other, kept = node.inputs[position], node.inputs[1 - position]
            if other is None or kept is None or other.constant is None:
                continue
            if kept.type == node.outputs[0].type and _all_equal(other, number):
                return kept
        return None

    return survivor


def _all_equal(value: Value, number: float) -> bool:
    array = value.constant
    assert array is not None
    return array.size > 0 and array.dtype.kind in "fiu" and bool(np.all(array == number))


def _first_when(check: Callable[[Node], bool]) -> Callable[[Node], Value | None]:
    return lambda node: node.inputs[0] if node.inputs and check(node) else None


def _pads_nothing(node: Node) -> bool:
    pads = getattr(node.op, "pads", None)
    if pads is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].constant
        pads = None if constant is None else constant.reshape(-1).tolist()
    return pads is not None and not any(pads)


#: Operator name -> the input that can take the node's place, or None.
_SURVIVORS: dict[str, Callable[[Node], Value | None]] = {
    "Identity": _first_when(lambda node: True),
    "Dropout": _first_when(_drops_nothing),
    "Cast": _first_when(_same_type),
    "CastLike": _first_when(_same_type),
    "Reshape": _first_when(_keeps_shape),
    "Flatten": _first_when(_keeps_shape),
    "View": _first_when(_keeps_shape),
    "Expand": _first_when(_keeps_shape),
    "Tile": _first_when(_keeps_shape),
    "Pad": _first_when(lambda node: _keeps_shape(node) and _pads_nothing(node)),
    "Transpose": _first_when(_keeps_order),
    "Slice": _first_when(_takes_all),
    "Concat": _first_when(_one_input),
    "Mul": _neutral(1, (1, 0)),
    "Div": _neutral(1, (1,)),
    "Sub": _neutral(0, (1,)),
    "Pow": _neutral(1, (1,)),
}


def remove_identity(graph: Graph) -> bool:
    """Remove them, except where an input of the graph would become its output."""
    changed = False
    for node in list(graph.nodes):
        for body in node.bodies:
            changed |= remove_identity(body)
        find_survivor = _SURVIVORS.get(node.kind)
        survivor = find_survivor(node) if find_survivor else None
        if survivor is None:
            continue
        if graph.is_output(node.outputs[0]) and (
            survivor in graph.inputs or survivor.constant is not None or graph.is_output(survivor)
        ):
            continue
        graph.replace_value(node.outputs[0], survivor)
        graph.remove(node)
        changed = True
    return changed
