"""Operators that only move elements become regions of strided, gathered or bounded accesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.fusions.fusion import Match, replace
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim, maximum, minimum, product
from engine.ir.types import DType, TensorType, is_bound
from engine.ops.channels_last import ChannelNorm, ChannelShuffle
from engine.ops.expression import Expression, call, constant, index, load
from engine.ops.pixel_blocks import BlocksToPixels
from engine.ops.region import Bound, Gather, Load, Region, Store
from engine.passes.data_forms import DATA_FORMS, part_region
from engine.passes.rows import REGION_DTYPES

__all__ = ["concat_region", "contiguous", "move_data"]

Shape = tuple[Dim, ...]
MOST_AXES = 8
#: Starts so far from the end mean the very first element, whatever the size is.
LEAST = 1 << 31


def contiguous(shape: Sequence[Dim]) -> Shape:
    """Element strides of a row-major tensor."""
    strides: list[Dim] = []
    step: Dim = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))


def move_data(graph: Graph) -> bool:
    """Rewrite what has a form below; the rest runs by its meaning."""
    changed = False
    for node in list(graph.nodes):
        if not _fits(node):
            continue
        if node.kind == "Split":
            changed |= _split(graph, node)
            continue
        made = _form(node)
        if made is not None:
            region, inputs = made
            replace(graph, Match(region, inputs, node.outputs[0], [node]))
            changed = True
    return changed


def _form(node: Node) -> tuple[Region, list[Value | None]] | None:
    """The region of a node with one result, and what it reads."""
    if len(node.outputs) != 1:
        return None
    if node.kind in DATA_FORMS:
        return DATA_FORMS[node.kind](node)
    maker = _FORMS.get(node.kind)
    region = None if maker is None else maker(node)
    return None if region is None else (region, _operands(node, len(region.operands)))


def _split(graph: Graph, node: Node) -> bool:
    """Every part that is read is a copy of its own, which its reader may take in."""
    source = _first(node)
    axis = int(getattr(node.op, "axis", 0)) % max(source.tensor.rank, 1)
    begin: Dim = 0
    parts = []
    for output in node.outputs:
        size = output.tensor.dims[axis]
        region = part_region(source, axis, begin, size)
        if region is None:
            return False
        parts.append((region, output))
        begin = begin + size
    for region, output in parts:
        if output.uses or graph.is_output(output):
            replace(graph, Match(region, [source], output, []))
    graph.remove(node)
    return True


def _fits(node: Node) -> bool:
    values = [value for value in node.inputs if value is not None] + node.outputs
    return bool(node.outputs) and all(
        isinstance(value.type, TensorType)
        and is_bound(value.type)
        and value.type.dtype in REGION_DTYPES
        and value.type.rank <= MOST_AXES
        for value in values
    )


def _operands(node: Node, count: int) -> list[Value | None]:
    """The inputs that the region reads: a gather reads its indices first."""
    return node.inputs[1::-1] if node.kind == "Gather" and count == 2 else node.inputs[:count]


def _single(x: Value, out: Shape, item: Load) -> Region | None:
    """A region that copies one load to a new tensor."""
    if not out:
        return None
    value = load(0, x.tensor.dtype)
    return Region(out, (item,), (Store(value, 0, out, 0, contiguous(out)),), (x.tensor.dims,))


def _first(node: Node) -> Value:
    assert node.inputs[0] is not None
    return node.inputs[0]


def _transpose(node: Node) -> Region | None:
    x = _first(node)
    shape = x.tensor.dims
    perm = getattr(node.op, "perm", None) or tuple(range(len(shape)))[::-1]
    moved = [axis for axis in perm if shape[axis] != 1]
    if moved and moved[-1] != max(moved):
        return None  # a kernel of its own turns tiles in registers
    strides = contiguous(shape)
    turned = tuple(strides[axis] for axis in perm)
    return _single(x, node.outputs[0].tensor.dims, Load(0, x.tensor.dtype, 0, turned))


def _expand(node: Node) -> Region | None:
    x, out = _first(node), node.outputs[0].tensor.dims
    shape = (1,) * (len(out) - len(x.tensor.dims)) + x.tensor.dims
    if any(a != 1 and a != b for a, b in zip(shape, out)):
        return None
    strides = tuple(0 if size == 1 else step for size, step in zip(shape, contiguous(shape)))
    return _single(x, out, Load(0, x.tensor.dtype, 0, strides))


def _numbers(node: Node, index: int) -> list[int] | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or value.constant is None:
        return None
    return [int(item) for item in value.constant.reshape(-1)]


def _slice(node: Node) -> Region | None:
    """Starts and steps must be constants."""
    x, out = _first(node), node.outputs[0].tensor.dims
    starts, axes, steps = _numbers(node, 1), _numbers(node, 3), _numbers(node, 4)
    if starts is None:
        return None
    rank = x.tensor.rank
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    offset: Dim = 0
    strides = list(contiguous(x.tensor.dims))
    for start, axis, step in zip(starts, axes, steps):
        first = _first_taken(start, step, x.tensor.dims[axis % rank])
        if first is None:
            return None
        offset = offset + first * strides[axis % rank]
        strides[axis % rank] = strides[axis % rank] * step
    return _single(x, out, Load(0, x.tensor.dtype, offset, tuple(strides)))


def _first_taken(start: int, step: int, size: Dim) -> Dim | None:
    """The place of the first element that a slice takes; any place where it takes none."""
    if step == 0:
        return None
    if start < 0:
        # The last element needs no comparison: an empty axis gives nothing to read.
        place = size + start if start == -1 else maximum(size + start, 0)
        return place if start > -LEAST else 0
    if step < 0:
        return minimum(start, size - 1)
    return min(start, size) if isinstance(size, int) else start


def _gather(node: Node) -> Region | None:
    """Rows of a table by an index tensor."""
    table, indices = node.inputs[0], node.inputs[1]
    assert table is not None and indices is not None
    if indices.tensor.dtype not in (DType.INT32, DType.INT64):
        return None
    shape, rank = table.tensor.dims, table.tensor.rank
    axis = int(getattr(node.op, "axis", 0)) % rank
    out = node.outputs[0].tensor.dims
    if indices.constant is not None and indices.constant.size == 1:
        return _take_one(node, table, axis)
    count = indices.tensor.rank
    if not out or len(out) > MOST_AXES:
        return None
    steps = contiguous(shape)
    index_strides = (0,) * axis + contiguous(indices.tensor.dims) + (0,) * (rank - axis - 1)
    table_strides = steps[:axis] + (0,) * count + steps[axis + 1 :]
    loads = (
        Load(0, indices.tensor.dtype, 0, index_strides),
        Load(1, table.tensor.dtype, 0, table_strides, Gather(0, steps[axis], shape[axis])),
    )
    value = load(1, table.tensor.dtype)
    store = Store(value, 0, out, 0, contiguous(out))
    return Region(out, loads, (store,), (indices.tensor.dims, shape))


def concat_region(node: Node) -> Region | None:
    """Inputs beside each other along an axis, each read where the index is its own."""
    out, rank = node.outputs[0].tensor.dims, node.outputs[0].tensor.rank
    axis = int(getattr(node.op, "axis", 0)) % rank
    dtype = node.outputs[0].tensor.dtype
    loads: list[Load] = []
    ends: list[int] = []
    begin: Dim = 0
    for place, value in enumerate(node.inputs):
        if value is None or not isinstance(begin, int):
            return None
        shape = value.tensor.dims
        bound = Bound(axis, begin, begin + shape[axis])
        loads.append(Load(place, dtype, 0, contiguous(shape), None, (bound,), 0))
        begin = begin + shape[axis]
        ends.append(begin if isinstance(begin, int) else 0)
    result = load(len(loads) - 1, dtype)
    for place in range(len(loads) - 2, -1, -1):
        inside = call("less", index(axis), constant(ends[place], DType.INT64))
        result = call("select", inside, load(place, dtype), result)
    shapes = tuple(value.tensor.dims for value in node.inputs if value is not None)
    return Region(out, tuple(loads), (Store(result, 0, out, 0, contiguous(out)),), shapes)


def _take_one(node: Node, table: Value, axis: int) -> Region | None:
    """One constant index: the rest of the table at that place."""
    indices = node.inputs[1]
    assert indices is not None and indices.constant is not None
    size = table.tensor.dims[axis]
    place = int(indices.constant.reshape(-1)[0])
    if place < 0 and not isinstance(size, int):
        return None
    steps = contiguous(table.tensor.dims)
    offset = (place + size if place < 0 else place) * steps[axis]
    strides = steps[:axis] + (0,) * indices.tensor.rank + steps[axis + 1 :]
    return _single(table, node.outputs[0].tensor.dims, Load(0, table.tensor.dtype, offset, strides))


def _channel_shuffle(node: Node) -> Region | None:
    x, op = _first(node), node.op
    assert isinstance(op, ChannelShuffle)
    shape = x.tensor.dims
    if op.axis != len(shape) - 1:
        return None
    each = shape[-1] // op.groups
    space = (product(shape[:-1]), each, op.groups)
    item = Load(0, x.tensor.dtype, 0, (shape[-1], 1, each))
    store = Store(load(0, x.tensor.dtype), 0, shape, 0, contiguous(space))
    return Region(space, (item,), (store,), (shape,))


def _blocks_to_pixels(node: Node) -> Region | None:
    x, op, out = _first(node), node.op, node.outputs[0].tensor.dims
    assert isinstance(op, BlocksToPixels)
    images, height, width, channels = x.tensor.dims
    block, depth = op.block, out[3]
    # Pixels and channels stay apart, so that the result may lie in a slice of a wider tensor.
    space = (images * height, block, width, block, depth)
    steps: tuple[Dim, ...] = (block * depth, channels, depth, 1)
    if op.mode == "CRD":
        steps = (block, channels, 1, block * block)
    item = Load(0, x.tensor.dtype, 0, (width * channels, *steps))
    store = Store(load(0, x.tensor.dtype), 0, out, 0, contiguous(space))
    return Region(space, (item,), (store,), (x.tensor.dims,))


def _channel_norm(node: Node) -> Region | None:
    """Local response normalisation: one bounded load per neighbour channel."""
    x, op = _first(node), node.op
    assert isinstance(op, ChannelNorm)
    shape = x.tensor.dims
    if x.tensor.dtype is not DType.FLOAT32 or op.size > 16:
        return None
    channels = shape[-1]
    space = (product(shape[:-1]), channels)
    loads = [Load(0, DType.FLOAT32, 0, (channels, 1))]
    total: Expression | None = None
    for place, shift in enumerate(range(-((op.size - 1) // 2), op.size // 2 + 1)):
        # The load at shift s reads channel c + s, where that exists.
        low, high, offset = max(-shift, 0), channels - max(shift, 0), max(shift, 0)
        bound = Bound(1, low, high)
        loads.append(Load(0, DType.FLOAT32, offset, (channels, 1), None, (bound,), 0.0))
        item = load(place + 1, DType.FLOAT32)
        square = call("multiply", item, item)
        total = square if total is None else call("add", total, square)
    assert total is not None
    scaled = call("multiply", total, constant(op.alpha / op.size, DType.FLOAT32))
    base = call("add", scaled, constant(op.bias, DType.FLOAT32))
    power = _power(base, op.beta)
    value = call("divide", load(0, DType.FLOAT32), power)
    store = Store(value, 0, shape, 0, contiguous(space))
    return Region(space, tuple(loads), (store,), (shape,))


def _power(base: Expression, beta: float) -> Expression:
    """Powers by quarters come from square roots, which are faster and exact to the last bit."""
    if beta == 0.75:
        root = call("sqrt", base)
        return call("multiply", root, call("sqrt", root))
    if beta == 0.5:
        return call("sqrt", base)
    return call("power", base, constant(beta, DType.FLOAT32))


_FORMS: dict[str, Callable[[Node], Region | None]] = {
    "Transpose": _transpose,
    "Expand": _expand,
    "Slice": _slice,
    "Gather": _gather,
    "ChannelShuffle": _channel_shuffle,
    "ChannelNorm": _channel_norm,
    "BlocksToPixels": _blocks_to_pixels,
}
