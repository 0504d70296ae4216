"""What a mask of attention says: causal, up to a position, or numbers that are added.

Masks come as sums of numbers and as choices between 0 and a very low number by conditions joined
with "and". Conditions that always hold fall away; a triangle and a comparison with a position
become attributes, so that only what is left is read as a mask. A key that a triangle or a position
hides gets no weight at all; in the model its number may be finite, which differs only for a query
that sees no key (there float16 models give the mean of all values).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine.fusions.fusion import Refused, constant_number
from engine.fusions.uniform import constant_like, range_axis
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim
from engine.ir.strided import contiguous_strides
from engine.ir.types import Array, DType, TensorType
from engine.ops.fused_attention import DTYPES, HeadAccess
from engine.ops.operator import find

__all__ = [
    "HIDES",
    "CombinedMask",
    "MaskReading",
    "combine",
    "hide",
    "read_condition",
    "read_mask",
]

#: A number this low hides a key: exporters write -10000, the least float16 or float32, or -inf.
HIDES = -1e4


@dataclass(slots=True)
class MaskReading:
    """What a mask says.

    ``causal`` lets query i see keys up to i + ``past``; with a ``position`` (a tensor of one number
    or one per sample) all queries see keys up to position + ``past``. ``added`` are values to add
    to the scores; ``conditions`` must hold for a key to be seen, else ``hidden`` is added, a number
    of type ``dtype``.
    """

    causal: bool = False
    past: Dim = 0
    position: Value | None = None
    added: list[Value] = field(default_factory=list)
    conditions: list[Value] = field(default_factory=list)
    hidden: float = float("-inf")
    dtype: DType = DType.FLOAT32


@dataclass(slots=True)
class CombinedMask:
    """The masks' part of an attention: attributes, and the inputs that go with them."""

    inputs: list[Value] = field(default_factory=list)
    kind: str = "none"
    access: HeadAccess = field(default_factory=lambda: HeadAccess(0, 0, 0, 0))
    causal: bool = False
    past: Dim = 0
    position: str = "none"


def read_mask(graph: Graph, mask: Value, scores: tuple[Dim, ...]) -> MaskReading:
    """Read numbers that are added to scores [..., queries, keys]."""
    reading = MaskReading(dtype=mask.tensor.dtype)
    for part in _addends(mask):
        if not _read_added(graph, part, scores, reading):
            reading.added.append(_folded(graph, part))
    return reading


def read_condition(
    graph: Graph, condition: Value, scores: tuple[Dim, ...], hidden: float
) -> MaskReading:
    """Read a condition under which scores [..., queries, keys] count."""
    reading = MaskReading(hidden=hidden)
    for part in _conjuncts(condition):
        if not _read_condition(part, scores, reading):
            reading.conditions.append(_folded(graph, part))
    return reading


def _folded(graph: Graph, value: Value) -> Value:
    """The value as a constant that broadcasts to it, where it is one."""
    array = None if value.constant is not None else constant_like(value)
    return value if array is None else graph.constant(value.name, array)


def combine(
    graph: Graph, before: Node, readings: list[MaskReading], target: tuple[Dim, ...]
) -> CombinedMask | Refused:
    """All masks of scores [batch, heads, queries, keys] as attributes and one tensor to add.

    New nodes are made before ``before`` when the rest of a mask has to be computed.
    """
    limits = [item for item in readings if item.causal or item.position is not None]
    if len(limits) > 1:
        return Refused("two masks bound the keys")
    numbers = [value for item in readings for value in item.added]
    kinds = {value.tensor.dtype for value in numbers}
    kinds |= {item.dtype for item in readings if item.conditions}
    if len(kinds) > 1 or not kinds <= set(DTYPES):
        return Refused("the masks are not floats of one type")
    for item in readings:
        for value in (*item.added, *item.conditions):
            problem = _cover(value, target)
            if problem:
                return Refused(problem)
    for item in readings:
        if item.conditions:
            numbers.append(hide(graph, before, item.conditions, item.hidden, item.dtype))
    found = CombinedMask()
    if limits:
        found.causal, found.past = limits[0].causal, limits[0].past
    if numbers:
        mask = numbers[0]
        for other in numbers[1:]:
            mask = _made(graph, before, "Add", [mask, other], mask.tensor.dtype)
        found.inputs.append(mask)
        found.kind, found.access = _access(mask)
    if limits and limits[0].position is not None:
        position = limits[0].position
        found.position = "one" if position.tensor.elements == 1 else "batch"
        found.inputs.append(position)
    return found


def _cover(mask: Value, target: tuple[Dim, ...]) -> str:
    """Why a mask does not broadcast over the scores; nothing when it does."""
    shape = mask.tensor.dims
    full = (1,) * (4 - len(shape)) + shape
    if len(shape) > 4 or full[3] != target[3]:
        return f"the mask {mask.type} does not cover the keys"
    if any(a not in (1, b) for a, b in zip(full, target)):
        return f"the mask {mask.type} does not broadcast over the scores"
    return ""


