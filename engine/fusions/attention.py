"""matmul, softmax, matmul => attention, in the forms that exporters write it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.fusions.attention_mask import (
    HIDES,
    CombinedMask,
    combine,
    read_condition,
    read_mask,
)
from engine.fusions.fusion import Match, Refused, constant_number, fusion, only_user
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import Dim, product
from engine.ir.strided import Strided, contiguous_strides, trace
from engine.ir.types import DType
from engine.ops.fused_attention import DTYPES, FusedAttention, HeadAccess

__all__ = ["WIDEST_HEAD", "attention", "written_by"]

#: Wider heads do not fit the kernel's registers.
WIDEST_HEAD = 256


@dataclass(slots=True)
class _Scores:
    """What leads to the softmax: the product of queries and keys, a scale, masks.

    ``added`` are numbers added to the scaled scores, ``chosen`` conditions under which they count,
    each with what stands in their place.
    """

    product: Node
    nodes: list[Node]
    scale: float
    added: list[Value]
    chosen: list[tuple[Value, float]]


@dataclass(slots=True)
class _Weights:
    """What follows the softmax: the product with the values, and whether NaN became zero."""

    product: Node
    nodes: list[Node]
    guarded: bool


@fusion(
    "softmax(q @ k^T * scale + mask) @ v => attention(q, k, v, mask)", "Softmax", stage="attention"
)
def attention(graph: Graph, node: Node) -> Match | Refused | None:
    """The softmax is over the last axis, and only the second product reads its result."""
    weights = _weights(graph, node)
    if weights is None:
        return None
    rank = node.outputs[0].tensor.rank
    if getattr(node.op, "axis", -1) % rank != rank - 1 or rank not in (3, 4):
        return Refused("the softmax is not over the keys")
    scores = _scores(graph, node)
    if isinstance(scores, Refused):
        return scores
    q, k = (_narrowest(value) for value in scores.product.inputs)
    v = _narrowest(weights.product.inputs[1])
    if q.tensor.dtype not in DTYPES or {k.tensor.dtype, v.tensor.dtype} != {q.tensor.dtype}:
        return Refused("queries, keys and values are not floats of one type with a fast attention")
    reads = _reads(q, k, v)
    if isinstance(reads, Refused):
        return reads
    query, key, value, sizes, head_size = reads
    if value.factor != 1.0:
        return Refused("the values are scaled")
    output, out, after = written_by(graph, weights.product)
    if output.tensor.dtype not in DTYPES:
        return Refused(f"the result is {output.tensor.dtype.value}")
    mask = _mask(graph, scores, node)
    if isinstance(mask, Refused):
        return mask
    inputs: list[Value | None] = [query.root, key.root, value.root, *mask.inputs]
    op = FusedAttention(
        head_size,
        scores.scale * query.factor * key.factor,
        sizes,
        _access(query),
        _access(key),
        _access(value),
        out,
        output.tensor.dims,
        tuple(item.tensor.dims for item in inputs if item is not None),
        mask=mask.kind,
        mask_access=mask.access,
        causal=mask.causal,
        dtype=output.tensor.dtype,
        past=mask.past,
        position=mask.position,
        guarded=weights.guarded,
    )
    return Match(op, inputs, output, [*scores.nodes, node, *weights.nodes, *after])


def _weights(graph: Graph, softmax: Node) -> _Weights | None:
    """Walk down from the softmax over a guard against NaN and casts to the second product."""
    value, nodes, guarded = softmax.outputs[0], list[Node](), False
    for _ in range(4):
        guard = _guard(graph, value)
        if guard is not None:
            nodes += guard
            value, guarded = guard[1].outputs[0], True
            continue
        node = only_user(graph, value)
        if node is None:
            return None
        nodes.append(node)
        if node.kind == "MatMul":
            return _Weights(node, nodes, guarded) if node.inputs[0] is value else None
        if node.kind != "Cast" or node.outputs[0].tensor.dtype not in DTYPES:
            return None
        value = node.outputs[0]
    return None


def _guard(graph: Graph, value: Value) -> list[Node] | None:
    """The nodes of where(isnan(value), 0, value), when nothing else reads the value."""
    users = {node.kind: node for node, _ in value.uses}
    if graph.is_output(value) or set(users) != {"IsNaN", "Where"} or len(value.uses) != 2:
        return None
    asked, chosen = users["IsNaN"], users["Where"]
    if chosen.inputs[0] is not asked.outputs[0] or chosen.inputs[2] is not value:
        return None
    if constant_number(chosen.inputs[1]) != 0.0 or only_user(graph, asked.outputs[0]) is None:
        return None
    return [asked, chosen]


def _scores(graph: Graph, softmax: Node) -> _Scores | Refused:
    """Walk up from the softmax over masks, casts and a scale to the first product."""
    value = softmax.inputs[0]
    nodes: list[Node] = []
    found = _Scores(softmax, nodes, 1.0, [], [])
    while value is not None and value.producer is not None:
        node = value.producer
        if only_user(graph, value) is None:
            return Refused("something else reads the scores")
        nodes.insert(0, node)
        if node.kind == "MatMul":
            found.product = node
            return found
        if node.kind in ("Mul", "Div"):
            number = constant_number(node.inputs[1])
            if number is None:
                return Refused("the scores are scaled by something that is no number")
            if node.kind == "Div" and number == 0.0:
                return Refused("the scores are divided by zero")
            found.scale = found.scale * number if node.kind == "Mul" else found.scale / number
            value = node.inputs[0]
        elif node.kind in ("Add", "Where") and found.scale == 1.0:
            value = _under_mask(node, found)
            if value is None:
                return Refused("no side of the mask comes from a product")
        elif node.kind == "Cast" and _is_wider(node):
            value = node.inputs[0]
        else:
            return Refused(f"{node.kind} stands between the products")
    return Refused("the scores do not come from a product")


def _under_mask(node: Node, found: _Scores) -> Value | None:
    """The scores below an addition or a choice, whose mask is noted; None for anything else."""
    whole = node.outputs[0].tensor.dims
    if node.kind == "Where":
        condition, value, low = node.inputs
        number = constant_number(low)
        if value is None or condition is None or number is None or number > HIDES:
            return None
        found.chosen.append((condition, number))
        return value if _is_product(value, whole) else None
    first, second = node.inputs
    for value, other in ((first, second), (second, first)):
        if value is not None and other is not None and _is_product(value, whole):
            found.added.append(other)
            return value
    return None


def _is_product(value: Value, whole: tuple[Dim, ...]) -> bool:
    """Whether a value of the scores' shape comes from a product."""
    for _ in range(8):
        node = value.producer
        if node is None or value.tensor.dims != whole:
            return False
        if node.kind == "MatMul":
            return True
        if node.kind == "Add":
            return any(item is not None and _is_product(item, whole) for item in node.inputs)
        place = 1 if node.kind == "Where" else 0
        below = node.inputs[place] if node.kind in ("Mul", "Div", "Cast", "Where") else None
        if below is None:
            return False
        value = below
    return False


