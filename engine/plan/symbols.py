"""Checks of a program's symbols, and the points of its profile at which sizes are tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engine.ir.sizes import evaluate, symbol, symbols
from engine.ir.types import TensorType
from engine.plan.expressions import LARGEST, Range, interval
from engine.plan.fields import brief, refuse
from engine.plan.structure import Program, Symbol

__all__ = ["Points", "check_symbols", "profile_points", "ranges"]

#: Values of the symbols: least, greatest, usual points; symbols without a bound are left out.
Points = Sequence[Mapping[str, int]]


def ranges(program: Program) -> dict[str, Range]:
    """Least and greatest value of each symbol, infinite where there is no bound."""
    found: dict[str, Range] = {}
    for item in program.symbols:
        most: float = math.inf
        if item.greatest is not None:
            most = max(interval(item.greatest, found)[1], item.least)
        found[item.name] = (item.least, most)
    return found


def profile_points(program: Program) -> Points:
    """Distinct values of all symbols at the least, greatest and usual points."""
    least = {item.name: item.least for item in program.symbols}
    greatest: dict[str, int] = {}
    for item in program.symbols:
        if item.greatest is not None and symbols(item.greatest) <= greatest.keys():
            greatest[item.name] = max(evaluate(item.greatest, greatest), item.least)
    points = [least, greatest]
    for index in range(max((len(item.usual) for item in program.symbols), default=0)):
        points.append(
            {
                item.name: item.usual[min(index, len(item.usual) - 1)]
                for item in program.symbols
                if item.usual
            }
        )
    distinct: list[dict[str, int]] = []
    for point in points:
        if point not in distinct:
            distinct.append(point)
    return distinct


def check_symbols(program: Program, where: str, *, top: bool) -> Points:
    """Refuse symbols whose bounds or sources contradict the inputs; the points otherwise."""
    names: dict[str, int] = {}
    for index, item in enumerate(program.symbols):
        at = f"{where}[{index}]"
        if item.name in names:
            refuse(at, f"the symbol {brief(item.name)} is listed twice")
        if item.greatest is not None and not symbols(item.greatest) <= names.keys():
            refuse(f"{at}.greatest", "it depends on symbols that are not listed before")
        names[item.name] = index
        _source(program, item, at, top=top)
    for name, (least, most) in ranges(program).items():
        item, at = program.symbols[names[name]], f"{where}[{names[name]}]"
        if not 0 <= least <= LARGEST or (most > LARGEST and not math.isinf(most)):
            refuse(at, "its bounds pass 2**48")
        if any(not least <= value <= most for value in item.usual):
            refuse(f"{at}.usual", f"{list(item.usual)[:8]} leaves {least} to {most}")
        if isinstance(item.greatest, int) and item.greatest < least:
            refuse(f"{at}.greatest", f"{item.greatest} is less than the least value {least}")
    if len(program.symbols) and max(len(item.usual) for item in program.symbols) > 64:
        refuse(where, "there are more than 64 usual points")
    return profile_points(program)


def _source(program: Program, item: Symbol, where: str, *, top: bool) -> None:
    if item.source[0] == "data":
        return
    _, name, axis = item.source
    if top and not (isinstance(item.greatest, int) and item.usual):
        refuse(where, "a symbol of an input has a usual value and a number as its greatest")
    slots = [program.slots[i] for i in program.inputs if 0 <= i < len(program.slots)]
    kinds = [slot.type for slot in slots if slot.name == name]
    if len(kinds) != 1 or not isinstance(kinds[0], TensorType) or kinds[0].shape is None:
        refuse(f"{where}.source", f"no tensor input is called {brief(name)}")
    shape = kinds[0].shape
    if not 0 <= axis < len(shape) or shape[axis] != symbol(item.name):
        refuse(f"{where}.source", f"axis {axis} of {brief(name)} is not {brief(item.name)}")
