"""Where everything lies in the memory of a context on a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from engine.plan.arena import ALIGNMENT, Arena, plan_arena
from engine.plan.lanes import check_order, order_steps
from engine.plan.slots import is_fixed
from engine.plan.structure import FlatStep, Program
from engine.runtime.steps import arena_requests, slot_nbytes

__all__ = ["ALIGNMENT", "Layout", "aligned", "lay_out", "named_layers"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in a context's memory at one set of sizes.

    ``places`` are byte offsets by slot: arena slots, then inputs and outputs of the context's own.
    ``zeros`` are offsets of the counters, in memory of their own.
    """

    arena: Arena
    places: Mapping[int, int]
    nbytes: int
    zeros: Mapping[int, int]
    zeros_nbytes: int


def lay_out(
    program: Program,
    steps: Sequence[FlatStep],
    sizes: Mapping[str, int],
    external: Collection[int] = (),
) -> Layout:
    """Plan a context's memory for the steps that run at these sizes.

    Inputs and outputs in ``external`` need no place in it. Raises PlanCorruptError when steps that
    run side by side touch the same memory.
    """
    arena = plan_arena(arena_requests(program, steps, sizes))
    order = order_steps(program, steps, sizes)
    if order is not None:
        check_order(program, steps, sizes, order, arena.offsets)
    places, end = dict(arena.offsets), arena.nbytes
    zeros: dict[int, int] = {}
    zeros_end = 0
    for index, slot in enumerate(program.slots):
        if slot.alias is not None or index in external or not is_fixed(slot):
            continue
        if slot.place in ("input", "output"):
            places[index] = end
            end += aligned(slot_nbytes(program, index, sizes))
        elif slot.place == "zeros":
            zeros[index] = zeros_end
            zeros_end += aligned(slot_nbytes(program, index, sizes))
    return Layout(arena, places, end, zeros, zeros_end)


def aligned(nbytes: int) -> int:
    """Bytes up to the next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def named_layers(program: Program, layers: Sequence[int]) -> str:
    """Names of layers for a message, the first and last few of many."""
    names = [program.layers[index].name or program.layers[index].kind for index in layers]
    names = list(dict.fromkeys(names))
    if len(names) > 6:
        names = [*names[:3], f"{len(names) - 6} more", *names[-3:]]
    return ", ".join(names)
