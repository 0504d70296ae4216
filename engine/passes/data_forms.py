"""What pads, repeats, picks or masks elements, as regions of strided, gathered or bounded accesses.

Each form gives the region and the inputs that it reads, or nothing where a size or a parameter that
it needs is known only when the model runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product as combinations

from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, floordiv, product
from engine.ir.strided import contiguous_strides
from engine.ir.types import DType
from engine.ops.expression import Expression, call, cast, constant, index, load
from engine.ops.normalization import InstanceNormalization
from engine.ops.one_hot import OneHot9
from engine.ops.pad import Pad2
from engine.ops.region import MOST_AXES, MOST_LOADS, Bound, Gather, Load, Region, Store

__all__ = ["DATA_FORMS", "part_region"]

Shape = tuple[Dim, ...]
Form = tuple[Region, list[Value | None]]
#: An element that is read once for every piece of a padded tensor is still cheap with this many.
MOST_PIECES = 9


def _first(node: Node) -> Value:
    assert node.inputs[0] is not None
    return node.inputs[0]


def _input(node: Node, place: int) -> Value | None:
    return node.inputs[place] if len(node.inputs) > place else None


def _numbers(node: Node, place: int) -> list[int] | None:
    value = _input(node, place)
    if value is None or value.constant is None:
        return None
    return [int(item) for item in value.constant.reshape(-1)]


def _written(value: Expression, out: Shape, space: Shape | None = None) -> Store:
    return Store(value, 0, out, 0, contiguous_strides(out if space is None else space))


def part_region(source: Value, axis: int, begin: Dim, size: Dim) -> Region | None:
    """The part of a tensor that begins at ``begin`` along an axis, as a copy."""
    shape = source.tensor.dims
    if not 1 <= len(shape) <= MOST_AXES:
        return None
    out = (*shape[:axis], size, *shape[axis + 1 :])
    strides = contiguous_strides(shape)
    item = Load(0, source.tensor.dtype, begin * strides[axis], strides)
    return Region(out, (item,), (_written(load(0, item.dtype), out),), (shape,))


# ---- padding ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of an axis of a padded tensor: where it lies, and what it reads there."""

    low: Dim
    high: Dim
    start: Dim
    step: int


def _pad(node: Node) -> Form | None:
    x, out = _first(node), node.outputs[0].tensor.dims
    rank, op = x.tensor.rank, node.op
    axes: Sequence[int] | None = range(rank)
    if isinstance(op, Pad2):
        pads: Sequence[int] | None = op.pads
    else:
        pads = _numbers(node, 1)
        axes = axes if _input(node, 3) is None else _numbers(node, 3)
    if pads is None or axes is None or not out:
        return None
    around = {axis % rank: (pads[i], pads[len(axes) + i]) for i, axis in enumerate(axes)}
    around = {axis: ends for axis, ends in around.items() if ends != (0, 0)}
    mode = getattr(op, "mode", "constant")
    filled = mode == "constant"
    region = _filled(node, x, around) if filled else _continued(x, out, around, mode)
    return None if region is None else (region, [x])


def _fill(node: Node, dtype: DType) -> bool | int | float | None:
    if isinstance(node.op, Pad2):
        number: bool | int | float = node.op.value
    else:
        given = _input(node, 2)
        if given is not None and given.constant is None:
            return None
        number = 0 if given is None or given.constant is None else given.constant.item()
    if dtype is DType.BOOL:
        return bool(number)
    return float(number) if dtype.is_float else int(number)


def _filled(node: Node, x: Value, around: dict[int, tuple[int, int]]) -> Region | None:
    """One load that is bounded where something was added; what was cut is skipped."""
    kind, out = x.tensor, node.outputs[0].tensor.dims
    fill = _fill(node, kind.dtype)
    if fill is None:
        return None
    strides = contiguous_strides(kind.dims)
    offset: Dim = 0
    bounds = []
    for axis, (begin, end) in around.items():
        offset = offset + max(-begin, 0) * strides[axis]
        if begin > 0 or end > 0:
            high = begin + kind.dims[axis] if end > 0 else out[axis]
            bounds.append(Bound(axis, max(begin, 0), high))
    item = Load(0, kind.dtype, offset, strides, None, tuple(bounds), fill)
    return Region(out, (item,), (_written(load(0, kind.dtype), out),), (kind.dims,))


def _pieces(size: int, begin: int, end: int, mode: str) -> list[_Piece] | None:
    """The parts of one padded axis, in order; nothing where a part would need a second turn."""
    if min(begin, end) < 0 or size < 1:
        return None
    most = {"edge": max(begin, end), "reflect": size - 1, "wrap": size}.get(mode, -1)
    if max(begin, end) > most:
        return None
    last = begin + size
    before = {"edge": (0, 0), "reflect": (begin, -1), "wrap": (size - begin, 1)}[mode]
    after = {"edge": (size - 1, 0), "reflect": (size - 2, -1), "wrap": (0, 1)}[mode]
    found = [_Piece(begin, last, 0, 1)]
    if begin:
        found.insert(0, _Piece(0, begin, *before))
    if end:
        found.append(_Piece(last, last + end, *after))
    return found


