"""New rows scattered into a cache => cache_update, and with the attention over it one operator.

Exporters write ``cache[:, :, position] = new`` as ScatterND over a transposed cache, as
ScatterElements with an expanded index, or as TensorScatter.
"""

from __future__ import annotations

import dataclasses

from engine.fusions.fusion import Match, Refused, fusion, only_user
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim
from engine.ir.strided import contiguous_strides, trace
from engine.ir.types import DType
from engine.ops.cache_update import CachedAttention, CacheUpdate
from engine.ops.fused_attention import DTYPES, FusedAttention, HeadAccess

__all__ = ["cached_attention", "scatter_elements", "scatter_rows", "tensor_scatter"]


@fusion("transpose(ScatterND(transpose(cache), place, new)) => cache_update", "ScatterND",
        stage="attention")  # fmt: skip
def scatter_rows(graph: Graph, node: Node) -> Match | Refused | None:
    """The rows lie along the first axis of what is scattered into; one place for all samples."""
    data, place, new = node.inputs
    if data is None or place is None or new is None or data.tensor.rank != 4:
        return None
    if getattr(node.op, "reduction", "none") != "none":
        return Refused("the rows are added to the cache")
    if place.tensor.dims != (1, 1) or new.tensor.dims != (1, *data.tensor.dims[1:]):
        return Refused("more than one row is scattered, or only a part of it")
    before = data.producer
    nodes, cache, output, perm = [node], data, node.outputs[0], (0, 1, 2, 3)
    if before is not None and before.kind == "Transpose":
        after = only_user(graph, node.outputs[0])
        if after is None or after.kind != "Transpose" or before.inputs[0] is None:
            return Refused("the cache is not turned back for all that read it")
        perm = tuple(getattr(before.op, "perm", None) or (3, 2, 1, 0))
        back = tuple(getattr(after.op, "perm", None) or (3, 2, 1, 0))
        if tuple(perm[axis] for axis in back) != (0, 1, 2, 3):
            return Refused("the cache is not turned back as it was")
        nodes, cache, output = [before, node, after], before.inputs[0], after.outputs[0]
    if perm[3] != 3:
        return Refused("the elements of a row are not adjacent")
    rows = perm[0]
    batch, heads = perm[1], perm[2]
    return _updated(cache, new, (1, 2, 0), place, (batch, heads, rows), output, nodes)


@fusion("ScatterElements(cache, expand(place), new) => cache_update", "ScatterElements",
        stage="attention")  # fmt: skip
def scatter_elements(graph: Graph, node: Node) -> Match | Refused | None:
    """The same index for every element of the new row."""
    cache, index, new = node.inputs
    if cache is None or index is None or new is None or cache.tensor.rank != 4:
        return None
    if getattr(node.op, "reduction", "none") != "none":
        return Refused("the rows are added to the cache")
    axis = int(getattr(node.op, "axis", 0)) % 4
    if axis not in (1, 2):
        return Refused("the rows lie along neither the second nor the third axis")
    shape = tuple(1 if i == axis else size for i, size in enumerate(cache.tensor.dims))
    if new.tensor.dims != shape or index.tensor.dims != shape:
        return Refused("more than one row is scattered, or only a part of it")
    place = index
    if place.producer is not None and place.producer.kind == "Expand":
        assert place.producer.inputs[0] is not None
        place = place.producer.inputs[0]
    dims = (1,) * (4 - place.tensor.rank) + place.tensor.dims
    if any(size != 1 for size in dims[1:]):
        return Refused("the index differs between the elements of a row")
    axes = (0, 3 - axis, axis)
    return _updated(cache, new, axes, place, axes, node.outputs[0], [node])


@fusion("TensorScatter(cache, new, place) => cache_update", "TensorScatter", stage="attention")
def tensor_scatter(graph: Graph, node: Node) -> Match | Refused | None:
    """Caches [batch, heads, rows, head size], one place of each sample."""
    cache, new, place = (*node.inputs, None)[:3]
    if cache is None or new is None or cache.tensor.rank != 4:
        return Refused("only caches of four axes are looked at")
    if place is None or getattr(node.op, "mode", "linear") != "linear":
        return Refused("it has no place, or wraps around")
    if int(getattr(node.op, "axis", -2)) % 4 != 2:
        return Refused("the rows do not lie along the third axis")
    return _updated(cache, new, (0, 1, 2), place, (0, 1, 2), node.outputs[0], [node])


