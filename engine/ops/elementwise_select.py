"""Where and Clip."""

from __future__ import annotations

from typing import Any

from engine.ops.elementwise import define, number
from engine.ops.expression import Expression, call

__all__: list[str] = []

LARGEST = 3.4028234663852886e38


def where(_: Any, condition: Expression, x: Expression, y: Expression) -> Expression:
    """The second operand where the condition holds, else the third."""
    return call("select", condition, x, y)


def clip_by_attributes(self: Any, x: Expression) -> Expression:
    """Limits given as attributes; the defaults limit nothing but infinities."""
    return call("min", call("max", x, number(self.min, x)), number(self.max, x))


def clip(
    _: Any, x: Expression, low: Expression | None = None, high: Expression | None = None
) -> Expression:
    """Limits given as scalar inputs, each optional; the upper one wins."""
    result = x if low is None else call("max", x, low)
    return result if high is None else call("min", result, high)


Where = define(
    "Where", 9, where, text="One of two elements, by a condition.", symbolic=True, result_like=1
)
Clip6 = define(
    "Clip",
    6,
    clip_by_attributes,
    text="Elements kept between two limits.",
    attributes={"max": (float, LARGEST), "min": (float, -LARGEST)},
)
Clip = define("Clip", 11, clip, text="Elements kept between two limits.")