def _is_wider(node: Node) -> bool:
    """Whether a cast loses nothing: to float32 from a narrower float."""
    source = node.inputs[0]
    return (
        source is not None
        and node.outputs[0].tensor.dtype is DType.FLOAT32
        and source.tensor.dtype in DTYPES
    )


def _narrowest(value: Value | None) -> Value:
    """An operand before it was widened to float32: the attention computes in float32 anyway."""
    assert value is not None
    node = value.producer
    if node is not None and node.kind == "Cast" and _is_wider(node):
        assert node.inputs[0] is not None
        return node.inputs[0]
    return value


Reads = tuple[Strided, Strided, Strided, tuple[Dim, ...], int]


def _four(read: Strided) -> Strided:
    """With a batch axis in front where there are only heads."""
    if len(read.shape) == 4:
        return read
    return Strided(read.root, read.offset, (1, *read.shape), (0, *read.strides), read.factor)


def _reads(q: Value, k: Value, v: Value) -> Reads | Refused:
    """How queries, transposed keys and values are read, and batch, heads, queries, keys."""
    if min(q.tensor.rank, k.tensor.rank, v.tensor.rank) < 3:
        return Refused("a matrix that all heads share is no keys or values")
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


def written_by(graph: Graph, second: Node) -> tuple[Value, HeadAccess, list[Node]]:
    """The value that the attention writes, how, and the nodes that go away with it.

    Heads may be merged by a transpose, and the result rounded, when nothing else reads it.
    """
    result = second.outputs[0]
    axes, nodes = [0, 1, 2, 3], list[Node]()
    user = only_user(graph, result)
    if user is not None and user.kind == "Transpose" and result.tensor.rank == 4:
        perm = list(getattr(user.op, "perm", None) or ())
        if perm and perm[3] == 3:
            axes, result, nodes = [perm.index(axis) for axis in range(4)], user.outputs[0], [user]
    strides = contiguous_strides(result.tensor.dims)
    if result.tensor.rank == 3:
        out = HeadAccess(0, product(result.tensor.dims), strides[0], strides[1])
    else:
        out = HeadAccess(0, *(strides[axis] for axis in axes[:3]))
    return *_rounded(graph, result, out), nodes + _rounding(graph, result)


def _rounding(graph: Graph, result: Value) -> list[Node]:
    """Views and the cast to a narrower float that alone read a float32 result."""
    nodes: list[Node] = []
    value = result
    while result.tensor.dtype is DType.FLOAT32:
        user = only_user(graph, value)
        if user is None or user.kind not in ("View", "Cast"):
            return []
        nodes.append(user)
        value = user.outputs[0]
        if user.kind == "Cast":
            return nodes if value.tensor.dtype in DTYPES else []
    return []


def _rounded(graph: Graph, result: Value, out: HeadAccess) -> tuple[Value, HeadAccess]:
    nodes = _rounding(graph, result)
    return (nodes[-1].outputs[0] if nodes else result), out


def _mask(graph: Graph, scores: _Scores, softmax: Node) -> CombinedMask | Refused:
    """Masks as attributes where they can be, else as one tensor of numbers to add."""
    whole = softmax.outputs[0].tensor.dims
    target = (1,) * (4 - len(whole)) + whole
    readings = [read_mask(graph, value, target) for value in scores.added]
    for condition, number in scores.chosen:
        reading = read_condition(graph, condition, target, number)
        if reading.conditions or reading.position is not None:
            return Refused("the scores are replaced under a condition that is no triangle")
        readings.append(reading)
    return combine(graph, softmax, readings, target)
