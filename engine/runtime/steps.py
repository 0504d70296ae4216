"""Which steps of a program run at given sizes, and what memory they need when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engine.ir.sizes import evaluate
from engine.ir.types import TensorType
from engine.plan.accesses import touched_slots
from engine.plan.arena import Request
from engine.plan.guards import choose
from engine.plan.slots import root_of
from engine.plan.structure import ChooseStep, FlatStep, Program, Step

__all__ = ["arena_requests", "flat_steps", "greatest_sizes", "locate", "slot_nbytes"]


def flat_steps(steps: Sequence[Step], sizes: Mapping[str, int]) -> Iterator[FlatStep]:
    """The steps that run for these sizes, with every choice made."""
    for step in steps:
        if isinstance(step, ChooseStep):
            yield from flat_steps(choose(step, sizes), sizes)
        else:
            yield step


def greatest_sizes(program: Program) -> dict[str, int] | None:
    """The greatest value of every symbol; None when one has no bound that is a number."""
    sizes = {}
    for symbol in program.symbols:
        if not isinstance(symbol.greatest, int):
            return None
        sizes[symbol.name] = symbol.greatest
    return sizes


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


def arena_requests(
    program: Program, steps: Sequence[FlatStep], sizes: Mapping[str, int]
) -> list[Request]:
    """One request per arena slot: its bytes, and the first and last step that touch it."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, step in enumerate(steps):
        for slot in touched_slots(step):
            root = root_of(program, slot)
            if program.slots[root].place == "arena":
                first.setdefault(root, position)
                last[root] = position
    return [
        Request(root, slot_nbytes(program, root, sizes), first[root], last[root]) for root in first
    ]
