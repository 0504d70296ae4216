"""Reading a value through the views, transposes and slices that made it, without a copy."""

from __future__ import annotations

from dataclasses import dataclass

from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim

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
    here = Strided(value, 0, value.tensor.dims, contiguous_strides(value.tensor.dims))
    node = value.producer
    if node is None or not node.inputs or node.inputs[0] is None:
        return here
    follow = _FOLLOW.get(node.kind)
    found = follow(node, value) if follow is not None else None
    return here if found is None else found


def _transpose(node: Node, value: Value) -> Strided | None:
    source = node.inputs[0]
    assert source is not None
    below = trace(source)
    rank = len(below.shape)
    perm = tuple(getattr(node.op, "perm", None) or tuple(range(rank))[::-1])
    return Strided(
        below.root,
        below.offset,
        tuple(below.shape[axis] for axis in perm),
        tuple(below.strides[axis] for axis in perm),
        below.factor,
    )


def _view(node: Node, value: Value) -> Strided | None:
    source = node.inputs[0]
    assert source is not None
    below = trace(source)
    strides = _reshaped(below.shape, below.strides, value.tensor.dims)
    if strides is None:
        return None
    return Strided(below.root, below.offset, value.tensor.dims, strides, below.factor)


def _reshaped(shape: Dims, strides: Dims, wanted: Dims) -> Dims | None:
    """Strides with which a strided tensor has another shape, if no copy is needed.

    Both shapes are cut into runs of equal size from the right; within a run the old axes must
    follow each other without holes.
    """
    old = [(size, step) for size, step in zip(shape, strides) if size != 1]
    result: list[Dim] = [0] * len(wanted)
    axis = len(wanted) - 1
    while axis >= 0:
        if wanted[axis] == 1:
            axis -= 1
            continue
        if not old:
            return None
        size, step = old.pop()
        first, whole = step, size
        covered: Dim = 1
        while True:
            if axis < 0:
                return None
            result[axis] = first * covered
            covered = covered * wanted[axis]
            axis -= 1
            if covered == whole:
                break
            while _exceeds(covered, whole) and old:
                above, stride = old.pop()
                if stride != first * whole:
                    return None
                whole = whole * above
            if covered == whole:
                break
    return tuple(result) if not old else None


def _exceeds(covered: Dim, whole: Dim) -> bool:
    """Whether the new axes already cover more than the old run holds (unknown counts as yes)."""
    if isinstance(covered, int) and isinstance(whole, int):
        return covered > whole
    from engine.ir.sizes import bounds

    if not isinstance(whole, int) and isinstance(covered, int):
        return False
    lower = bounds(whole - covered)[0]
    return not (lower is not None and lower >= 0)


def _slice(node: Node, value: Value) -> Strided | None:
    """A Slice with constant starts and unit steps along axes of known size."""
    numbers = [None if v is None or v.constant is None else v.constant for v in node.inputs[1:]]
    if len(numbers) < 3 or any(item is None for item in numbers[:3]):
        return None
    source = node.inputs[0]
    assert source is not None and numbers[0] is not None and numbers[2] is not None
    if len(numbers) > 3 and (numbers[3] is None or (numbers[3] != 1).any()):
        return None
    below = trace(source)
    offset = below.offset
    for start, axis in zip(numbers[0].reshape(-1), numbers[2].reshape(-1)):
        size = below.shape[int(axis)]
        if not isinstance(size, int):
            return None
        first = min(max(int(start) + size if start < 0 else int(start), 0), size)
        offset = offset + below.strides[int(axis)] * first
    return Strided(below.root, offset, value.tensor.dims, below.strides, below.factor)


def _split(node: Node, value: Value) -> Strided | None:
    source = node.inputs[0]
    assert source is not None
    below = trace(source)
    axis = int(getattr(node.op, "axis", 0)) % len(below.shape)
    before: Dim = 0
    for output in node.outputs:
        if output is value:
            break
        before = before + output.tensor.dims[axis]
    offset = below.offset + before * below.strides[axis]
    return Strided(below.root, offset, value.tensor.dims, below.strides, below.factor)


def _scaled(node: Node, value: Value) -> Strided | None:
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
    below = trace(source)
    factor = below.factor * number if node.kind == "Mul" else below.factor / number
    return Strided(below.root, below.offset, below.shape, below.strides, factor)


_FOLLOW = {
    "Transpose": _transpose,
    "View": _view,
    "Slice": _slice,
    "Split": _split,
    "Mul": _scaled,
    "Div": _scaled,
}