def _continued(
    x: Value, out: Shape, around: dict[int, tuple[int, int]], mode: str
) -> Region | None:
    """A bounded load per piece of the result, one of which is selected at every point."""
    kind = x.tensor
    pieces: list[list[_Piece]] = []
    for axis, (begin, end) in around.items():
        size = kind.dims[axis]
        found = _pieces(size, begin, end, mode) if isinstance(size, int) else None
        if found is None:
            return None
        pieces.append(found)
    axes, dense = list(around), contiguous_strides(kind.dims)
    loads: list[Load] = []
    values: dict[tuple[int, ...], Expression] = {}
    if math.prod(len(found) for found in pieces) > min(MOST_PIECES, MOST_LOADS):
        return None
    for places in combinations(*(range(len(found)) for found in pieces)):
        offset: Dim = 0
        strides = list(dense)
        bounds = []
        for axis, place, found in zip(axes, places, pieces, strict=True):
            piece = found[place]
            offset = offset + piece.start * dense[axis]
            strides[axis] = piece.step * dense[axis]
            bounds.append(Bound(axis, piece.low, piece.high))
        loads.append(Load(0, kind.dtype, offset, tuple(strides), None, tuple(bounds), 0))
        values[places] = load(len(loads) - 1, kind.dtype)
    result = _selected(values, (), axes, pieces)
    return Region(out, tuple(loads), (_written(result, out),), (kind.dims,))


def _selected(
    values: dict[tuple[int, ...], Expression],
    prefix: tuple[int, ...],
    axes: Sequence[int],
    pieces: Sequence[list[_Piece]],
) -> Expression:
    """The value of the piece in which a point lies, axis by axis."""
    depth = len(prefix)
    if depth == len(axes):
        return values[prefix]
    parts = pieces[depth]
    result = _selected(values, (*prefix, len(parts) - 1), axes, pieces)
    for place in range(len(parts) - 2, -1, -1):
        high = parts[place].high
        assert isinstance(high, int)
        inside = call("less", index(axes[depth]), constant(high, DType.INT64))
        inner = _selected(values, (*prefix, place), axes, pieces)
        result = call("select", inside, inner, result)
    return result


# ---- repeats, picks, masks ----------------------------------------------------------------------


def _tile(node: Node) -> Form | None:
    x, out, repeats = _first(node), node.outputs[0].tensor.dims, _numbers(node, 1)
    kind = x.tensor
    if repeats is None or len(repeats) != kind.rank or not out:
        return None
    space: list[Dim] = []
    strides: list[Dim] = []
    for count, size, step in zip(repeats, kind.dims, contiguous_strides(kind.dims)):
        if count != 1:
            space.append(count)
            strides.append(0)
        space.append(size)
        strides.append(step)
    if len(space) > MOST_AXES:
        return None
    item = Load(0, kind.dtype, 0, tuple(strides))
    store = _written(load(0, kind.dtype), out, tuple(space))
    return Region(tuple(space), (item,), (store,), (kind.dims,)), [x]


def _trilu(node: Node) -> Form | None:
    x = _first(node)
    kind, rank = x.tensor, x.tensor.rank
    diagonal = [0] if _input(node, 1) is None else _numbers(node, 1)
    if not diagonal:
        return None
    beyond = call("subtract", index(rank - 1), index(rank - 2))
    test = "greater_equal" if getattr(node.op, "upper", 1) else "less_equal"
    kept = call(test, beyond, constant(diagonal[0], DType.INT64))
    value = call("select", kept, load(0, kind.dtype), constant(0, kind.dtype))
    item = Load(0, kind.dtype, 0, contiguous_strides(kind.dims))
    return Region(kind.dims, (item,), (_written(value, kind.dims),), (kind.dims,)), [x]


def _one_hot(node: Node) -> Form | None:
    indices, values, op = node.inputs[0], node.inputs[2], node.op
    out = node.outputs[0].tensor
    assert indices is not None and values is not None and isinstance(op, OneHot9)
    if indices.tensor.dtype is DType.BOOL or values.tensor.dims != (2,):
        return None
    axis = op.axis % out.rank
    dense = contiguous_strides(indices.tensor.dims)
    place = cast(load(0, indices.tensor.dtype), DType.INT64)
    depth = out.dims[axis]
    if not isinstance(depth, int):
        return None  # no size of an input tells it
    if op.wraps:
        shifted = call("add", place, constant(depth, DType.INT64))
        place = call("select", call("less", place, constant(0, DType.INT64)), shifted, place)
    nowhere = (0,) * out.rank
    loads = (
        Load(0, indices.tensor.dtype, 0, (*dense[:axis], 0, *dense[axis:])),
        Load(1, out.dtype, 0, nowhere),
        Load(1, out.dtype, 1, nowhere),
    )
    hit = call("equal", place, index(axis))
    value = call("select", hit, load(2, out.dtype), load(1, out.dtype))
    shapes = (indices.tensor.dims, values.tensor.dims)
    return Region(out.dims, loads, (_written(value, out.dims),), shapes), [indices, values]


