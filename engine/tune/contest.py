"""What is measured on a GPU, and what comes of it: plain values that travel between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from engine.ir.types import Array
from engine.plan.structure import Program

__all__ = ["Contest", "Entrant", "Outcome"]


@dataclass(frozen=True, slots=True)
class Entrant:
    """One way to run a layer, or a network: a program at fixed sizes, its weights, its images."""

    program: Program
    weights: Mapping[str, Array]
    images: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Contest:
    """Entrants that compute the same thing, and the one whose results are taken as right.

    ``tolerance`` is the greatest error in units of the spread of a result. Inputs are random data,
    but for those that ``fills`` names, which hold one number each.
    """

    reference: Entrant
    entrants: tuple[Entrant, ...]
    samples: int
    tolerance: float
    fills: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The samples of an entrant in nanoseconds, or the reason of its failure.

    A failure that is not ``lasting`` says nothing of the entrant: memory was short beside others.
    """

    samples: tuple[float, ...] = ()
    reason: str = ""
    lasting: bool = True

    @property
    def time_ns(self) -> float:
        """The 30th percentile of the samples, infinite when there are none."""
        return float(np.percentile(self.samples, 30)) if self.samples else float("inf")

    @property
    def spread(self) -> float:
        """Distance between the 10th and 50th percentile, relative to `time_ns`."""
        if not self.samples:
            return 0.0
        low, high = np.percentile(self.samples, [10, 50])
        return float((high - low) / max(self.time_ns, 1.0))
