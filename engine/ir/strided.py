"""Reading a value through the views, transposes and slices that made it, without a copy."""

from __future__ import annotations

from dataclasses import dataclass

from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, floordiv

__all__ = ["Strided", "contiguous_strides", "trace"]

Dims = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Strided:
    """Elements of ``root``, seen with a shape: offset and strides in elements.

    ``factor`` is a number by which every element is to be multiplied.
    """

    root: Value
    offset: Dim
    shape: Dims
    strides: Dims
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class _Axes:
    """Like `Strided`, but each axis is a list of (size, stride), outermost first.

    A view that merges axes which do not follow each other in memory keeps them side by side, so
    that a later view can part them again.
    """

    root: Value
    offset: Dim
    axes: tuple[tuple[tuple[Dim, Dim], ...], ...]
    factor: float = 1.0


def contiguous_strides(shape: Dims) -> Dims:
    """Element strides of a row-major tensor."""
    strides: list[Dim] = []
    step: Dim = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))


def trace(value: Value) -> Strided:
    """Follow a value to what it is a strided view of; itself when nothing can be followed."""
    stop = None
    while True:
        found = _plain(_follow(value, stop))
        if found is not None:
            return found
        # Some view merged axes for good: what it gives is in memory, and is the root.
        stop = _last_merge(value, stop)


def _here(value: Value) -> _Axes:
    dims = value.tensor.dims
    pairs = zip(dims, contiguous_strides(dims))
    return _Axes(value, 0, tuple(((size, step),) for size, step in pairs))


def _follow(value: Value, stop: Value | None = None) -> _Axes:
    node = value.producer
    if value is stop or node is None or not node.inputs or node.inputs[0] is None:
        return _here(value)
    rule = _FOLLOW.get(node.kind)
    found = rule(node, value, stop) if rule is not None else None
    return _here(value) if found is None else found


def _plain(axes: _Axes) -> Strided | None:
    """With one stride for every axis, if that is possible."""
    pairs = [_joined(axis) for axis in axes.axes]
    if any(len(axis) > 1 for axis in pairs):
        return None
    shape = tuple(axis[0][0] if axis else 1 for axis in pairs)
    strides = tuple(axis[0][1] if axis else 0 for axis in pairs)
    return Strided(axes.root, axes.offset, shape, strides, axes.factor)


def _joined(axis: tuple[tuple[Dim, Dim], ...]) -> tuple[tuple[Dim, Dim], ...]:
    """An axis with neighbours that follow each other in memory made one; sizes of 1 dropped."""
    kept: list[tuple[Dim, Dim]] = []
    for size, step in axis:
        if size == 1 and len(axis) > 1:
            continue
        if kept and kept[-1][1] == size * step:
            kept[-1] = (kept[-1][0] * size, step)
        else:
            kept.append((size, step))
    return tuple(kept) or axis[:1]


def _last_merge(value: Value, stop: Value | None) -> Value:
    """The highest view on the way up to ``stop`` that merges axes which do not follow each other.

    ``value`` has no one stride for every axis, seen from there.
    """
    while True:
        node = value.producer
        assert node is not None
        below = _source(node)
        if _plain(_follow(below, stop)) is not None:
            return value
        value = below


def _source(node: Node) -> Value:
    """The input that is followed; a factor may come first."""
    first = node.inputs[0]
    if first is not None and first.constant is not None and node.kind == "Mul":
        first = node.inputs[1]
    assert first is not None
    return first


def _transpose(node: Node, value: Value, stop: Value | None) -> _Axes | None:
    below = _follow(_source(node), stop)
    rank = len(below.axes)
    perm = tuple(getattr(node.op, "perm", None) or tuple(range(rank))[::-1])
    axes = tuple(below.axes[axis] for axis in perm)
    return _Axes(below.root, below.offset, axes, below.factor)


def _view(node: Node, value: Value, stop: Value | None) -> _Axes | None:
    below = _follow(_source(node), stop)
    axes = _reshaped(below.axes, value.tensor.dims)
    return None if axes is None else _Axes(below.root, below.offset, axes, below.factor)


