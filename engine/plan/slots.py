"""Checks of a program's slots: places, names, views, and sizes within bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from engine.ir.sizes import Size, evaluate, symbols
from engine.ir.types import DType, TensorType, UnknownSize
from engine.plan.expressions import LARGEST_PRODUCT, Range, interval
from engine.plan.fields import brief, refuse
from engine.plan.structure import Program, Slot, Weight
from engine.plan.symbols import Points, ranges

__all__ = ["Storage", "check_slots", "is_fixed", "locate", "root_of", "slot_nbytes", "slot_symbols"]


@dataclass(frozen=True, slots=True)
class Storage:
    """Per slot, the slot whose memory it is (views are followed), and whether it may be written."""

    roots: tuple[int, ...]
    writable: tuple[bool, ...]
    ranges: Mapping[str, Range]


def is_fixed(slot: Slot) -> bool:
    """Whether the slot is a tensor in memory whose size follows from the symbols."""
    return (
        slot.place != "host"
        and isinstance(slot.type, TensorType)
        and slot.type.shape is not None
        and slot.type.dtype is not DType.STRING
        and not any(isinstance(dim, UnknownSize) for dim in slot.type.shape)
    )


def slot_symbols(slot: Slot) -> frozenset[str]:
    """The symbols that a slot's shape and offset depend on."""
    found = symbols(slot.offset)
    if isinstance(slot.type, TensorType) and slot.type.shape is not None:
        found = found.union(*(symbols(dim) for dim in slot.type.shape))
    return found


def root_of(program: Program, slot: int) -> int:
    """The slot whose memory this slot views; the slot itself when it is no view."""
    seen = slot
    for _ in program.slots:
        alias = program.slots[seen].alias
        if alias is None:
            return seen
        seen = alias
    raise ValueError(f"the views of slot {slot} form a cycle")


