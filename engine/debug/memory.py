"""How much memory a program's intermediate values take, beside what no plan could go below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.plan.arena import plan_arena
from engine.plan.structure import Program
from engine.runtime.binding import arena_requests, flat_steps

__all__ = ["ArenaUse", "arena_use"]


@dataclass(frozen=True, slots=True)
class ArenaUse:
    """Bytes of the arena at some sizes, and the most bytes alive at any one step."""

    sizes: Mapping[str, int]
    nbytes: int
    lower_bound: int

    @property
    def ratio(self) -> float:
        """The arena over its lower bound; 1 where nothing is kept."""
        return self.nbytes / self.lower_bound if self.lower_bound else 1.0

    def to_json(self) -> dict[str, Any]:
        """The use as JSON."""
        return {
            "sizes": dict(self.sizes),
            "nbytes": self.nbytes,
            "lower_bound": self.lower_bound,
            "ratio": self.ratio,
        }


def arena_use(program: Program) -> list[ArenaUse]:
    """The arena at the usual and at the greatest sizes of a program, each once.

    Empty when sizes depend on data, greatest sizes only where they are numbers.
    """
    if any(item.source[0] == "data" for item in program.symbols):
        return []
    points = [{item.name: item.usual[0] for item in program.symbols}]
    if all(isinstance(item.greatest, int) for item in program.symbols):
        greatest = {item.name: int(str(item.greatest)) for item in program.symbols}
        if greatest != points[0]:
            points.append(greatest)
    found = []
    for sizes in points:
        arena = plan_arena(arena_requests(program, list(flat_steps(program.steps, sizes)), sizes))
        found.append(ArenaUse(sizes, arena.nbytes, arena.lower_bound))
    return found
