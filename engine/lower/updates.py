"""Outputs that update an input in place: what was declared, and where no copy is needed.

A cache or a state comes in as an input, leaves as an output, and keeps its memory in between. The
output is made in the input's memory at once when nothing reads the old value afterwards and its
maker may write over what it reads; otherwise it is made elsewhere and copied there at the end, when
everything that reads the old value has run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import OptionError
from engine.ir.graph import Graph, Node, Value
from engine.ir.types import TensorType, is_bound
from engine.ops.cache_update import CachedAttention, CacheUpdate
from engine.ops.expression import order
from engine.ops.functions import REDUCTIONS
from engine.ops.region import Region

__all__ = ["Updates", "copy_order", "plan_updates", "shared_operands", "viewed"]


@dataclass(frozen=True, slots=True)
class Updates:
    """``inputs`` maps positions of outputs to the inputs that they update.

    ``copied`` names, for positions that are not made in place, what stands against it.
    """

    inputs: Mapping[int, Value] = field(default_factory=dict)
    copied: Mapping[int, str] = field(default_factory=dict)

    def in_place(self, position: int) -> bool:
        """Whether an output is made in the memory of an input."""
        return position in self.inputs and position not in self.copied


def viewed(value: Value) -> Value | None:
    """What a value is a view of; None when it is none."""
    if value.producer is None or value.producer.kind != "View":
        return None
    return value.producer.inputs[0]


def _origin(value: Value) -> Value:
    """The value whose elements a view shows."""
    while (source := viewed(value)) is not None:
        value = source
    return value


def plan_updates(graph: Graph, declared: Mapping[str, str]) -> Updates:
    """The updates of a graph, ``declared`` as names of outputs to names of inputs.

    Raises OptionError for a name that is not there, an input updated twice, or unequal types.
    """
    if not declared:
        return Updates()
    names = graph.output_names or [value.name for value in graph.outputs]
    inputs = {value.name: value for value in graph.inputs}
    found: dict[int, Value] = {}
    for name, into in declared.items():
        said = f"output {name!r} is declared the update of input {into!r}"
        if name not in names:
            raise OptionError(f"{said}: there is no such output; the outputs are {list(names)}")
        if into not in inputs:
            raise OptionError(f"{said}: there is no such input; the inputs are {list(inputs)}")
        if any(value is inputs[into] for value in found.values()):
            raise OptionError(f"{said}, which another output updates already")
        position = list(names).index(name)
        kind, wanted = graph.outputs[position].type, inputs[into].type
        if not is_bound(wanted) or not isinstance(wanted, TensorType):
            raise OptionError(f"{said}: it is {wanted}; expected a tensor of known sizes")
        if kind != wanted:
            raise OptionError(
                f"{said}: the output is {kind}, the input {wanted}; expected one type"
            )
        found[position] = inputs[into]
    places = {id(node): index for index, node in enumerate(graph.nodes)}
    seen: set[int] = set()
    copied: dict[int, str] = {}
    for position, old in sorted(found.items()):
        origin = _origin(graph.outputs[position])
        reason = _hindrance(graph, position, origin, old, places)
        if id(origin) in seen:
            reason = reason or "two inputs are updated by one value"
        seen.add(id(origin))
        if reason:
            copied[position] = reason
    return Updates(found, copied)


def _hindrance(
    graph: Graph, position: int, origin: Value, old: Value, places: Mapping[int, int]
) -> str:
    """What stands against making an output in the memory of an input; "" for nothing."""
    if origin.producer is None:
        return "" if origin is old else "it is no result of a layer"
    views = _views(old)
    maker = origin.producer
    for value in views:
        if any(item is value for place, item in enumerate(graph.outputs) if place != position):
            return f"the old value of {old.name!r} is an output too"
        for user, _ in value.uses:
            if user.kind != "View" and user is not maker and places[id(user)] > places[id(maker)]:
                return f"{user.name!r} reads the old value of {old.name!r} afterwards"
    reads = [
        place for place, item in enumerate(maker.inputs) if any(item is value for value in views)
    ]
    written = next(place for place, item in enumerate(maker.outputs) if item is origin)
    if any(not _writes_over(maker, place, written) for place in reads):
        return f"{maker.name!r} may read of the old value what it has written over"
    return ""


def _views(value: Value) -> list[Value]:
    """A value and everything that is a view of it."""
    found = [value]
    for item in found:
        found += [user.outputs[0] for user, _ in item.uses if user.kind == "View"]
    return found


def _writes_over(node: Node, read: int, written: int) -> bool:
    """Whether every way to run a node may write an output over the operand that it reads."""
    op = node.op
    if isinstance(op, CacheUpdate):
        return read == 0
    if isinstance(op, CachedAttention):
        return (read, written) in ((1, 1), (2, 2))
    if not isinstance(op, Region):
        return False
    # Every point reads all it needs before it writes anything, once, where nothing is reduced.
    stores = [item for item in op.stores if item.output == written]
    others = [item.value.function for item in op.stores if item.output != written]
    nodes = order(*(item.value for item in op.stores))
    if len(stores) != 1 or "load" in others or any(n.function in REDUCTIONS for n in nodes):
        return False
    (store,) = stores
    same = all(
        (item.offset, item.strides) == (store.offset, store.strides)
        and item.gather is None
        and not item.bounds
        for item in op.loads
        if item.operand == read
    )
    single = all(step != 0 or size == 1 for step, size in zip(store.strides, op.space))
    return same and single


def shared_operands(
    graph: Graph, declared: Mapping[str, str]
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Per node that writes over what it reads: positions of such operands and of their results."""
    updates = plan_updates(graph, declared)
    found: dict[str, list[tuple[int, int]]] = {}
    for position, old in updates.inputs.items():
        origin = _origin(graph.outputs[position])
        maker = origin.producer
        if maker is None or not updates.in_place(position):
            continue
        views = _views(old)
        for place, item in enumerate(maker.inputs):
            if any(item is value for value in views):
                found.setdefault(maker.name, []).append((place, maker.outputs.index(origin)))
    return {name: tuple(sorted(pairs)) for name, pairs in found.items()}


def copy_order(copies: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Copies (source, target) of memory in an order in which none reads what another has written.

    ValueError when they form a cycle.
    """
    waiting, ordered = list(copies), []
    while waiting:
        free = next(
            (
                item
                for item in waiting
                if not any(other is not item and other[0] == item[1] for other in waiting)
            ),
            None,
        )
        if free is None:
            raise ValueError("the copies form a cycle")
        waiting.remove(free)
        ordered.append(free)
    return ordered