def _access(mask: Value) -> tuple[str, HeadAccess]:
    """The kind of a mask and how it is read."""
    shape = mask.tensor.dims
    full = (1,) * (4 - len(shape)) + shape
    strides = contiguous_strides(full)
    steps = [0 if size == 1 else step for size, step in zip(full, strides)]
    return "key" if full[2] == 1 else "full", HeadAccess(0, *steps[:3])


def hide(graph: Graph, before: Node, conditions: list[Value], hidden: float, dtype: DType) -> Value:
    """The numbers to add, 0 where all conditions hold; made by new nodes, shared if there are any.

    ``before`` is the node that is to read them.
    """
    joined = conditions[0]
    for other in conditions[1:]:
        joined = _made(graph, before, "And", [joined, other], DType.BOOL)
    zero = np.zeros((), dtype.numpy)
    low = np.array(max(hidden, _least(dtype)) if np.isfinite(hidden) else hidden, dtype.numpy)
    for user, place in joined.uses:
        if user.kind == "Where" and place == 0 and user.graph is graph:
            numbers = [None if v is None else v.constant for v in user.inputs[1:]]
            if all(n is not None and n.size == 1 and n.dtype == zero.dtype for n in numbers):
                if [float(n.reshape(-1)[0]) for n in numbers if n is not None] == [0.0, float(low)]:
                    if graph.nodes.index(user) < graph.nodes.index(before):
                        return user.outputs[0]
    constants = [graph.constant("seen", zero), graph.constant("hidden", low)]
    return _made(graph, before, "Where", [joined, *constants], dtype)


def _least(dtype: DType) -> float:
    return -65504.0 if dtype is DType.FLOAT16 else -3.3e38


def _made(graph: Graph, before: Node, kind: str, inputs: list[Value], dtype: DType) -> Value:
    """The result of a new elementwise node."""
    result = graph.value(kind.lower(), TensorType(dtype, None))
    operator = find("", kind, 16).from_attributes({})
    sources = tuple(
        dict.fromkeys(s for v in inputs if v.producer is not None for s in v.producer.sources)
    )
    node = Node(operator, list(inputs), [result], name=graph.fresh_name(kind), sources=sources)
    graph.insert_before(before, node)
    infer_node(graph, node)
    return result


def _addends(value: Value) -> list[Value]:
    node = value.producer
    if node is not None and node.kind == "Add" and constant_like(value) is None:
        found = [item for item in node.inputs if item is not None]
        return [part for item in found for part in _addends(item)]
    if node is not None and node.kind == "Expand" and node.inputs[0] is not None:
        return _addends(node.inputs[0])
    return [value]


def _conjuncts(value: Value) -> list[Value]:
    node = value.producer
    if node is not None and node.kind == "And" and constant_like(value) is None:
        found = [item for item in node.inputs if item is not None]
        return [part for item in found for part in _conjuncts(item)]
    if node is not None and node.kind == "Expand" and node.inputs[0] is not None:
        return _conjuncts(node.inputs[0])
    return [value]


def _read_added(graph: Graph, mask: Value, scores: tuple[Dim, ...], reading: MaskReading) -> bool:
    """Read one addend; False when it stays an addend."""
    array = constant_like(mask)
    if array is not None:
        wide = array.astype(np.float32)
        if not wide.any():
            return True
        seen = wide == 0
        return bool((seen | (wide <= HIDES)).all()) and _read_triangle(seen, scores, reading)
    if _read_trilu(mask, scores, reading):
        return True
    node = mask.producer
    if node is None or node.kind != "Where" or reading.conditions:
        return False
    condition, first, second = node.inputs
    low = constant_number(second)
    if condition is None or constant_number(first) != 0.0 or low is None or low > HIDES:
        return False
    inner = read_condition(graph, condition, scores, low)
    if (reading.causal or reading.position) and (inner.causal or inner.position):
        return False
    if len(inner.conditions) == 1 and inner.conditions[0] is condition:
        return False
    if inner.causal or inner.position:
        reading.causal, reading.past, reading.position = inner.causal, inner.past, inner.position
    reading.conditions, reading.hidden = inner.conditions, low
    return True


def _read_condition(condition: Value, scores: tuple[Dim, ...], reading: MaskReading) -> bool:
    """Read one condition; False when it stays one."""
    array = constant_like(condition)
    if array is not None:
        seen = array.astype(bool)
        return bool(seen.all()) or _read_triangle(seen, scores, reading)
    if _read_trilu(condition, scores, reading) or _read_ranges(condition, scores, reading):
        return True
    return _read_position(condition, scores, reading)


