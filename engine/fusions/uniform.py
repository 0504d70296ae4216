"""What a value holds whatever sizes and inputs are: constants seen through broadcasts.

Exporters make masks of an open batch size by arithmetic over ranges and expanded constants, which
cannot be folded because its shape is not known. Along an axis where all elements are equal the
size does not matter: such a value is an array with a 1 there, and most operators act on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim
from engine.ir.types import Array, TensorType, is_bound
from engine.ops.elementwise import ElementwiseOperator

__all__ = ["constant_like", "range_axis", "unit_axes"]

#: Elements of the largest array that is worth looking at.
LARGEST = 1 << 24
_DEEPEST = 64


def constant_like(value: Value | None, depth: int = 0) -> Array | None:
    """An array of the value's rank that broadcasts to the value, if one is certain, else None."""
    if value is None or depth > _DEEPEST:
        return None
    if value.constant is not None:
        return value.constant if value.constant.size <= LARGEST else None
    node = value.producer
    if node is None or not is_bound(value.type) or node.bodies:
        return None
    if isinstance(node.op, ElementwiseOperator):
        found = _elementwise(node, depth)
    else:
        rule = _RULES.get(node.kind)
        found = None if rule is None else rule(node, depth)
    if found is None or found.size > LARGEST:
        return None
    return found.reshape((1,) * (value.tensor.rank - found.ndim) + found.shape)


def unit_axes(shape: Sequence[Dim], wanted: Sequence[Dim]) -> dict[int, int] | None:
    """New axis -> old axis of a view that only adds or drops axes of one element, else None."""
    old = [axis for axis, size in enumerate(shape) if size != 1]
    new = [axis for axis, size in enumerate(wanted) if size != 1]
    if [shape[axis] for axis in old] != [wanted[axis] for axis in new]:
        return None
    return dict(zip(new, old))


def range_axis(value: Value) -> int | None:
    """The axis along which a value holds 0, 1, 2, ...; all others repeat it. None if there is none.

    Follows views that add axes of one element, and Expand.
    """
    node = value.producer
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if node.kind == "Range":
        first, _, step = node.inputs
        numbers = [None if v is None or v.constant is None else v.constant for v in (first, step)]
        found = [None if n is None else float(n.reshape(-1)[0]) for n in numbers]
        return 0 if found == [0.0, 1.0] else None
    if node.kind not in ("View", "Expand", "Unsqueeze", "Reshape"):
        return None
    below = range_axis(node.inputs[0])
    if below is None:
        return None
    shape, wanted = node.inputs[0].tensor.dims, value.tensor.dims
    if node.kind == "Expand":
        return below + len(wanted) - len(shape) if shape[below] != 1 else None
    axes = unit_axes(shape, wanted)
    return next((new for new, old in (axes or {}).items() if old == below), None)


def _whole(array: Array, dims: Sequence[Dim], axis: int) -> Array | None:
    """The array with every element along one axis; None when the axis's size is not known."""
    size = dims[axis]
    if array.shape[axis] == size:
        return array
    if not isinstance(size, int) or array.size * size > LARGEST:
        return None
    shape = [*array.shape[:axis], size, *array.shape[axis + 1 :]]
    return np.broadcast_to(array, shape)


def _elementwise(node: Node, depth: int) -> Array | None:
    arrays = []
    for value in node.inputs:
        found = constant_like(value, depth + 1)
        if found is None:
            return None
        arrays.append(found)
    return np.asarray(node.op.meaning(*arrays)) if arrays else None


def _expand(node: Node, depth: int) -> Array | None:
    return constant_like(node.inputs[0], depth + 1)


def _view(node: Node, depth: int) -> Array | None:
    source = node.inputs[0]
    found = constant_like(source, depth + 1)
    if found is None or source is None:
        return None
    shape, wanted = source.tensor.dims, node.outputs[0].tensor.dims
    axes = unit_axes(shape, wanted)
    if axes is not None:
        return found.reshape([found.shape[axes[i]] if i in axes else 1 for i in range(len(wanted))])
    if found.size == 1:
        return found.reshape((1,) * len(wanted))
    for axis in range(len(shape)):
        whole = _whole(found, shape, axis)
        if whole is None:
            return None
        found = whole
    sizes = [size for size in wanted if isinstance(size, int)]
    return found.reshape(sizes) if len(sizes) == len(wanted) else None


