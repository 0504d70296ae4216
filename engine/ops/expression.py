"""Scalar expressions: what elementwise operators, fused regions and epilogues compute.

An expression is a small directed graph of closed functions over loads, constants and casts. The
NumPy printer (`evaluate`) is the meaning of every elementwise operator; the C printer is
`engine.kernels.c_expression`. Fixed once for all printers: round half to even, integer division
truncates, `min` and `max` propagate NaN, casts from float to integer saturate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.ir.types import Array, DType

__all__ = ["Expression", "call", "cast", "constant", "evaluate", "load"]

Number = bool | int | float


@dataclass(frozen=True, slots=True)
class Expression:
    """One node of an expression.

    ``function`` is "load" (``value`` is the position of the loaded operand), "constant" (``value``
    is the number), "cast", or the name of a function in the table of functions.
    """

    function: str
    dtype: DType
    operands: tuple[Expression, ...] = ()
    value: Number | None = None


def load(position: int, dtype: DType) -> Expression:
    """The element of operand ``position`` at the current point."""
    return Expression("load", dtype, (), position)


def constant(value: Number, dtype: DType) -> Expression:
    """A number."""
    return Expression("constant", dtype, (), value)


def cast(operand: Expression, dtype: DType) -> Expression:
    """The operand converted; itself when it already has the type."""
    return operand if operand.dtype is dtype else Expression("cast", dtype, (operand,))


def call(function: str, *operands: Expression) -> Expression:
    """A function of the table applied to operands; its table row decides the result's type."""
    raise NotImplementedError


def evaluate(expression: Expression, operands: Sequence[Array]) -> Array:
    """The NumPy printer: the expression over broadcastable arrays, one per load position."""
    raise NotImplementedError