def _read_trilu(value: Value, scores: tuple[Dim, ...], reading: MaskReading) -> bool:
    """Whether a value of open size is a triangle: ones below, or low numbers above a diagonal."""
    node = value.producer
    if node is None or node.kind not in ("Trilu", "Cast") or reading.causal or reading.position:
        return False
    if node.kind == "Cast":
        source, kind = node.inputs[0], value.tensor.dtype
        return source is not None and kind is DType.BOOL and _read_trilu(source, scores, reading)
    whole = constant_like(node.inputs[0])
    diagonal = constant_number(node.inputs[1]) if len(node.inputs) > 1 else 0.0
    if whole is None or whole.size != 1 or diagonal is None:
        return False
    if (1,) * (len(scores) - value.tensor.rank) + value.tensor.dims != (1, 1, *scores[-2:]):
        return False
    number, upper = float(whole.reshape(-1)[0]), bool(getattr(node.op, "upper", 1))
    low = value.tensor.dtype.is_float and upper and number <= HIDES
    if not low and (value.tensor.dtype.is_float or upper or not number):
        return False
    past = int(diagonal) - 1 if upper else int(diagonal)
    if past < 0:
        return False
    reading.causal, reading.past = True, past
    return True


def _read_ranges(condition: Value, scores: tuple[Dim, ...], reading: MaskReading) -> bool:
    """Whether a condition of open size compares a range of keys with a range of queries."""
    compared = _comparison(condition)
    if compared is None or reading.causal or reading.position:
        return False
    left, right, past = compared
    rank = len(scores)
    places = []
    for value, size in ((left, scores[-1]), (right, scores[-2])):
        axis = range_axis(value)
        if axis is None or value.tensor.dims[axis] != size or value.tensor.elements != size:
            return False
        places.append(axis + rank - value.tensor.rank)
    if places != [rank - 1, rank - 2] or past < 0:
        return False
    reading.causal, reading.past = True, past
    return True


def _read_triangle(seen: Array, scores: tuple[Dim, ...], reading: MaskReading) -> bool:
    """Whether query i sees exactly the keys up to i + past, for a past that is not negative."""
    queries, keys = scores[-2:]
    if not isinstance(queries, int) or not isinstance(keys, int) or seen.ndim > len(scores):
        return False
    if reading.causal or reading.position is not None:
        return False
    flat = seen.reshape((-1, *(1, 1, *seen.shape)[-2:]))
    if (flat != flat[:1]).any():
        return False  # samples or heads differ
    flat = flat[0]
    full = np.broadcast_to(flat, (queries, keys))
    past = int(full[0].sum()) - 1
    if past < 0 or not np.array_equal(full, np.tri(queries, keys, past, bool)):
        return False
    reading.causal, reading.past = True, past
    return True


#: Comparisons that say "at most", what they add to the greater side; and those turned round.
_COMPARED = {"LessOrEqual": 0, "Less": -1}
_TURNED = {"GreaterOrEqual": "LessOrEqual", "Greater": "Less"}


def _comparison(condition: Value) -> tuple[Value, Value, int] | None:
    """Values and a number such that the condition is "first <= second + number"."""
    node = condition.producer
    if node is None or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    kind = node.kind
    if kind in _TURNED:
        left, right, kind = right, left, _TURNED[kind]
    if kind not in _COMPARED or left is None or right is None:
        return None
    if left.tensor.dtype not in (DType.INT32, DType.INT64):
        return None
    return left, right, _COMPARED[kind]


def _read_position(condition: Value, scores: tuple[Dim, ...], reading: MaskReading) -> bool:
    """Whether a condition is "the key's index is at most a position plus a number"."""
    compared = _comparison(condition)
    if compared is None or reading.causal or reading.position:
        return False
    left, right, past = compared
    index, keys = constant_like(left), scores[-1]
    if index is None or not isinstance(keys, int) or index.shape[-1:] != (keys,):
        return False
    first = int(index.reshape(-1)[0])
    if index.size != keys or not np.array_equal(index.reshape(-1), np.arange(first, first + keys)):
        return False
    position = _number_of(right, scores)
    if position is None:
        return False
    reading.position, reading.past = position, past - first
    return True


def _number_of(value: Value, scores: tuple[Dim, ...]) -> Value | None:
    """The tensor of one number, or one per sample, that is compared; views of it are followed."""
    kind = value.tensor
    if kind.dtype not in (DType.INT32, DType.INT64):
        return None
    shape = (1,) * (len(scores) - kind.rank) + kind.dims
    if any(size != 1 for size in shape[1:]) or shape[0] not in (1, scores[0]):
        return None
    node = value.producer
    while node is not None and node.kind in ("View", "Unsqueeze", "Reshape", "Squeeze"):
        below = node.inputs[0]
        if below is None or below.tensor.elements != value.tensor.elements:
            break
        value, node = below, below.producer
    return value
