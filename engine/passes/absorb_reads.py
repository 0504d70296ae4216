"""A region that only one other reads, point by point, becomes part of its reader.

So an embedding look-up joins the normalisation behind it, and a cast or a mask the region that uses
it. Regions with reductions stay, and what is read more than once or not in its own order; a mere
copy may also be read in part.
"""

from __future__ import annotations

from engine.fusions.fusion import only_user
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim
from engine.ir.types import TensorType, is_bound
from engine.ops.expression import Expression, load, loads, order, substitute
from engine.ops.functions import REDUCTIONS
from engine.ops.region import MOST_LOADS, MOST_OPERANDS, Gather, Load, Region, Store
from engine.ops.widen import widen
from engine.passes.move_data import concat_region, contiguous
from engine.passes.rows import REGION_DTYPES

__all__ = ["absorb_reads"]

#: A concatenation of more parts is copied rather than looked up at every point.
MOST_PARTS = 4


def absorb_reads(graph: Graph) -> bool:
    """Take regions in where they are read."""
    changed = False
    for node in list(graph.nodes):
        if node.graph is graph and isinstance(node.op, Region):
            changed |= _absorb(graph, node)
    return changed


def _absorb(graph: Graph, node: Node) -> bool:
    """One producer of a region, if any qualifies."""
    reader = node.op
    assert isinstance(reader, Region)
    for value in dict.fromkeys(node.inputs):
        producer = _producer(graph, node, value)
        region = None if producer is None else _as_region(producer)
        if value is None or producer is None or region is None:
            continue
        source = _spread(region, reader.space)
        made = None if source is None else _inlined(node, value, producer, source)
        made = made or _read_through(node, value, producer, region)
        if made is None:
            continue
        region, inputs = made
        _replace(graph, node, producer, region, inputs)
        return True
    return False


def _producer(graph: Graph, node: Node, value: Value | None) -> Node | None:
    """The region that makes a value which only ``node`` reads, seen through a view."""
    if value is None or value.producer is None or only_user(graph, value) is not node:
        return None
    above = value.producer
    if above.kind == "View":
        (source,) = above.inputs
        if source is None or source.producer is None or only_user(graph, source) is not above:
            return None
        above = source.producer
    return above


def _as_region(node: Node) -> Region | None:
    """What makes one dense value point by point, as a region."""
    if node.kind == "Concat":
        inputs = [value for value in node.inputs if value is not None]
        return concat_region(node) if len(inputs) <= MOST_PARTS and _computable(node) else None
    return node.op if isinstance(node.op, Region) and _is_plain(node) else None


def _computable(node: Node) -> bool:
    """Whether a region can read and make values of these types."""
    kinds = [value.type for value in (*node.inputs, *node.outputs) if value is not None]
    return all(
        isinstance(k, TensorType) and is_bound(k) and k.dtype in REGION_DTYPES for k in kinds
    )


def _spread(source: Region, space: tuple[Dim, ...]) -> Region | None:
    """A region over a space that differs from its own by axes of size 1, or nothing."""
    if source.space == space:
        return source
    own = [axis for axis, size in enumerate(source.space) if size != 1]
    wanted = [axis for axis, size in enumerate(space) if size != 1]
    if [source.space[axis] for axis in own] != [space[axis] for axis in wanted]:
        return None
    (store,) = source.stores
    if any(item.function == "index" for item in order(store.value)):
        return None
    if any(item.bounds for item in source.loads):
        return None
    place = dict(zip(wanted, own, strict=True))

    def strides(found: tuple[Dim, ...]) -> tuple[Dim, ...]:
        return tuple(found[place[axis]] if axis in place else 0 for axis in range(len(space)))

    items = tuple(
        Load(item.operand, item.dtype, item.offset, strides(item.strides), item.gather)
        for item in source.loads
    )
    kept = Store(store.value, 0, space, 0, contiguous(space))
    return Region(space, items, (kept,), source.operands)


def _is_plain(node: Node) -> bool:
    """One dense result, no reduction: its value at a point needs nothing of other points."""
    op = node.op
    assert isinstance(op, Region)
    if len(node.outputs) != 1 or len(op.stores) != 1:
        return False
    (store,) = op.stores
    pairs = zip(store.strides, contiguous(op.space), op.space)
    dense = store.offset == 0 and all(a == b for a, b, size in pairs if size != 1)
    return dense and not any(item.function in REDUCTIONS for item in order(store.value))


