"""A built plan: the program, its weights, its target; saved to and opened from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.ir.types import Array
from engine.plan.recipes import apply
from engine.plan.structure import Program

__all__ = ["Plan", "open_plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `engine.build` returns and `engine.load` takes.

    ``weights`` maps tensor names to arrays, or to what makes them: an object with ``sources``
    (values with a ``constant``) and a ``recipe``.
    """

    program: Program
    weights: Mapping[str, Any]
    target: Mapping[str, Any]
    codegen: int = 1
    decisions: Sequence[Mapping[str, Any]] = field(default=())

    def array(self, name: str) -> Array:
        """One weight, made from its sources if need be."""
        found = self.weights[name]
        if hasattr(found, "recipe"):
            return apply(found.recipe, [source.constant for source in found.sources])
        return found  # type: ignore[no-any-return]

    def arrays(self) -> dict[str, Array]:
        """All weights."""
        return {name: self.array(name) for name in self.weights}

    @property
    def requires(self) -> list[str]:
        """Packages beyond the core that running this plan needs."""
        return []

    def metadata(self) -> dict[str, Any]:
        """What reports say about the plan beside its program."""
        return {
            "target": dict(self.target),
            "codegen": self.codegen,
            "requires": self.requires,
            "decisions": [dict(item) for item in self.decisions],
        }

    def save(self, path: str | Path) -> None:
        """Write the plan to a file."""
        raise NotImplementedError


def open_plan(path: Path, *, verify: bool = True) -> Plan:
    """Open a plan file: mapped, its program checked, its digests verified on request."""
    raise NotImplementedError
