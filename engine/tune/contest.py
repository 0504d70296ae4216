"""What is measured on a GPU, and what comes of it: plain values that travel between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.ir.types import Array
from engine.plan.structure import Program

__all__ = ["Contest", "Entrant", "Outcome", "without_drift"]


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


def without_drift(samples: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Samples of entrants that took turns, without what slowed or sped up a whole turn.

    ``samples[i][t]`` was measured in turn ``t``; who left early has fewer. A GPU's clock moves by
    several percent while it grows warm, for all entrants alike: each turn is divided by the median,
    over those that took part in all turns, of their time then over their usual time. An entrant
    alone tells nothing of the turns, so its samples are left as they are.
    """
    turns = max(map(len, samples), default=0)
    lasting = np.array([item for item in samples if len(item) == turns])
    if turns == 0 or len(lasting) < 2:
        return [tuple(item) for item in samples]
    pace = np.median(lasting / np.median(lasting, axis=1, keepdims=True), axis=0)
    return [tuple(float(s / p) for s, p in zip(item, pace)) for item in samples]
