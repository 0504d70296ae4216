"""Profiles: which sizes an engine serves, and for which it is tuned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.errors import OptionError
from engine.ir.graph import Graph
from engine.ir.sizes import Dim, symbol
from engine.ir.types import TensorType
from engine.plan.structure import Symbol

__all__ = ["AxisSpec", "Profile", "parse_shapes", "profile_symbols", "tuned_points"]

#: An axis that nobody gave a range serves sizes from 0 to this, and is tuned for 1.
OPEN_GREATEST = 1024
_LARGEST = 1 << 31

AxisSpec = int | str
_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?(?:\.\.(\d+))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")


@dataclass(frozen=True, slots=True)
class Profile:
    """Shapes of inputs by name, and (least, usual, greatest) of each named size."""

    shapes: Mapping[str, tuple[Dim, ...]]
    ranges: Mapping[str, tuple[int, int, int]]

    def to_json(self) -> dict[str, object]:
        """The profile in the form that enters a build key."""
        return {
            "shapes": {k: [str(d) for d in v] for k, v in sorted(self.shapes.items())},
            "ranges": {name: list(r) for name, r in sorted(self.ranges.items())},
        }


def parse_shapes(shapes: Mapping[str, Sequence[AxisSpec]] | None) -> Profile:
    """Read shapes such as ``{"x": ("batch=1..8..32", 3, 224, 224)}``.

    An axis is a size, a name, or ``name=least..usual..greatest`` (``least..greatest`` takes the
    greatest as usual, one number fixes the size). Raises OptionError naming the axis at fault.
    """
    result: dict[str, tuple[Dim, ...]] = {}
    ranges: dict[str, tuple[int, int, int]] = {}
    for name, axes in (shapes or {}).items():
        dims = [_axis(name, index, axis, ranges) for index, axis in enumerate(axes)]
        result[name] = tuple(dims)
    return Profile(result, ranges)


def _axis(name: str, index: int, axis: AxisSpec, ranges: dict[str, tuple[int, int, int]]) -> Dim:
    where = f"shape of {name!r}, axis {index}"
    if isinstance(axis, int) and not isinstance(axis, bool):
        if not 0 <= axis < _LARGEST:
            raise OptionError(f"{where}: {axis} is no size")
        return axis
    text = "" if isinstance(axis, bool) else str(axis).strip()
    label, _, span = text.rpartition("=") if "=" in text else ("", "", text)
    if not label and _NAME.fullmatch(text):
        return symbol(text)
    found = _RANGE.fullmatch(span)
    if found is None or ("=" in text and not _NAME.fullmatch(label)):
        raise OptionError(f"{where}: found {axis!r}, expected 8, batch or batch=1..8..32")
    numbers = [int(item) for item in found.groups() if item is not None]
    if len(numbers) == 1:
        return numbers[0]
    least, greatest = numbers[0], numbers[-1]
    usual = numbers[1] if len(numbers) == 3 else greatest
    if not least <= usual <= greatest < _LARGEST or greatest == 0:
        raise OptionError(f"{where}: {span} does not rise from least over usual to greatest")
    label = label or f"{name}_{index}"
    if ranges.setdefault(label, (least, usual, greatest)) != (least, usual, greatest):
        raise OptionError(f"{where}: {label} has the range {ranges[label]} elsewhere, {span} here")
    return symbol(label)


def profile_symbols(graph: Graph, profile: Profile) -> tuple[Symbol, ...]:
    """The symbols of a graph's inputs with their ranges, in order of first use."""
    found: dict[str, Symbol] = {}
    for value in graph.inputs:
        if not isinstance(value.type, TensorType) or value.type.shape is None:
            continue
        for axis, dim in enumerate(value.type.shape):
            if isinstance(dim, int) or str(dim) in found:
                continue
            name = str(dim)
            least, usual, greatest = profile.ranges.get(name, (0, 1, OPEN_GREATEST))
            found[name] = Symbol(name, least, (usual,), greatest, ("input", value.name, axis))
    unknown = sorted(set(profile.ranges) - set(found))
    if unknown:
        raise OptionError(f"no input has an axis called {unknown[0]!r}; there are {sorted(found)}")
    return tuple(found.values())


def tuned_points(symbols: Sequence[Symbol], profile: Profile) -> list[dict[str, int]]:
    """The sizes for which layers are tuned one by one: usual, least and greatest, each once.

    A size that nobody gave a range stays at its usual value, and no size is 0, where there is
    nothing to measure.
    """
    usual = {item.name: item.usual[0] for item in symbols}
    least, greatest = dict(usual), dict(usual)
    for item in symbols:
        if item.name in profile.ranges:
            low, _, high = profile.ranges[item.name]
            least[item.name], greatest[item.name] = max(low, min(high, 1)), high
    points = [usual]
    for point in (least, greatest):
        if point not in points:
            points.append(point)
    return points
