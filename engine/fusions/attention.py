"""matmul, softmax, matmul => attention, in the forms that exporters write it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.fusions.fusion import Match, Refused, constant_number, fusion, only_user
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim, product
from engine.ir.strided import Strided, contiguous_strides, trace
from engine.ir.types import DType
from engine.ops.fused_attention import FusedAttention, HeadAccess

__all__ = ["attention"]

#: Wider heads do not fit the kernel's registers.
WIDEST_HEAD = 256


@dataclass(slots=True)
class _Scores:
    """What leads to the softmax: the product of queries and keys, a scale, a mask."""

    product: Node
    nodes: list[Node]
    scale: float = 1.0
    mask: Value | None = None


@fusion(
    "softmax(q @ k^T * scale + mask) @ v => attention(q, k, v, mask)", "Softmax", stage="attention"
)
def attention(graph: Graph, node: Node) -> Match | Refused | None:
    """The softmax is over the last axis, and only the second product reads its result."""
    second = only_user(graph, node.outputs[0])
    if second is None or second.kind != "MatMul" or second.inputs[0] is not node.outputs[0]:
        return None
    rank = node.outputs[0].tensor.rank
    if getattr(node.op, "axis", -1) % rank != rank - 1 or rank not in (3, 4):
        return Refused("the softmax is not over the keys")
    scores = _scores(graph, node)
    if isinstance(scores, Refused):
        return scores
    q, k = scores.product.inputs
    v = second.inputs[1]
    assert q is not None and k is not None and v is not None
    if any(value.tensor.dtype is not DType.FLOAT32 for value in (q, k, v)):
        return Refused("only float32 has a fast attention here")
    reads = _reads(q, k, v)
    if isinstance(reads, Refused):
        return reads
    output, out = _written(graph, second)
    mask = _mask(scores.mask, node.outputs[0])
    if isinstance(mask, Refused):
        return mask
    kind, mask_read = mask
    query, key, value, sizes, head_size = reads
    scale = scores.scale * query.factor * key.factor
    if value.factor != 1.0:
        return Refused("the values are scaled")
    inputs: list[Value | None] = [query.root, key.root, value.root]
    if scores.mask is not None:
        inputs.append(mask_read[0])
    op = FusedAttention(
        head_size,
        scale,
        sizes,
        _access(query),
        _access(key),
        _access(value),
        out,
        output.tensor.dims,
        tuple(item.tensor.dims for item in inputs if item is not None),
        mask=kind,
        mask_access=mask_read[1],
    )
    last = output.producer
    assert last is not None
    nodes = [*scores.nodes, node, second] + ([last] if last is not second else [])
    return Match(op, inputs, output, nodes)


def _scores(graph: Graph, softmax: Node) -> _Scores | Refused:
    """Walk up from the softmax over a mask and a scale to the first product."""
    value = softmax.inputs[0]
    nodes: list[Node] = []
    scale, mask = 1.0, None
    while value is not None and value.producer is not None:
        node = value.producer
        if only_user(graph, value) is None:
            return Refused("something else reads the scores")
        nodes.insert(0, node)
        if node.kind == "MatMul":
            return _Scores(node, nodes, scale, mask)
        if node.kind in ("Mul", "Div"):
            number = constant_number(node.inputs[1])
            if number is None:
                return Refused("the scores are scaled by something that is no number")
            scale = scale * number if node.kind == "Mul" else scale / number
            value = node.inputs[0]
        elif node.kind == "Add" and mask is None and scale == 1.0:
            first, second = node.inputs
            value, mask = _which_is_mask(first, second, softmax.inputs[0])
            if value is None:
                return Refused("no side of the addition comes from a product")
        else:
            return Refused(f"{node.kind} stands between the products")
    return Refused("the scores do not come from a product")


def _which_is_mask(
    first: Value | None, second: Value | None, scores: Value | None
) -> tuple[Value | None, Value | None]:
    for value, other in ((first, second), (second, first)):
        if value is None or scores is None or value.tensor.dims != scores.tensor.dims:
            continue
        if value.producer is not None and value.producer.kind in ("MatMul", "Mul", "Div"):
            return value, other
    return None, None


Reads = tuple[Strided, Strided, Strided, tuple[Dim, ...], int]


def _four(read: Strided) -> Strided:
    """With a batch axis in front where there are only heads."""
    if len(read.shape) == 4:
        return read
    return Strided(read.root, read.offset, (1, *read.shape), (0, *read.strides), read.factor)


def _reads(q: Value, k: Value, v: Value) -> Reads | Refused:
    """How queries, transposed keys and values are read, and batch, heads, queries, keys."""
    query, turned, value = (_four(_adjacent(q)), _four(trace(k)), _four(_adjacent(v)))
    key = Strided(
        turned.root,
        turned.offset,
        (*turned.shape[:2], turned.shape[3], turned.shape[2]),
        (*turned.strides[:2], turned.strides[3], turned.strides[2]),
        turned.factor,
    )
    if key.strides[3] != 1:
        return Refused("the elements of a key are not adjacent in memory")
    head_size = query.shape[3]
    if not isinstance(head_size, int) or head_size > WIDEST_HEAD or value.shape[3] != head_size:
        return Refused(f"heads of {head_size} and {value.shape[3]} elements have no kernel")
    batch, heads, queries, _ = query.shape
    if key.shape[:2] != (batch, heads) or value.shape[:3] != (batch, heads, key.shape[2]):
        return Refused("queries, keys and values differ in batch, heads or length")
    return query, key, value, (batch, heads, queries, key.shape[2]), head_size


def _adjacent(value: Value) -> Strided:
    """The strided read of a value; its own memory when elements of a head are not adjacent."""
    read = trace(value)
    if read.strides[-1] == 1:
        return read
    shape = value.tensor.dims
    return Strided(value, 0, shape, contiguous_strides(shape))


def _access(read: Strided) -> HeadAccess:
    return HeadAccess(read.offset, *read.strides[:3])


def _written(graph: Graph, second: Node) -> tuple[Value, HeadAccess]:
    """The value that the attention writes: heads merged when only that transpose reads them."""
    result = second.outputs[0]
    shape = result.tensor.dims
    user = only_user(graph, result)
    if user is not None and user.kind == "Transpose" and len(shape) == 4:
        if tuple(getattr(user.op, "perm", None) or ()) == (0, 2, 1, 3):
            strides = contiguous_strides(user.outputs[0].tensor.dims)
            return user.outputs[0], HeadAccess(0, strides[0], strides[2], strides[1])
    strides = contiguous_strides(shape)
    if len(shape) == 3:
        return result, HeadAccess(0, product(shape), strides[0], strides[1])
    return result, HeadAccess(0, *strides[:3])


def _mask(
    mask: Value | None, scores: Value
) -> tuple[str, tuple[Value | None, HeadAccess]] | Refused:
    """The kind of a mask and how it is read."""
    none = HeadAccess(0, 0, 0, 0)
    if mask is None:
        return "none", (None, none)
    if mask.tensor.dtype is not DType.FLOAT32:
        return Refused(f"the mask is {mask.tensor.dtype.value}, expected float32")
    shape, whole = mask.tensor.dims, scores.tensor.dims
    full = (1,) * (4 - len(shape)) + shape
    target = (1,) * (4 - len(whole)) + whole
    if len(shape) > len(whole) or full[3] != target[3]:
        return Refused(f"the mask {mask.type} does not cover the keys")
    if any(a not in (1, b) for a, b in zip(full, target)):
        return Refused(f"the mask {mask.type} does not broadcast over the scores")
    strides = contiguous_strides(full)
    steps = [0 if size == 1 else step for size, step in zip(full, strides)]
    kind = "key" if full[2] == 1 else "full"
    return kind, (mask, HeadAccess(0, steps[0], steps[1], steps[2]))