def slot_nbytes(program: Program, index: int, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor slot."""
    kind = program.slots[index].type
    assert isinstance(kind, TensorType)
    return evaluate(kind.elements, sizes) * kind.dtype.nbytes


def locate(program: Program, slot: int, elements: int, sizes: Mapping[str, int]) -> tuple[int, int]:
    """The root of a slot, and where ``elements`` into the slot lies in it, in bytes."""
    kind = program.slots[slot].type
    assert isinstance(kind, TensorType)
    nbytes = elements * kind.dtype.nbytes
    while (above := program.slots[slot].alias) is not None:
        nbytes += evaluate(program.slots[slot].offset, sizes)
        slot = above
    return slot, nbytes


def check_slots(
    program: Program,
    where: str,
    weights: Mapping[str, Weight],
    points: Points,
    *,
    top: bool,
) -> Storage:
    """Refuse slots that contradict their place, weight or the slot they view."""
    _interface(program, where)
    bounds = ranges(program)
    for index, slot in enumerate(program.slots):
        at = f"{where}[{index}]"
        if slot.alias is not None and not 0 <= slot.alias < len(program.slots):
            refuse(f"{at}.alias", f"there is no slot {slot.alias}")
        if slot.alias is None and slot.offset != 0:
            refuse(f"{at}.offset", "a slot that is no view has an offset")
        if slot.place == "weight":
            _weight(slot, at, weights)
        elif slot.place in ("arena", "zeros") and not is_fixed(slot):
            refuse(at, f"{slot.type} is no tensor of known size")
        _size(slot, at, bounds, points, top=top)
    roots = _roots(program, where)
    for index, slot in enumerate(program.slots):
        if slot.alias is not None:
            _view(program, index, f"{where}[{index}]", roots, points)
    return Storage(roots, tuple(_writable(program, i, r) for i, r in enumerate(roots)), bounds)


def _interface(program: Program, where: str) -> None:
    """Inputs and outputs are listed once each, and have names of their own."""
    for place, listed in (("input", program.inputs), ("output", program.outputs)):
        found = [i for i, slot in enumerate(program.slots) if slot.place == place]
        if sorted(listed) != found:
            refuse(where, f"the {place}s listed are not the slots with the place {place!r}")
        names = [program.slots[i].name for i in listed]
        if len(set(names)) != len(names) or "" in names:
            refuse(where, f"two {place}s have the same name, or one has none")


def _weight(slot: Slot, where: str, weights: Mapping[str, Weight]) -> None:
    weight = weights.get(slot.name)
    if weight is None:
        refuse(f"{where}.name", f"no weight is called {brief(slot.name)}")
    if slot.type != TensorType(weight.dtype, weight.shape) or slot.alias is not None:
        refuse(where, f"the weight is {weight.dtype.value}{list(weight.shape)}, not {slot.type}")


def _size(
    slot: Slot, where: str, bounds: Mapping[str, Range], points: Points, *, top: bool
) -> None:
    if not isinstance(slot.type, TensorType) or slot.type.shape is None:
        return
    nbytes: float = slot.type.dtype.nbytes
    for axis, dim in enumerate(slot.type.shape):
        if isinstance(dim, UnknownSize):
            continue
        most = interval(dim, bounds)[1]
        if most < 0:
            refuse(f"{where}.type", f"axis {axis} is negative")
        nbytes = 0 if nbytes == 0 or most == 0 else nbytes * most
        for point in points if isinstance(dim, Size) else ():
            if symbols(dim) <= point.keys() and evaluate(dim, point) < 0:
                refuse(f"{where}.type", f"axis {axis} is negative at {dict(point)}")
    if math.isinf(nbytes) and (
        slot.place in ("arena", "weight", "zeros") or slot.alias is not None
    ):
        refuse(f"{where}.type", "the greatest size has no bound")
    if nbytes > LARGEST_PRODUCT and not math.isinf(nbytes):
        refuse(f"{where}.type", "the greatest size passes 2**62 bytes")


def _roots(program: Program, where: str) -> tuple[int, ...]:
    roots: dict[int, int] = {}
    for index in range(len(program.slots)):
        path, slot = [], index
        while slot not in roots:
            path.append(slot)
            alias = program.slots[slot].alias
            if alias is None:
                roots[slot] = slot
            elif alias in path:
                refuse(f"{where}[{index}].alias", "the views form a cycle")
            else:
                slot = alias
        roots.update(dict.fromkeys(path, roots[slot]))
    return tuple(roots[index] for index in range(len(program.slots)))


def _view(program: Program, index: int, where: str, roots: tuple[int, ...], points: Points) -> None:
    slot = program.slots[index]
    assert slot.alias is not None
    whole, root = program.slots[slot.alias], program.slots[roots[index]]
    if not is_fixed(slot) or not is_fixed(whole):
        refuse(where, "a view and what it views must be tensors of known size in memory")
    if slot.place != "arena" and (slot.place, root.place) != ("output", "input"):
        refuse(where, f"the place {slot.place!r} cannot be a view of {root.place!r}")
    assert isinstance(slot.type, TensorType)
    assert isinstance(whole.type, TensorType)
    used = slot_symbols(slot) | slot_symbols(whole)
    for point in points:
        if not used <= point.keys():
            continue
        begin, itemsize = evaluate(slot.offset, point), slot.type.dtype.nbytes
        end = begin + evaluate(slot.type.elements, point) * itemsize
        held = evaluate(whole.type.elements, point) * whole.type.dtype.nbytes
        if begin < 0 or end > held or begin % itemsize:
            refuse(where, f"bytes {begin} to {end} are no part of the {held} that it views")


def _writable(program: Program, index: int, root: int) -> bool:
    """Weights never; inputs only through an output that is declared their update."""
    place = program.slots[root].place
    if place != "input":
        return place != "weight"
    slot = index
    while slot != root:
        if program.slots[slot].place == "output":
            return True
        alias = program.slots[slot].alias
        assert alias is not None
        slot = alias
    return False
