"""Which steps of a program run at given sizes, and what memory they need when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.plan.accesses import touched_slots
from engine.plan.arena import Request
from engine.plan.guards import flat_steps
from engine.plan.lanes import order_steps
from engine.plan.slots import locate, root_of, slot_nbytes
from engine.plan.structure import FlatStep, Program

__all__ = ["arena_requests", "flat_steps", "greatest_sizes", "locate", "slot_nbytes"]


def greatest_sizes(program: Program) -> dict[str, int] | None:
    """The greatest value of every symbol; None when one has no bound that is a number."""
    sizes = {}
    for symbol in program.symbols:
        if not isinstance(symbol.greatest, int):
            return None
        sizes[symbol.name] = symbol.greatest
    return sizes


def arena_requests(
    program: Program, steps: Sequence[FlatStep], sizes: Mapping[str, int]
) -> list[Request]:
    """One request per arena slot: its bytes, and the first and last step that touch it.

    Where lanes run side by side, also the steps that may run while one of those does.
    """
    order = order_steps(program, steps, sizes)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, step in enumerate(steps):
        begin, end = (position, position) if order is None else order.windows[position]
        for slot in touched_slots(step):
            root = root_of(program, slot)
            if program.slots[root].place == "arena":
                first[root] = min(first.get(root, begin), begin)
                last[root] = max(last.get(root, end), end)
    return [
        Request(root, slot_nbytes(program, root, sizes), first[root], last[root]) for root in first
    ]
