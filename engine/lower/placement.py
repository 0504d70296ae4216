"""Where a tensor lies that is a slice of a wider one, and how its readers and writers change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, floordiv, modulo, product
from engine.ir.types import is_bound
from engine.ops.expression import load
from engine.ops.region import Load, Region, Store

__all__ = [
    "Placement",
    "agrees",
    "copy_region",
    "is_joining",
    "lies_in_place",
    "part_place",
    "restride_load",
    "restride_store",
]

#: Bytes of the widest accesses; a part that begins elsewhere is copied to where they fit.
ALIGNED = 16


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a value lies: in the memory of ``root``, ``offset`` elements in, pixels apart."""

    root: Value
    offset: Dim
    pixel: Dim


def is_joining(node: Node) -> bool:
    """Whether a node is a concatenation along the last axis of tensors of known size."""
    if node.kind != "Concat" or not is_bound(node.outputs[0].type) or not agrees(node):
        return False
    rank = node.outputs[0].tensor.rank
    return rank > 1 and int(getattr(node.op, "axis", 0)) % rank == rank - 1


def agrees(node: Node) -> bool:
    """Whether the inputs of a concatenation are certain to have equal sizes on all other axes."""
    shape = node.outputs[0].tensor.dims
    axis = int(getattr(node.op, "axis", 0)) % len(shape)
    others = shape[:axis] + shape[axis + 1 :]
    dims = [value.tensor.dims for value in node.inputs if value is not None]
    return all(item[:axis] + item[axis + 1 :] == others for item in dims)


def part_place(node: Node, placed: Mapping[int, Placement]) -> Placement | None:
    """Where the result of a mere copy of some channels lies in the tensor that they are part of."""
    op = node.op
    if not isinstance(op, Region) or len(op.loads) != 1 or len(node.outputs) != 1:
        return None
    source, output, (item,), (store,) = node.inputs[0], node.outputs[0], op.loads, op.stores[:1]
    if source is None or store.value != load(0, item.dtype) or item.gather or item.bounds:
        return None
    if not is_bound(source.type) or source.tensor.rank < 2 or op.space != output.tensor.dims:
        return None
    shape, part = source.tensor.dims, output.tensor.dims
    wide, channels, begin = shape[-1], part[-1], item.offset
    if shape[:-1] != part[:-1] or not (isinstance(wide, int) and isinstance(channels, int)):
        return None
    if not isinstance(begin, int) or not 0 <= begin <= wide - channels or channels == wide:
        return None
    dense = [product(shape[axis + 1 :]) for axis in range(len(shape))]
    packed = [product(part[axis + 1 :]) for axis in range(len(part))]
    moved = [*zip(item.strides, dense, part), *zip(store.strides, packed, part)]
    if store.offset != 0 or any(a != b for a, b, size in moved if size != 1):
        return None
    whole = placed.get(id(source), Placement(source, 0, wide))
    place = Placement(whole.root, whole.offset + begin, whole.pixel)
    width = ALIGNED // min(item.dtype.nbytes, ALIGNED)
    aligned = all(modulo(size, width) == 0 for size in (place.offset, place.pixel))
    return place if aligned else None


def lies_in_place(node: Node, placed: Mapping[int, Placement]) -> bool:
    """Whether a part lies where it is read from, so that nothing has to be done."""
    place = placed.get(id(node.outputs[0])) if node.outputs else None
    return place is not None and part_place(node, placed) == place


def _restride(steps: Sequence[Dim], channels: Dim, pixel: Dim) -> tuple[Dim, ...] | None:
    """Strides in a tensor of C channels, in one whose pixels lie further apart."""
    if channels == 1:
        return None  # then a step between pixels looks like one between channels
    found: list[Dim] = []
    for step in steps:
        if modulo(step, channels) == 0:
            found.append(floordiv(step, channels) * pixel)
        elif isinstance(step, int) and isinstance(channels, int) and 0 < step < channels:
            found.append(step)
        else:
            return None
    return tuple(found)


def restride_load(item: Load, channels: Dim, pixel: Dim, offset: Dim) -> Load | None:
    """A load of a tensor in a slice."""
    found = _restride((item.offset, *item.strides), channels, pixel)
    if found is None or item.gather is not None:
        return None
    return replace(item, offset=found[0] + offset, strides=found[1:])


def restride_store(item: Store, channels: Dim, pixel: Dim, offset: Dim) -> Store | None:
    """A store to a tensor in a slice."""
    found = _restride((item.offset, *item.strides), channels, pixel)
    if found is None:
        return None
    return replace(item, offset=found[0] + offset, strides=found[1:])


def copy_region(value: Value, placement: Placement, source: Placement) -> Region:
    """The region that copies a value from where it lies into its slice."""
    kind = value.tensor
    channels = kind.dims[-1]
    space = (product(kind.dims[:-1]), channels)
    read = Load(0, kind.dtype, source.offset, (source.pixel, 1))
    shape = placement.root.tensor.dims
    store = Store(load(0, kind.dtype), 0, shape, placement.offset, (placement.pixel, 1))
    return Region(space, (read,), (store,), (kind.dims,))
