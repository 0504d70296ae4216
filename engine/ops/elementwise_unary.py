"""Elementwise operators of one input that are one function of the table."""

from __future__ import annotations

from typing import Any

from engine.ir.types import DType
from engine.ops.elementwise import Formula, define, number
from engine.ops.expression import Expression, call, cast, constant

__all__: list[str] = []


def one(function: str) -> Formula:
    """A formula that applies one function of the table."""

    def formula(_: Any, x: Expression) -> Expression:
        return call(function, x)

    return formula


def through_float(function: str) -> Formula:
    """The same for operators that also take integers: computed in float64, truncated."""

    def formula(_: Any, x: Expression) -> Expression:
        if x.dtype.is_float:
            return call(function, x)
        return cast(call(function, cast(x, DType.FLOAT64)), x.dtype)

    return formula


def rounding(function: str) -> Formula:
    """A rounding to integers, which leaves integers (shape arithmetic) alone."""

    def formula(_: Any, x: Expression) -> Expression:
        return call(function, x) if x.dtype.is_float else x

    return formula


def is_infinite(self: Any, x: Expression) -> Expression:
    """Positive and negative infinity as the attributes ask."""
    found = call("isinf", x)
    if self.detect_negative and self.detect_positive:
        return found
    if not self.detect_negative and not self.detect_positive:
        return constant(False, DType.BOOL)
    comparison = "greater" if self.detect_positive else "less"
    return call("logical_and", found, call(comparison, x, number(0, x)))


# Name, first version, formula, whether it serves shape arithmetic, what it is.
TABLE: list[tuple[str, int, Formula, bool, str]] = [
    ("Abs", 1, one("abs"), True, "The absolute value."),
    ("Acos", 7, one("acos"), False, "The arc cosine, in radians."),
    ("Acosh", 9, one("acosh"), False, "The inverse hyperbolic cosine."),
    ("Asin", 7, one("asin"), False, "The arc sine, in radians."),
    ("Asinh", 9, one("asinh"), False, "The inverse hyperbolic sine."),
    ("Atan", 7, one("atan"), False, "The arc tangent, in radians."),
    ("Atanh", 9, one("atanh"), False, "The inverse hyperbolic tangent."),
    ("BitwiseNot", 18, one("bitwise_not"), False, "Every bit turned over."),
    ("Ceil", 1, rounding("ceil"), True, "The least integer not below."),
    ("Cos", 7, one("cos"), False, "The cosine of an angle in radians."),
    ("Cosh", 9, one("cosh"), False, "The hyperbolic cosine."),
    ("Erf", 9, through_float("erf"), False, "The error function."),
    ("Exp", 1, one("exp"), False, "The exponential function."),
    ("Floor", 1, rounding("floor"), True, "The greatest integer not above."),
    ("IsNaN", 9, one("isnan"), False, "Whether an element is no number."),
    ("Log", 1, one("log"), False, "The natural logarithm."),
    ("Neg", 1, one("negative"), True, "The element with the other sign."),
    ("Not", 1, one("logical_not"), True, "Logical negation."),
    ("Reciprocal", 1, one("reciprocal"), False, "One divided by the element."),
    ("Round", 11, one("round"), False, "The nearest integer, half to even."),
    ("Sigmoid", 1, one("sigmoid"), False, "The logistic function."),
    ("Sign", 9, one("sign"), True, "-1, 0 or 1 by the element's sign."),
    ("Sin", 7, one("sin"), False, "The sine of an angle in radians."),
    ("Sinh", 9, one("sinh"), False, "The hyperbolic sine."),
    ("Sqrt", 1, one("sqrt"), False, "The square root; NaN for negative elements."),
    ("Tan", 7, one("tan"), False, "The tangent of an angle in radians."),
    ("Tanh", 1, one("tanh"), False, "The hyperbolic tangent."),
]

for _name, _since, _formula, _symbolic, _text in TABLE:
    define(_name, _since, _formula, text=_text, symbolic=_symbolic)

IsInf = define(
    "IsInf",
    10,
    is_infinite,
    text="Whether an element is infinite, of either sign or one of them.",
    attributes={"detect_negative": (int, 1), "detect_positive": (int, 1)},
)