def _transpose(node: Node, depth: int) -> Array | None:
    found = constant_like(node.inputs[0], depth + 1)
    if found is None:
        return None
    perm = getattr(node.op, "perm", None) or tuple(range(found.ndim))[::-1]
    return found.transpose(perm)


def _slice(node: Node, depth: int) -> Array | None:
    """Along an axis of equal elements nothing changes; the others are cut."""
    source = node.inputs[0]
    found = constant_like(source, depth + 1)
    given = [None if v is None else v.constant for v in node.inputs[1:]]
    if found is None or source is None or len(given) < 2 or given[0] is None or given[1] is None:
        return None
    if any(v is not None and v.constant is None for v in node.inputs[1:]):
        return None
    starts, ends = given[0].reshape(-1), given[1].reshape(-1)
    places = given[2] if len(given) > 2 else None
    axes = np.arange(len(starts)) if places is None else places.reshape(-1)
    strides = given[3] if len(given) > 3 else None
    steps = np.ones(len(starts), np.int64) if strides is None else strides.reshape(-1)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        place = int(axis) % found.ndim
        if found.shape[place] == 1 and source.tensor.dims[place] != 1:
            continue
        if step < 1:
            return None
        index: list[slice] = [slice(None)] * found.ndim
        index[place] = slice(int(start), int(end), int(step))
        found = found[tuple(index)]
    return found


def _concat(node: Node, depth: int) -> Array | None:
    parts: list[Array] = []
    axis = int(getattr(node.op, "axis", 0))
    for value in node.inputs:
        found = constant_like(value, depth + 1)
        if found is None or value is None:
            return None
        axis %= found.ndim
        whole = _whole(found, value.tensor.dims, axis)
        if whole is None:
            return None
        parts.append(whole)
    others = np.broadcast_shapes(*(np.delete(part.shape, axis).tolist() for part in parts))
    shape = [(*others[:axis], part.shape[axis], *others[axis:]) for part in parts]
    return np.concatenate([np.broadcast_to(p, s) for p, s in zip(parts, shape)], axis)


def _cumulative(node: Node, depth: int) -> Array | None:
    source, axis = node.inputs[0], constant_like(node.inputs[1], depth + 1)
    found = constant_like(source, depth + 1)
    if found is None or source is None or axis is None or axis.size != 1:
        return None
    place = int(axis.reshape(-1)[0]) % found.ndim
    whole = _whole(found, source.tensor.dims, place)
    return None if whole is None else np.asarray(node.op.meaning(whole, np.array(place)))


def _trilu(node: Node, depth: int) -> Array | None:
    source = node.inputs[0]
    found = constant_like(source, depth + 1)
    if found is None or source is None:
        return None
    for axis in (found.ndim - 2, found.ndim - 1):
        whole = _whole(found, source.tensor.dims, axis)
        if whole is None:
            return None
        found = whole
    diagonal = constant_like(node.inputs[1], depth + 1) if len(node.inputs) > 1 else np.array(0)
    return None if diagonal is None else np.asarray(node.op.meaning(found, diagonal))


def _range(node: Node, depth: int) -> Array | None:
    arrays = [constant_like(value, depth + 1) for value in node.inputs]
    given = [array for array in arrays if array is not None]
    return np.asarray(node.op.meaning(*given)) if len(given) == len(arrays) else None


def _filled(node: Node, depth: int) -> Array | None:
    """ConstantOfShape: one number, whatever the shape."""
    kind = node.outputs[0].type
    if not isinstance(kind, TensorType):
        return None
    one = node.op.meaning(np.ones(1, np.int64))
    return np.asarray(one).reshape((1,) * kind.rank)


_RULES: dict[str, Callable[[Node, int], Array | None]] = {
    "ConstantOfShape": _filled,
    "Concat": _concat,
    "CumSum": _cumulative,
    "Expand": _expand,
    "Range": _range,
    "Reshape": _view,
    "Slice": _slice,
    "Squeeze": _view,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _view,
    "View": _view,
}