def _reshaped(
    axes: tuple[tuple[tuple[Dim, Dim], ...], ...], wanted: Dims
) -> tuple[tuple[tuple[Dim, Dim], ...], ...] | None:
    """The parts of all axes dealt out anew, from the right, to axes of the wanted sizes."""
    parts = [part for axis in axes for part in _joined(axis) if part[0] != 1]
    result: list[tuple[tuple[Dim, Dim], ...]] = []
    for size in reversed(wanted):
        taken: list[tuple[Dim, Dim]] = []
        covered: Dim = 1
        while covered != size:
            if not parts:
                return None
            count, step = parts.pop()
            if _divides(covered * count, size):
                taken.insert(0, (count, step))
                covered = covered * count
                continue
            inner = floordiv(size, covered)
            if not _divides(covered, size) or not _divides(inner, count):
                return None
            taken.insert(0, (inner, step))
            parts.append((floordiv(count, inner), step * inner))
            covered = size
        result.insert(0, tuple(taken) or ((1, 0),))
    return tuple(result) if not parts else None


def _divides(part: Dim, whole: Dim) -> bool:
    return part != 0 and floordiv(whole, part) * part == whole


def _single(axes: _Axes, axis: int) -> tuple[Dim, Dim] | None:
    """Size and stride of an axis that has one stride."""
    parts = _joined(axes.axes[axis])
    return parts[0] if len(parts) == 1 else None


def _cut(axes: _Axes, axis: int, first: Dim, size: Dim | None) -> _Axes | None:
    """A part of one axis, from ``first`` on; the axis goes away when ``size`` is None."""
    whole = _single(axes, axis)
    if whole is None:
        return None
    kept = () if size is None else (((size, whole[1]),),)
    cut = (*axes.axes[:axis], *kept, *axes.axes[axis + 1 :])
    return _Axes(axes.root, axes.offset + whole[1] * first, cut, axes.factor)


def _slice(node: Node, value: Value, stop: Value | None) -> _Axes | None:
    """A Slice with constant starts and unit steps along axes of known size."""
    numbers = [None if v is None or v.constant is None else v.constant for v in node.inputs[1:]]
    if len(numbers) < 3 or any(item is None for item in numbers[:3]):
        return None
    assert numbers[0] is not None and numbers[2] is not None
    if len(numbers) > 3 and (numbers[3] is None or (numbers[3] != 1).any()):
        return None
    source = _source(node)
    below: _Axes | None = _follow(source, stop)
    for start, place in zip(numbers[0].reshape(-1), numbers[2].reshape(-1)):
        axis = int(place) % source.tensor.rank
        size = source.tensor.dims[axis]
        if below is None or not isinstance(size, int):
            return None
        first = min(max(int(start) + size if start < 0 else int(start), 0), size)
        below = _cut(below, axis, first, value.tensor.dims[axis])
    return below


def _split(node: Node, value: Value, stop: Value | None) -> _Axes | None:
    below = _follow(_source(node), stop)
    axis = int(getattr(node.op, "axis", 0)) % len(below.axes)
    before: Dim = 0
    for output in node.outputs:
        if output is value:
            break
        before = before + output.tensor.dims[axis]
    return _cut(below, axis, before, value.tensor.dims[axis])


def _gather(node: Node, value: Value, stop: Value | None) -> _Axes | None:
    """A Gather by one constant number takes a part along its axis, which goes away."""
    index = node.inputs[1]
    if index is None or index.constant is None or index.constant.ndim:
        return None
    source = _source(node)
    axis = int(getattr(node.op, "axis", 0)) % source.tensor.rank
    number, size = int(index.constant), source.tensor.dims[axis]
    if number < 0:
        if not isinstance(size, int):
            return None
        number += size
    return _cut(_follow(source, stop), axis, number, None)


def _scaled(node: Node, value: Value, stop: Value | None) -> _Axes | None:
    """A multiplication or division by one number becomes a factor."""
    source = node.inputs[0]
    other = node.inputs[1] if len(node.inputs) > 1 else None
    if node.kind == "Mul" and source is not None and source.constant is not None:
        source, other = other, source
    if source is None or other is None or other.constant is None or other.constant.size != 1:
        return None
    if source.tensor.dims != value.tensor.dims:
        return None
    number = float(other.constant.reshape(-1)[0])
    below = _follow(source, stop)
    factor = below.factor * number if node.kind == "Mul" else below.factor / number
    return _Axes(below.root, below.offset, below.axes, factor)


_FOLLOW = {
    "Transpose": _transpose,
    "View": _view,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Mul": _scaled,
    "Div": _scaled,
}
