"""Size expressions of a plan: read from hostile JSON, and bounded from above."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.ir.sizes import Dim, Size, dim_from_json
from engine.plan.fields import brief, refuse

__all__ = ["Range", "LARGEST", "LARGEST_PRODUCT", "interval", "read_dim"]

#: No number in a plan, and no size that is bound, may pass this.
LARGEST = 1 << 48
#: What sizes may grow to at the greatest shapes, where several axes without a profile multiply.
LARGEST_PRODUCT = 1 << 62
MAX_NODES = 512
MAX_DEPTH = 32
MAX_TERMS = 256
MAX_DEGREE = 16

#: Least and greatest value; infinities stand for no bound.
Range = tuple[float, float]


def _weigh(value: Any, where: str, depth: int, budget: list[int]) -> tuple[int, int]:
    """Bounds of the terms and the degree that a JSON expression multiplies out to."""
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        refuse(where, "a size expression is nested too deeply or too long")
    if isinstance(value, str):
        return 1, 1
    if not isinstance(value, list) or len(value) != 3:
        return 1, 0
    left = _weigh(value[1], where, depth + 1, budget)
    right = _weigh(value[2], where, depth + 1, budget)
    terms, degree = left[0] + right[0], max(left[1], right[1])
    if value[0] == "*":
        terms, degree = left[0] * right[0], left[1] + right[1]
    if terms > MAX_TERMS or degree > MAX_DEGREE:
        refuse(where, "a size expression multiplies out to too many terms")
    return (terms, degree) if value[0] in ("+", "*") else (terms, max(degree, 1))


def read_dim(value: Any, where: str, known: frozenset[str]) -> Dim:
    """A size over known symbols; PlanCorruptError for anything else, before any costly work."""
    _weigh(value, where, 0, [MAX_NODES])
    try:
        dim = dim_from_json(value, known)
    except (ValueError, ZeroDivisionError, OverflowError, RecursionError) as error:
        refuse(where, str(error)[:160])
    if isinstance(dim, int) and abs(dim) > LARGEST:
        refuse(where, f"found {brief(dim)}, expected a size of at most 2**48")
    return dim


def _product(left: Range, right: Range) -> Range:
    corners = [0 if 0 in (a, b) else a * b for a in left for b in right]
    return min(corners), max(corners)


def _quotient(left: Range, right: Range, function: str) -> Range:
    """Bounds of a quotient; the divisor is never 0 (the run refuses that)."""
    if right[0] < 0:
        reach = max(abs(left[0]), abs(left[1]))
        return -reach, reach
    least, most = max(right[0], 1), max(right[1], 1)
    corners = [_divide(a, b, function) for a in left for b in (least, most)]
    return min(corners), max(corners)


def _divide(left: float, right: float, function: str) -> float:
    if math.isinf(left):
        return left
    if math.isinf(right):
        return 0 if left >= 0 else -1
    quotient = int(left) // int(right)
    return quotient if function == "floordiv" else -(-int(left) // int(right))


def _call(function: str, left: Range, right: Range) -> Range:
    if function == "min":
        return min(left[0], right[0]), min(left[1], right[1])
    if function == "max":
        return max(left[0], right[0]), max(left[1], right[1])
    if function == "mod":
        if right[0] < 0:
            return right[0], max(right[1], 0)
        most = max(right[1] - 1, 0)
        return 0, min(most, left[1]) if left[0] >= 0 else most
    least, most = _quotient(left, right, function)
    return (least, max(most, 1)) if function == "ceildiv" else (least, most)


def interval(dim: Dim, ranges: Mapping[str, Range]) -> Range:
    """Bounds of a size when each symbol stays within its range (interval arithmetic)."""
    if not isinstance(dim, Size):
        return dim, dim
    least: float = 0
    most: float = 0
    for monomial, coefficient in dim.terms:
        term: Range = (coefficient, coefficient)
        for atom in monomial:
            if isinstance(atom, str):
                factor = ranges[atom]
            else:
                left, right = interval(atom.left, ranges), interval(atom.right, ranges)
                factor = _call(atom.function, left, right)
            term = _product(term, factor)
        least, most = least + term[0], most + term[1]
    return least, most