def _updated(
    cache: Value,
    new: Value,
    new_axes: tuple[int, int, int],
    place: Value,
    axes: tuple[int, int, int],
    output: Value,
    nodes: list[Node],
) -> Match | Refused:
    """The match, from the axes of batch, heads and rows in the cache and in the new rows."""
    while place.producer is not None and place.producer.kind in ("View", "Unsqueeze", "Reshape"):
        assert place.producer.inputs[0] is not None
        place = place.producer.inputs[0]
    shape, head_size = cache.tensor.dims, cache.tensor.dims[3]
    sizes = (shape[axes[0]], shape[axes[1]], new.tensor.dims[new_axes[2]])
    if place.tensor.dtype not in (DType.INT32, DType.INT64):
        return Refused(f"the place is {place.tensor.dtype.value}")
    count = place.tensor.elements
    if count not in (1, sizes[0]):
        return Refused("the places are neither one nor one of each sample")
    if not isinstance(head_size, int) or head_size > 4096 or cache.tensor.dtype not in DTYPES:
        return Refused("the cache holds other rows than heads of floats")
    read = trace(new)
    if read.strides[3] != 1 or read.factor != 1.0 or read.root.tensor.dtype != cache.tensor.dtype:
        read = dataclasses.replace(
            read, root=new, offset=0, strides=contiguous_strides(new.tensor.dims)
        )
    strides = contiguous_strides(shape)
    op = CacheUpdate(
        head_size,
        sizes,
        shape[axes[2]],
        HeadAccess(0, *(strides[axis] for axis in axes)),
        HeadAccess(read.offset, *(read.strides[axis] for axis in new_axes)),
        "one" if count == 1 else "batch",
        (shape, read.root.tensor.dims, place.tensor.dims),
    )
    return Match(op, [cache, read.root, place], output, nodes)


@fusion("attention(q, cache_update(k), cache_update(v)) => cached_attention", "FusedAttention",
        stage="projections")  # fmt: skip
def cached_attention(graph: Graph, node: Node) -> Match | Refused | None:
    """One new row of keys and values, which nothing but this attention and the results read."""
    op = node.op
    assert isinstance(op, FusedAttention)
    updates: list[Node] = []
    for value in node.inputs[1:3]:
        source = value.producer if value is not None else None
        if source is None or source.kind != "CacheUpdate":
            return None
        updates.append(source)
    keys, values = updates
    if keys is values or keys.inputs[2] is not values.inputs[2]:
        return Refused("keys and values are written to different places")
    first, second = keys.op, values.op
    assert isinstance(first, CacheUpdate) and isinstance(second, CacheUpdate)
    for update, place in ((keys, 1), (values, 2)):
        if any(user is not node or i != place for user, i in update.outputs[0].uses):
            return Refused("something else reads a cache")
    if not _agrees(op.key, first, op) or not _agrees(op.value, second, op):
        return Refused("the attention reads the caches in another way than they are written")
    if first.sizes[2] != 1 or op.sizes[2] != 1:
        return Refused("more than one row at a time")
    inputs: list[Value | None] = [node.inputs[0], keys.inputs[0], values.inputs[0]]
    inputs += [keys.inputs[1], values.inputs[1], keys.inputs[2], *node.inputs[3:]]
    others = [keys.outputs[0], values.outputs[0]]
    whole = CachedAttention(op, first, second)
    return Match(whole, inputs, node.outputs[0], [node, *updates], others)


def _agrees(read: HeadAccess, written: CacheUpdate, op: FusedAttention) -> bool:
    """Whether an attention reads a cache as it is written: the same heads, rows and strides."""
    batch, heads, _, keys = op.sizes
    shared: Dim = heads if op.group == 1 else -1
    if isinstance(heads, int) and op.group > 1:
        shared = heads // op.group
    return (
        written.head_size == op.head_size
        and written.sizes[:2] == (batch, shared)
        and written.length == keys
        and _same(read, written.cache, written.sizes)
    )


def _same(one: HeadAccess, other: HeadAccess, sizes: tuple[Dim, ...]) -> bool:
    """Equal offsets, and equal strides along the axes longer than one."""
    pairs = zip(sizes, one.dims()[1:3], other.dims()[1:3])
    return (
        one.offset == other.offset == 0
        and one.row == other.row
        and all(size == 1 or a == b for size, a, b in pairs)
    )