def _gather_elements(node: Node) -> Form | None:
    data, indices = node.inputs[0], node.inputs[1]
    assert data is not None and indices is not None
    kind, places = data.tensor, indices.tensor
    if places.dtype not in (DType.INT32, DType.INT64) or not places.rank:
        return None
    axis = int(getattr(node.op, "axis", 0)) % kind.rank
    dense = contiguous_strides(kind.dims)
    loads = (
        Load(1, places.dtype, 0, contiguous_strides(places.dims)),
        Load(
            *(0, kind.dtype, 0, (*dense[:axis], 0, *dense[axis + 1 :])),
            Gather(0, dense[axis], kind.dims[axis]),
        ),
    )
    store = _written(load(1, kind.dtype), places.dims)
    return Region(places.dims, loads, (store,), (kind.dims, places.dims)), [data, indices]


# ---- blocks of pixels ---------------------------------------------------------------------------


def _moved_blocks(x: Value, out: Shape, space: Shape, strides: Shape) -> Form:
    item = Load(0, x.tensor.dtype, 0, strides)
    store = _written(load(0, x.tensor.dtype), out, space)
    return Region(space, (item,), (store,), (x.tensor.dims,)), [x]


def _depth_to_space(node: Node) -> Form | None:
    x, out = _first(node), node.outputs[0].tensor.dims
    images, channels, height, width = x.tensor.dims
    block, depth = int(getattr(node.op, "blocksize", 1)), out[1]
    plane = height * width
    space = (images, depth, height, block, width, block)
    steps: tuple[Dim, Dim, Dim] = (block * depth * plane, depth * plane, plane)
    if getattr(node.op, "mode", "DCR") == "CRD":
        steps = (block * plane, plane, block * block * plane)
    strides = (channels * plane, steps[2], width, steps[0], 1, steps[1])
    return _moved_blocks(x, out, space, strides)


def _space_to_depth(node: Node) -> Form | None:
    x, out = _first(node), node.outputs[0].tensor.dims
    images, channels, height, width = x.tensor.dims
    block = int(getattr(node.op, "blocksize", 1))
    rows, columns = floordiv(height, block), floordiv(width, block)
    plane = height * width
    if getattr(node.op, "mode", "DCR") == "CRD":
        channel_space: Shape = (channels, block, block)
        steps: Shape = (plane, width, 1)
    else:
        channel_space = (block, block, channels)
        steps = (width, 1, plane)
    space = (images, *channel_space, rows, columns)
    strides = (channels * plane, *steps, block * width, block)
    return _moved_blocks(x, out, space, strides)


# ---- normalisation of planes --------------------------------------------------------------------


def _instance_norm(node: Node) -> Form | None:
    x, scale, bias = node.inputs[:3]
    assert x is not None and scale is not None and bias is not None
    op, kind = node.op, x.tensor
    assert isinstance(op, InstanceNormalization)
    if kind.rank < 3 or not kind.dtype.is_float:
        return None
    length = product(kind.dims[2:])
    if not isinstance(length, int) or length < 1:
        return None
    space = (*kind.dims[:2], length)
    wide = DType.FLOAT64 if kind.dtype is DType.FLOAT64 else DType.FLOAT32

    def mean(item: Expression) -> Expression:
        assert isinstance(length, int)
        return call("divide", call("row_sum", item), constant(length, wide))

    item = cast(load(0, kind.dtype), wide)
    centred = call("subtract", item, mean(item))
    variance = mean(call("multiply", centred, centred))
    root = call("sqrt", call("add", variance, constant(op.epsilon, wide)))
    normal = call("divide", centred, root)
    value = call("multiply", normal, cast(load(1, scale.tensor.dtype), wide))
    value = call("add", value, cast(load(2, bias.tensor.dtype), wide))
    loads = (
        Load(0, kind.dtype, 0, contiguous_strides(space)),
        Load(1, scale.tensor.dtype, 0, (0, 1, 0)),
        Load(2, bias.tensor.dtype, 0, (0, 1, 0)),
    )
    store = _written(cast(value, kind.dtype), kind.dims, space)
    shapes = tuple(value.tensor.dims for value in (x, scale, bias))
    return Region(space, loads, (store,), shapes), [x, scale, bias]


DATA_FORMS: dict[str, Callable[[Node], Form | None]] = {
    "Pad": _pad,
    "Tile": _tile,
    "Trilu": _trilu,
    "OneHot": _one_hot,
    "GatherElements": _gather_elements,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "InstanceNormalization": _instance_norm,
}
