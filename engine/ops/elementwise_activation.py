"""Activation functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.ir.types import DType
from engine.ops.elementwise import Formula, define, number
from engine.ops.expression import Expression, call, cast

__all__: list[str] = []


def add(x: Expression, value: float) -> Expression:
    """The operand plus a number."""
    return call("add", x, number(value, x))


def times(x: Expression, value: float) -> Expression:
    """The operand times a number."""
    return x if value == 1.0 else call("multiply", x, number(value, x))


def below(x: Expression, value: float, then: Expression, otherwise: Expression) -> Expression:
    """One of two, by whether the operand is less than a number."""
    return call("select", call("less", x, number(value, x)), then, otherwise)


def relu(_: Any, x: Expression) -> Expression:
    """max(x, 0)"""
    return call("max", x, number(0, x))


def leaky_relu(self: Any, x: Expression) -> Expression:
    """Negative elements times alpha."""
    return below(x, 0, times(x, self.alpha), x)


def elu(self: Any, x: Expression) -> Expression:
    """Alpha * (exp(x) - 1) for negative elements."""
    return below(x, 0, times(call("expm1", x), self.alpha), x)


def selu(self: Any, x: Expression) -> Expression:
    """Gamma * elu(x)"""
    return times(elu(self, x), self.gamma)


def celu(self: Any, x: Expression) -> Expression:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))"""
    scaled = x if self.alpha == 1.0 else call("divide", x, number(self.alpha, x))
    low = call("min", times(call("expm1", scaled), self.alpha), number(0, x))
    return call("add", call("max", x, number(0, x)), low)


def gelu(self: Any, x: Expression) -> Expression:
    """X times the normal distribution function, exact or by tanh."""
    if self.approximate == "tanh":
        cube = call("multiply", call("multiply", x, x), x)
        inner = times(call("add", x, times(cube, 0.044715)), math.sqrt(2 / math.pi))
        return call("multiply", times(x, 0.5), add(call("tanh", inner), 1.0))
    if self.approximate != "none":
        raise ValueError(f"approximate is {self.approximate!r}, expected 'none' or 'tanh'")
    return call("multiply", times(x, 0.5), add(call("erf", times(x, math.sqrt(0.5))), 1.0))


def hard_sigmoid(self: Any, x: Expression) -> Expression:
    """Alpha * x + beta, kept between 0 and 1."""
    line = add(times(x, self.alpha), self.beta)
    return call("max", call("min", line, number(1, x)), number(0, x))


def hard_swish(_: Any, x: Expression) -> Expression:
    """X * hard_sigmoid(x) with alpha 1/6 and beta 1/2."""
    gate = call("min", add(times(x, 1 / 6), 0.5), number(1, x))
    return call("multiply", x, call("max", gate, number(0, x)))


def softplus(_: Any, x: Expression) -> Expression:
    """log(1 + exp(x)), without overflow."""
    decay = call("exp", call("negative", call("abs", x)))
    return call("add", call("max", x, number(0, x)), call("log1p", decay))


def mish(_: Any, x: Expression) -> Expression:
    """X * tanh(softplus(x))"""
    return call("multiply", x, call("tanh", softplus(None, x)))


def softsign(_: Any, x: Expression) -> Expression:
    """X / (1 + |x|)"""
    return call("divide", x, add(call("abs", x), 1.0))


def swish(self: Any, x: Expression) -> Expression:
    """X * sigmoid(alpha * x)"""
    return call("multiply", x, call("sigmoid", times(x, self.alpha)))


def thresholded_relu(self: Any, x: Expression) -> Expression:
    """Elements above alpha, else 0."""
    return call("select", call("greater", x, number(self.alpha, x)), x, number(0, x))


def shrink(self: Any, x: Expression) -> Expression:
    """Elements moved towards 0 by the bias, 0 between -lambd and lambd; integers via float64."""
    y = x if x.dtype.is_float else cast(x, DType.FLOAT64)
    above = call(
        "select", call("greater", y, number(self.lambd, y)), add(y, -self.bias), number(0, y)
    )
    return cast(below(y, -self.lambd, add(y, self.bias), above), x.dtype)


Attributes = Mapping[str, tuple[type, Any]]

# Name, first version, formula, attributes with their defaults, what it is.
TABLE: list[tuple[str, int, Formula, Attributes, str]] = [
    ("Relu", 6, relu, {}, "Negative elements become 0."),
    ("LeakyRelu", 6, leaky_relu, {"alpha": (float, 0.01)}, "Negative elements times alpha."),
    ("Elu", 6, elu, {"alpha": (float, 1.0)}, "The exponential linear unit."),
    ("Celu", 12, celu, {"alpha": (float, 1.0)}, "The continuous exponential linear unit."),
    ("Gelu", 20, gelu, {"approximate": (str, "none")}, "The Gaussian error linear unit."),
    ("HardSwish", 14, hard_swish, {}, "A swish made of straight lines."),
    ("Mish", 18, mish, {}, "x * tanh(softplus(x))."),
    ("Softplus", 1, softplus, {}, "log(1 + exp(x))."),
    ("Softsign", 1, softsign, {}, "x / (1 + |x|)."),
    ("Swish", 24, swish, {"alpha": (float, 1.0)}, "x * sigmoid(alpha * x)."),
    ("ThresholdedRelu", 10, thresholded_relu, {"alpha": (float, 1.0)}, "Elements above alpha."),
    (
        "Selu",
        6,
        selu,
        {"alpha": (float, 1.6732631921768188), "gamma": (float, 1.0507010221481323)},
        "The scaled exponential linear unit.",
    ),
    (
        "HardSigmoid",
        6,
        hard_sigmoid,
        {"alpha": (float, 0.2), "beta": (float, 0.5)},
        "A sigmoid made of straight lines.",
    ),
    (
        "Shrink",
        9,
        shrink,
        {"bias": (float, 0.0), "lambd": (float, 0.5)},
        "Elements moved towards 0.",
    ),
]

for _name, _since, _formula, _attributes, _text in TABLE:
    define(_name, _since, _formula, text=_text, attributes=_attributes)
