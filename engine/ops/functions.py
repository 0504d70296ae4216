"""The closed table of scalar functions, with their types and their meaning in NumPy.

A row says how many operands a function takes, of which kinds, and what it gives. Operands of one
call share one element type (the condition of "select" is boolean). Rules that hold for every
printer: integer arithmetic wraps, integer division truncates and gives 0 for a zero divisor,
shifts by the width or more give 0 (or -1 for negative numbers), "min" and "max" propagate NaN,
"round" rounds half to even, "floor_mod" has the divisor's sign and "fmod" the dividend's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.types import Array, DType
from engine.ops.arrays import as_array
from engine.ops.special import erf

__all__ = ["FUNCTIONS", "REDUCTIONS", "Function", "kind", "result_type"]

Meaning = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Function:
    """One row of the table.

    ``takes`` names the kinds of element types allowed; ``boolean`` is True when the result is
    boolean and not of the operands' type.
    """

    name: str
    arity: int
    takes: frozenset[str]
    boolean: bool
    numpy: Meaning


def kind(dtype: DType) -> str:
    """The kind of a type: "float", "integer", "bool", "string" or "complex"."""
    if dtype.is_float:
        return "float"
    if dtype.is_integer:
        return "integer"
    return "complex" if dtype.is_complex else dtype.value


def _unsigned(array: Array) -> bool:
    return bool(array.dtype.kind == "u")


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return as_array(np.divide(a, b))
    quotient = as_array(np.floor_divide(a, b))
    if _unsigned(a):
        return quotient
    inexact = (quotient * b != a) & ((a < 0) != (b < 0)) & (b != 0)
    return as_array(quotient + inexact.astype(a.dtype))


def _shift_left(a: Array, b: Array) -> Array:
    width = a.dtype.itemsize * 8
    fits = (b >= 0) & (b < width)
    return as_array(np.where(fits, np.left_shift(a, np.where(fits, b, 0)), a.dtype.type(0)))


def _shift_right(a: Array, b: Array) -> Array:
    width = a.dtype.itemsize * 8
    beyond = (b < 0) | (b >= width)
    return (
        as_array(np.right_shift(a, np.where(beyond, width - 1, b).astype(a.dtype)))
        if (not _unsigned(a))
        else as_array(np.where(beyond, a.dtype.type(0), np.right_shift(a, np.where(beyond, 0, b))))
    )


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return as_array(np.power(a, b))
    a, b = np.broadcast_arrays(a, b)
    result = np.ones_like(a)
    exponent, factor = np.where(b > 0, b, 0).astype(np.uint64), a.copy()
    while exponent.any():
        result = np.where(exponent & np.uint64(1) != 0, result * factor, result)
        factor = factor * factor
        exponent = exponent >> np.uint64(1)
    if _unsigned(a):
        return as_array(result)
    odd = np.where(b & 1 != 0, a, a * a)  # 1 and -1 are the only integers with integer inverses
    return as_array(np.where(b < 0, np.where(np.abs(a) == 1, odd, 0), result).astype(a.dtype))


def _fmod(a: Array, b: Array) -> Array:
    return as_array(np.fmod(a, b))


def _sigmoid(a: Array) -> Array:
    e = np.exp(-np.abs(a))
    return as_array(np.where(a >= 0, a.dtype.type(1), e) / (a.dtype.type(1) + e))


def _rsqrt(a: Array) -> Array:
    return as_array(a.dtype.type(1) / np.sqrt(a))


def _reciprocal(a: Array) -> Array:
    return as_array(a.dtype.type(1) / a)


def _sign(a: Array) -> Array:
    return as_array(np.sign(a))


def _row(
    names: str, arity: int, takes: str, numpy: Meaning | None = None, boolean: bool = False
) -> list[Function]:
    kinds = frozenset(takes.split())
    return [
        Function(name, arity, kinds, boolean, numpy or getattr(np, name)) for name in names.split()
    ]


_NUMBER = "float integer"
_ROWS = [
    _row("add subtract multiply", 2, _NUMBER),
    _row("divide", 2, _NUMBER, _divide),
    _row("floor_mod", 2, _NUMBER, np.mod),
    _row("fmod", 2, _NUMBER, _fmod),
    _row("power", 2, _NUMBER, _power),
    _row("min", 2, _NUMBER, np.minimum),
    _row("max", 2, _NUMBER, np.maximum),
    _row("negative abs", 1, _NUMBER),
    _row("sign", 1, _NUMBER, _sign),
    _row("equal not_equal", 2, _NUMBER + " bool string", boolean=True),
    _row("less less_equal greater greater_equal", 2, _NUMBER, boolean=True),
    _row("logical_and logical_or logical_xor", 2, "bool", boolean=True),
    _row("logical_not", 1, "bool", boolean=True),
    _row("bitwise_and bitwise_or bitwise_xor", 2, "integer"),
    _row("bitwise_not", 1, "integer", np.invert),
    _row("shift_left", 2, "integer", _shift_left),
    _row("shift_right", 2, "integer", _shift_right),
    _row("select", 3, _NUMBER + " bool string complex", np.where),
    _row("exp expm1 log log1p sqrt sin cos tan sinh cosh tanh floor ceil trunc", 1, "float"),
    _row("asin", 1, "float", np.arcsin),
    _row("acos", 1, "float", np.arccos),
    _row("atan", 1, "float", np.arctan),
    _row("asinh", 1, "float", np.arcsinh),
    _row("acosh", 1, "float", np.arccosh),
    _row("atanh", 1, "float", np.arctanh),
    _row("round", 1, "float", np.rint),
    _row("rsqrt", 1, "float", _rsqrt),
    _row("reciprocal", 1, "float", _reciprocal),
    _row("sigmoid", 1, "float", _sigmoid),
    _row("erf", 1, "float", erf),
    _row("isnan isinf", 1, "float", boolean=True),
]

#: Every function an expression may call, by name.
FUNCTIONS: dict[str, Function] = {row.name: row for rows in _ROWS for row in rows}

#: Reductions over the last axis of a region's space; the result is the same along the row.
REDUCTIONS: dict[str, Function] = {
    row.name: row
    for row in [
        Function("row_sum", 1, frozenset({"float", "integer"}), False, np.add.reduce),
        Function("row_prod", 1, frozenset({"float", "integer"}), False, np.multiply.reduce),
        Function("row_max", 1, frozenset({"float", "integer"}), False, np.maximum.reduce),
        Function("row_min", 1, frozenset({"float", "integer"}), False, np.minimum.reduce),
    ]
}


def result_type(name: str, operands: tuple[DType, ...]) -> DType:
    """The element type a function gives for operand types.

    Raises ValueError naming the function for a wrong name, count, kind or mixture of types.
    """
    row = FUNCTIONS.get(name) or REDUCTIONS.get(name)
    if row is None:
        raise ValueError(f"{name!r} is no function of the expression table")
    if len(operands) != row.arity:
        raise ValueError(f"{name} takes {row.arity} operands, found {len(operands)}")
    values = operands
    if name == "select":
        if operands[0] is not DType.BOOL:
            raise ValueError(f"select needs a bool condition, found {operands[0].value}")
        values = operands[1:]
    if len(set(values)) != 1:
        found = ", ".join(dtype.value for dtype in values)
        raise ValueError(f"{name} needs operands of one type, found {found}")
    if kind(values[0]) not in row.takes:
        expected = " or ".join(sorted(row.takes))
        raise ValueError(f"{name} takes {expected} operands, found {values[0].value}")
    return DType.BOOL if row.boolean else values[0]