def _inlined(
    node: Node, value: Value, producer: Node, source: Region
) -> tuple[Region, list[Value]] | None:
    """The reader with its producer's loads and expression in the place of its reads of it."""
    reader = node.op
    assert isinstance(reader, Region)
    dense = contiguous(source.space)
    own = {i for i, item in enumerate(reader.loads) if node.inputs[item.operand] is value}
    for item in (reader.loads[i] for i in own):
        if item.offset != 0 or item.gather or item.bounds:
            return None
        if any(a != b for a, b, n in zip(item.strides, dense, reader.space) if n != 1):
            return None
    if any(item.gather and item.gather.load in own for item in reader.loads):
        return None
    inputs = list(dict.fromkeys(v for v in (*producer.inputs, *node.inputs) if v is not None))
    inputs.remove(value)
    taken = _moved(source.loads, producer, inputs, 0)
    kept_places = [i for i in range(len(reader.loads)) if i not in own]
    place_of = {old: len(taken) + new for new, old in enumerate(kept_places)}
    kept = [_renumbered(_over(reader.loads[i], node, inputs), place_of) for i in kept_places]
    found = (*taken, *kept)
    if len(found) > MOST_LOADS or len(inputs) > MOST_OPERANDS:
        return None
    inner = source.stores[0].value
    stores = tuple(
        Store(
            widen(_rewritten(store.value, own, inner, place_of)),
            store.output,
            store.shape,
            store.offset,
            store.strides,
        )
        for store in reader.stores
    )
    shapes = tuple(item.tensor.dims for item in inputs)
    return Region(reader.space, found, stores, shapes), inputs


def _read_through(
    node: Node, value: Value, producer: Node, source: Region
) -> tuple[Region, list[Value]] | None:
    """The reader with the reads of a mere copy made where the copy itself reads.

    Such a read may be bounded, as of one part of a concatenation: no other point is computed.
    """
    reader, item = node.op, source.loads[0]
    assert isinstance(reader, Region)
    copies = len(source.loads) == 1 and source.stores[0].value == load(0, item.dtype)
    if not copies or value.producer is not producer or item.gather or item.bounds:
        return None
    shape, dense = source.space, contiguous(source.space)
    own = {i for i, other in enumerate(reader.loads) if node.inputs[other.operand] is value}
    for other in (reader.loads[i] for i in own):
        if other.offset != 0 or other.gather or len(other.strides) != len(shape):
            return None
        if any(a != b for a, b, size in zip(other.strides, dense, shape) if size != 1):
            return None
    strides = tuple(step if size != 1 else 0 for step, size in zip(item.strides, shape))
    inputs = list(dict.fromkeys(v for v in (*producer.inputs, *node.inputs) if v is not None))
    inputs.remove(value)
    found = [
        Load(0, item.dtype, item.offset, strides, None, other.bounds, other.fill)
        if place in own
        else _over(other, node, inputs)
        for place, other in enumerate(reader.loads)
    ]
    shapes = tuple(other.tensor.dims for other in inputs)
    return Region(reader.space, tuple(found), reader.stores, shapes), inputs


def _over(item: Load, node: Node, inputs: list[Value]) -> Load:
    """A load of a node's operand as a load of the same value among other inputs."""
    value = node.inputs[item.operand]
    place = next(i for i, other in enumerate(inputs) if other is value)
    return Load(place, item.dtype, item.offset, item.strides, item.gather, item.bounds, item.fill)


def _renumbered(item: Load, place_of: dict[int, int]) -> Load:
    if item.gather is None:
        return item
    gather = Gather(place_of[item.gather.load], item.gather.stride, item.gather.bound)
    return Load(item.operand, item.dtype, item.offset, item.strides, gather, item.bounds, item.fill)


def _moved(items: tuple[Load, ...], node: Node, inputs: list[Value], first: int) -> list[Load]:
    places = {i: first + i for i in range(len(items))}
    return [_renumbered(_over(item, node, inputs), places) for item in items]


def _rewritten(
    value: Expression, own: set[int], inner: Expression, place_of: dict[int, int]
) -> Expression:
    """The reader's expression: its reads of the producer replaced, its others renumbered."""
    replacements = {
        place: inner if place in own else load(place_of[place], dtype)
        for place, dtype in loads(value).items()
    }
    return substitute(value, replacements)


def _replace(graph: Graph, node: Node, producer: Node, region: Region, inputs: list[Value]) -> None:
    results = [graph.value(value.name, value.type) for value in node.outputs]
    sources = tuple(dict.fromkeys((*producer.sources, *node.sources)))
    made = Node(region, inputs, results, name=graph.fresh_name(node.name), sources=sources)
    graph.insert_after(node, made)
    infer_node(graph, made)
    for old, new in zip(node.outputs, results, strict=True):
        graph.replace_value(old, new)
    views = [v.producer for v in node.inputs if v is not None and v.producer is not None]
    graph.remove(node)
    for view in views:
        if view.kind == "View" and view.inputs[0] is producer.outputs[0]:
            graph.remove(view)
    graph.remove(producer)
    graph.decide("region, region => region", sources, True)
