"""Symbolic sizes: integer polynomials over named dimensions, with floor division, min and max.

A dimension is an ``int`` or a `Size`. Arithmetic keeps a normal form (a sum of monomials with
integer coefficients), so equal expressions compare equal: ``(n * 12 + n * 52) // 64 == n``.
A `Size` that turns out constant becomes an ``int`` again. Symbols stand for integers >= 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Dim",
    "Size",
    "symbol",
    "evaluate",
    "symbols",
    "floordiv",
    "ceildiv",
    "modulo",
    "minimum",
    "maximum",
    "product",
    "provably_equal",
    "bounds",
    "dim_to_json",
    "dim_from_json",
]

MAX_JSON_DEPTH = 64
MAX_JSON_NODES = 4096
#: A product of sums has as many terms as the product of their counts.
MAX_JSON_TERMS = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """An operation that polynomials cannot express, kept opaque."""

    function: str
    left: Dim
    right: Dim

    def __str__(self) -> str:
        if self.function in ("min", "max", "ceildiv"):
            return f"{self.function}({self.left}, {self.right})"
        sign = {"floordiv": "//", "mod": "%"}[self.function]
        return f"({_operand(self.left)} {sign} {_operand(self.right)})"


def _operand(dim: Dim) -> str:
    """A size as text, in brackets where it is a sum or a product."""
    simple = isinstance(dim, int) or (len(dim.terms) == 1 and "*" not in str(dim))
    return str(dim) if simple else f"({dim})"


Atom = str | Call
Monomial = tuple[Atom, ...]


def _order(monomial: Monomial) -> tuple[int, tuple[str, ...]]:
    return (-len(monomial), tuple(str(atom) for atom in monomial))


class Size:
    """A symbolic size in normal form; immutable and hashable."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.terms == other.terms

    def __repr__(self) -> str:
        return f"Size({self})"

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+"
            text += f" {sign} " if text else ("-" if coefficient < 0 else "")
            text += "*".join(factors)
        return text

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1) if _is_dim(other) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1) if _is_dim(other) else NotImplemented

    def __rsub__(self, other: Dim) -> Dim:
        return _sum(self * -1, other, 1) if _is_dim(other) else NotImplemented

    def __mul__(self, other: Dim) -> Dim:
        if not _is_dim(other):
            return NotImplemented
        merged: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                key = tuple(sorted(left + right, key=str))
                merged[key] = merged.get(key, 0) + a * b
        return _normal(merged)

    __rmul__ = __mul__

    def __neg__(self) -> Dim:
        return self * -1

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return modulo(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return modulo(other, self)


Dim = int | Size


def _is_dim(value: object) -> bool:
    return isinstance(value, Size) or (hasattr(value, "__index__"))


def _terms(value: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(value, Size):
        return value.terms
    return (((), int(value)),) if value else ()


def _normal(terms: Mapping[Monomial, int]) -> Dim:
    kept = {monomial: c for monomial, c in terms.items() if c}
    if not kept:
        return 0
    if list(kept) == [()]:
        return kept[()]
    return Size(tuple(sorted(kept.items(), key=lambda item: _order(item[0]))))


def _sum(left: Dim, right: Dim, sign: int) -> Dim:
    merged = dict(_terms(left))
    for monomial, coefficient in _terms(right):
        merged[monomial] = merged.get(monomial, 0) + sign * coefficient
    return _normal(merged)


def symbol(name: str) -> Size:
    """The size that a named dimension stands for."""
    return Size((((name,), 1),))


def _opaque(function: str, left: Dim, right: Dim) -> Dim:
    return Size((((Call(function, left, right),), 1),))


def _exact_quotient(left: Dim, right: Dim) -> Dim | None:
    """Left / right when every term divides evenly, else None."""
    divisor = _terms(right)
    if len(divisor) != 1:
        return 1 if left == right else None
    (atoms, coefficient), quotient = divisor[0], {}
    for monomial, c in _terms(left):
        rest = list(monomial)
        for atom in atoms:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % coefficient:
            return None
        quotient[tuple(rest)] = c // coefficient
    return _normal(quotient)


def floordiv(left: Dim, right: Dim) -> Dim:
    """Division rounded down; exact where the terms divide (a symbol is then taken as non-zero)."""
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    exact = _exact_quotient(left, right)
    if exact is not None:
        return exact
    if isinstance(right, int) and isinstance(left, Size) and right > 0:
        whole = {m: c for m, c in left.terms if c % right == 0}
        rest = _normal({m: c for m, c in left.terms if c % right})
        if whole:
            return floordiv(rest, right) + _normal({m: c // right for m, c in whole.items()})
    return _opaque("floordiv", left, right)


def ceildiv(left: Dim, right: Dim) -> Dim:
    """Division rounded up."""
    if isinstance(left, int) and isinstance(right, int):
        return -(-left // right)
    exact = _exact_quotient(left, right)
    return exact if exact is not None else _opaque("ceildiv", left, right)


def modulo(left: Dim, right: Dim) -> Dim:
    """Remainder with the sign of the divisor."""
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    return 0 if _exact_quotient(left, right) is not None else _opaque("mod", left, right)


def _extreme(function: str, left: Dim, right: Dim) -> Dim:
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right) if function == "min" else max(left, right)
    difference = bounds(left - right)
    if difference[0] is not None and difference[0] >= 0:
        return right if function == "min" else left
    if difference[1] is not None and difference[1] <= 0:
        return left if function == "min" else right
    for one, other in ((left, right), (right, left)):
        call = _sole_call(other)
        if call is not None and call.function in ("min", "max") and one in (call.left, call.right):
            return other if call.function == function else one
    first, second = sorted((left, right), key=str)
    return _opaque(function, first, second)


def _sole_call(value: Dim) -> Call | None:
    """The operation that a size is, when it is nothing but one."""
    if isinstance(value, Size) and len(value.terms) == 1:
        monomial, coefficient = value.terms[0]
        if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], Call):
            return monomial[0]
    return None


def minimum(left: Dim, right: Dim) -> Dim:
    """The smaller of two sizes."""
    return _extreme("min", left, right)


def maximum(left: Dim, right: Dim) -> Dim:
    """The larger of two sizes."""
    return _extreme("max", left, right)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all sizes; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def bounds(value: Dim) -> tuple[int | None, int | None]:
    """What is certain about a size when every symbol is >= 0: (lower, upper), None if unbounded."""
    lower: int | None = 0
    upper: int | None = 0
    for monomial, c in _terms(value):
        if not monomial:
            lower = None if lower is None else lower + c
            upper = None if upper is None else upper + c
        elif c > 0 and _non_negative(monomial):
            upper = None
        elif c < 0 and _non_negative(monomial):
            lower = None
        else:
            lower = upper = None
    return lower, upper


def _non_negative(monomial: Monomial) -> bool:
    def certain(value: Dim) -> bool:
        lower = bounds(value)[0]  # asked once: nested calls would double the work at every level
        return lower is not None and lower >= 0

    return all(
        isinstance(atom, str) or (certain(atom.left) and certain(atom.right)) for atom in monomial
    )


def provably_equal(left: Dim, right: Dim) -> bool | None:
    """True or False when certain for every value of the symbols (each >= 0), else None."""
    if left == right:
        return True
    lower, upper = bounds(left - right)
    if (lower is not None and lower > 0) or (upper is not None and upper < 0):
        return False
    return None


_EVALUATE: dict[str, Callable[[int, int], int]] = {
    "floordiv": lambda a, b: a // b,
    "ceildiv": lambda a, b: -(-a // b),
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
}


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    """The value of a size; KeyError names an unbound symbol, ZeroDivisionError is let through."""
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim.terms:
        value = coefficient
        for atom in monomial:
            if isinstance(atom, str):
                value *= bindings[atom]
            else:
                left, right = evaluate(atom.left, bindings), evaluate(atom.right, bindings)
                value *= _EVALUATE[atom.function](left, right)
        total += value
    return total


def symbols(dim: Dim) -> frozenset[str]:
    """The names of all symbols in a size."""
    if not isinstance(dim, Size):
        return frozenset()
    found: set[str] = set()
    for monomial, _ in dim.terms:
        for atom in monomial:
            if isinstance(atom, str):
                found.add(atom)
            else:
                found |= symbols(atom.left) | symbols(atom.right)
    return frozenset(found)


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """The size with some symbols replaced by other sizes."""
    if not isinstance(dim, Size):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        term: Dim = coefficient
        for atom in monomial:
            if isinstance(atom, str):
                term = term * values.get(atom, symbol(atom))
            else:
                left, right = substitute(atom.left, values), substitute(atom.right, values)
                term = term * _APPLY[atom.function](left, right)
        total = total + term
    return total


_APPLY: dict[str, Callable[[Dim, Dim], Dim]] = {
    "floordiv": floordiv,
    "ceildiv": ceildiv,
    "mod": modulo,
    "min": minimum,
    "max": maximum,
}


def dim_to_json(dim: Dim) -> Any:
    """A size as JSON: an integer, a symbol's name, or ``[operator, left, right]``."""
    if not isinstance(dim, Size):
        return int(dim)
    result: Any = None
    for monomial, coefficient in dim.terms:
        term: Any = None
        for atom in monomial:
            factor: Any = (
                atom
                if isinstance(atom, str)
                else [atom.function, dim_to_json(atom.left), dim_to_json(atom.right)]
            )
            term = factor if term is None else ["*", term, factor]
        if term is None:
            term = coefficient
        elif coefficient != 1:
            term = ["*", coefficient, term]
        result = term if result is None else ["+", result, term]
    return result


def dim_from_json(value: Any, known: frozenset[str] | set[str]) -> Dim:
    """Read a size that may be hostile; ValueError says what is wrong with it."""
    budget = [MAX_JSON_NODES]

    def read(item: Any, depth: int) -> Dim:
        budget[0] -= 1
        if depth > MAX_JSON_DEPTH or budget[0] < 0:
            raise ValueError("a size expression is nested too deeply or too long")
        if isinstance(item, bool):
            raise ValueError("a size expression holds a boolean")
        if isinstance(item, int):
            if abs(item) > 2**62:
                raise ValueError(f"the integer {item} in a size expression is out of range")
            return item
        if isinstance(item, str):
            if item not in known:
                raise ValueError(f"a size expression names the unknown symbol {item!r}")
            return symbol(item)
        if not (isinstance(item, list) and len(item) == 3 and isinstance(item[0], str)):
            raise ValueError("a size expression is neither integer, symbol nor [operator, a, b]")
        left, right = read(item[1], depth + 1), read(item[2], depth + 1)
        if len(_terms(left)) * len(_terms(right)) > MAX_JSON_TERMS:
            raise ValueError("a size expression multiplies too many terms")
        if item[0] == "+":
            return left + right
        if item[0] == "*":
            return left * right
        if item[0] not in _APPLY:
            raise ValueError(f"a size expression has the unknown operator {item[0]!r}")
        if item[0] in ("floordiv", "ceildiv", "mod") and right == 0:
            raise ValueError("a size expression divides by zero")
        return _APPLY[item[0]](left, right)

    return read(value, 0)
