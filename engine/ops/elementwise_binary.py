"""Elementwise operators of two or more inputs: arithmetic, comparisons, logic, bits, extremes."""

from __future__ import annotations

from functools import reduce
from typing import Any

from engine.ir.types import DType
from engine.ops.elementwise import Formula, define, number
from engine.ops.expression import Expression, call, cast

__all__: list[str] = []


def two(function: str) -> Formula:
    """A formula that applies one function of the table to both operands."""

    def formula(_: Any, a: Expression, b: Expression) -> Expression:
        return call(function, a, b)

    return formula


def many(function: str) -> Formula:
    """A formula that folds any number of operands from the left."""

    def formula(_: Any, *operands: Expression) -> Expression:
        if not operands:
            raise ValueError("found no operands, expected at least one")
        return reduce(lambda a, b: call(function, a, b), operands)

    return formula


def mean(_: Any, *operands: Expression) -> Expression:
    """The sum over the count."""
    total: Expression = many("add")(None, *operands)
    return call("divide", total, number(len(operands), total))


def power(_: Any, x: Expression, y: Expression) -> Expression:
    """The first operand's type with the exponent of any; integers by floats go through float64."""
    if x.dtype is y.dtype:
        return call("power", x, y)
    if x.dtype.is_float:
        if y.dtype is not DType.FLOAT64:
            return call("power", x, cast(y, x.dtype))
        return cast(call("power", cast(x, y.dtype), y), x.dtype)
    between = DType.FLOAT64 if y.dtype.is_float else DType.INT64
    return cast(call("power", cast(x, between), cast(y, between)), x.dtype)


def remainder(self: Any, a: Expression, b: Expression) -> Expression:
    """The divisor's sign, or with fmod the dividend's as in C."""
    return call("fmod" if self.fmod else "floor_mod", a, b)


def shift(self: Any, x: Expression, y: Expression) -> Expression:
    """Left or right by the second operand."""
    functions = {"LEFT": "shift_left", "RIGHT": "shift_right"}
    if self.direction not in functions:
        raise ValueError(f"direction is {self.direction!r}, expected 'LEFT' or 'RIGHT'")
    return call(functions[self.direction], x, y)


def parametric_relu(_: Any, x: Expression, slope: Expression) -> Expression:
    """Negative elements times the slope."""
    return call("select", call("less", x, number(0, x)), call("multiply", slope, x), x)


# Name, first version, formula, whether it serves shape arithmetic, what it is.
TABLE: list[tuple[str, int, Formula, bool, str]] = [
    ("Add", 7, two("add"), True, "The sum of two elements."),
    ("Sub", 7, two("subtract"), True, "The difference of two elements."),
    ("Mul", 7, two("multiply"), True, "The product of two elements."),
    ("Div", 7, two("divide"), True, "The quotient; of integers, truncated."),
    ("Pow", 7, power, False, "The first element to the power of the second."),
    ("And", 7, two("logical_and"), True, "Whether both are true."),
    ("Or", 7, two("logical_or"), True, "Whether one is true."),
    ("Xor", 7, two("logical_xor"), True, "Whether exactly one is true."),
    ("BitwiseAnd", 18, two("bitwise_and"), False, "The bits set in both."),
    ("BitwiseOr", 18, two("bitwise_or"), False, "The bits set in one."),
    ("BitwiseXor", 18, two("bitwise_xor"), False, "The bits set in exactly one."),
    ("Equal", 7, two("equal"), True, "Whether two elements are equal."),
    ("Greater", 7, two("greater"), True, "Whether the first is greater."),
    ("GreaterOrEqual", 12, two("greater_equal"), True, "Whether the first is not less."),
    ("Less", 7, two("less"), True, "Whether the first is less."),
    ("LessOrEqual", 12, two("less_equal"), True, "Whether the first is not greater."),
    ("Max", 6, many("max"), True, "The greatest of all operands; NaN if one is."),
    ("Min", 6, many("min"), True, "The least of all operands; NaN if one is."),
    ("Sum", 6, many("add"), True, "The sum of all operands."),
    ("Mean", 6, mean, False, "The mean of all operands."),
    ("PRelu", 7, parametric_relu, False, "Negative elements times a slope per element."),
]

for _name, _since, _formula, _symbolic, _text in TABLE:
    define(_name, _since, _formula, text=_text, symbolic=_symbolic)

Mod = define(
    "Mod",
    10,
    remainder,
    text="The remainder of a division.",
    attributes={"fmod": (int, 0)},
    symbolic=True,
)
BitShift = define(
    "BitShift",
    11,
    shift,
    text="The bits moved left or right.",
    attributes={"direction": (str, "")},
)
