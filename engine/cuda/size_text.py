"""Sizes inside generated CUDA C: numbers are printed, symbolic ones become parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engine.ir.sizes import Dim, Size, symbols
from engine.plan.device import Scalar
from engine.plan.expressions import Range, interval
from engine.plan.structure import Symbol

__all__ = ["SizeText", "divides", "reach", "symbol_ranges"]

#: Below this, 32-bit arithmetic has room for what a grid adds past the end.
NARROW = (1 << 31) - (1 << 22)


def divides(number: int, dim: Dim) -> bool:
    """Whether a size is certain to be a multiple of a number."""
    if not isinstance(dim, Size):
        return dim % number == 0
    return all(coefficient % number == 0 for _, coefficient in dim.terms)


def symbol_ranges(known: Iterable[Symbol]) -> dict[str, Range]:
    """Least and greatest value of each symbol of a program, infinite where there is no bound."""
    found: dict[str, Range] = {}
    for item in known:
        most: float = math.inf
        if item.greatest is not None:
            most = max(interval(item.greatest, found)[1], item.least)
        found[item.name] = (item.least, most)
    return found


def _interval(dim: Dim, ranges: Mapping[str, Range]) -> Range:
    missing = symbols(dim) - ranges.keys()
    return interval(dim, {**ranges, **dict.fromkeys(missing, (0, math.inf))})


def reach(
    offset: Dim, counts: Iterable[Dim], strides: Iterable[Dim], ranges: Mapping[str, Range]
) -> float:
    """The greatest distance of an access from its tensor's start, in elements."""
    total = max(map(abs, _interval(offset, ranges)))
    for count, stride in zip(counts, strides, strict=True):
        if stride != 0:
            total += max(map(abs, _interval(count, ranges))) * max(
                map(abs, _interval(stride, ranges))
            )
    return total


@dataclass
class SizeText:
    """Gathers the symbolic sizes of one kernel in the order of their first use.

    With ``wide`` they are 64-bit parameters, else 32-bit ones.
    """

    wide: bool
    ranges: Mapping[str, Range] = field(default_factory=dict)
    _names: dict[Dim, str] = field(default_factory=dict)

    @property
    def index_type(self) -> str:
        """The C type of indices and sizes."""
        return "int64_t" if self.wide else "int32_t"

    def __call__(self, dim: Dim) -> str:
        """The C text of a size."""
        if not isinstance(dim, Size):
            return str(dim) if dim >= 0 else f"({dim})"
        return self._names.setdefault(dim, f"d{len(self._names)}")

    def greatest(self, dim: Dim) -> float:
        """The most that a size can be, infinite when there is no bound."""
        return _interval(dim, self.ranges)[1]

    @property
    def declarations(self) -> list[str]:
        """Parameters, to be listed behind the pointers."""
        return [f"const {self.index_type} {name}" for name in self._names.values()]

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """What a launch passes for them."""
        return tuple(Scalar("i64" if self.wide else "i32", dim) for dim in self._names)

    @staticmethod
    def needs_wide(dims: Iterable[Dim], ranges: Mapping[str, Range]) -> bool:
        """Whether one of these sizes or distances may not fit 32 bits."""
        return any(max(map(abs, _interval(dim, ranges))) >= NARROW for dim in dims)
