"""Reading an epilogue's expression as what libraries offer: a sum, an activation, a sum.

Libraries know "alpha * sum + bias + residual" followed by an activation of a short list, and some
add operands after it. An expression that is not exactly that has no form here and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, DType
from engine.ops.expression import Expression, evaluate, load, order
from engine.ops.special import erf

__all__ = ["EpilogueForm", "epilogue_form"]

_NARROW = (DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True, slots=True)
class EpilogueForm:
    """activation(alpha * sum + the operands ``before``) + the operands ``after``.

    Operands are positions of loads, from 1. The activation is "none", "relu", "clip" (between
    ``low`` and ``high``), "sigmoid", "tanh", "silu", "gelu" (by erf) or "gelu_tanh".
    """

    alpha: float = 1.0
    before: tuple[int, ...] = ()
    activation: str = "none"
    low: float = 0.0
    high: float = 0.0
    after: tuple[int, ...] = ()


def epilogue_form(expression: Expression) -> EpilogueForm | None:
    """The form of an epilogue, or None when it has none.

    Load 0 is the float32 sum. Narrow operands must be widened where they are read, arithmetic must
    be in float32, and only the result may be rounded.
    """
    root = expression
    if root.function == "cast" and root.dtype in _NARROW:
        root = root.operands[0]
    if any(node.dtype is not DType.FLOAT32 and node.function != "load" for node in order(root)):
        return None
    linear = _linear(root)
    if linear is not None:
        return EpilogueForm(linear[0], linear[1])
    after: list[int] = []
    while root.function == "add":
        position = next((i for i in (0, 1) if _operand(root.operands[i]) not in (None, 0)), None)
        if position is None:
            break
        added = _operand(root.operands[position])
        assert added is not None
        after.append(added)
        root = root.operands[1 - position]
    found = _activation(root)
    if found is None:
        return None
    (alpha, before), activation, low, high = found
    if len({*before, *after}) != len(before) + len(after):
        return None
    return EpilogueForm(alpha, before, activation, low, high, tuple(after))


def _operand(node: Expression) -> int | None:
    """The position that is read, widened or as it is."""
    if node.function == "cast" and node.operands[0].function == "load":
        node = node.operands[0]
    if node.function != "load":
        return None
    assert isinstance(node.value, int)
    return node.value


def _linear(node: Expression) -> tuple[float, tuple[int, ...]] | None:
    """Alpha and operands of alpha * sum + operands, each read once."""
    terms: list[int] = []
    alpha: list[float] = []
    stack = [node]
    while stack:
        part = stack.pop()
        position = _operand(part)
        if position == 0:
            alpha.append(1.0)
        elif position is not None:
            terms.append(position)
        elif part.function == "add":
            stack += part.operands
        elif part.function == "multiply":
            factor = [item for item in part.operands if item.function == "constant"]
            sums = [item for item in part.operands if _operand(item) == 0]
            if len(factor) != 1 or len(sums) != 1:
                return None
            assert factor[0].value is not None
            alpha.append(float(factor[0].value))
        else:
            return None
    if len(alpha) != 1 or len(set(terms)) != len(terms):
        return None
    return alpha[0], tuple(sorted(terms))


_Found = tuple[tuple[float, tuple[int, ...]], str, float, float]


def _activation(root: Expression) -> _Found | None:
    """An activation over one linear part, through which all operands are read."""
    for node in reversed(order(root)):
        linear = None if node is root else _linear(node)
        if linear is None:
            continue
        over = _over_one(root, node)
        if over is None:
            continue
        named = _clipped(over) or _smooth(over)
        return None if named is None else (linear, *named)
    return None


def _over_one(root: Expression, inner: Expression) -> Expression | None:
    """The expression with ``inner`` as its one load, None when it reads anything else."""
    replaced = load(0, DType.FLOAT32)
    done: dict[Expression, Expression] = {inner: replaced}
    for node in order(root, known={inner}):
        if node.function == "load":
            return None
        operands = tuple(done[item] for item in node.operands)
        done[node] = Expression(node.function, node.dtype, operands, node.value)
    return done[root]


def _bound(node: Expression, function: str) -> tuple[Expression, float] | None:
    """The operands of min or max with a constant."""
    if node.function != function:
        return None
    for one, other in (node.operands, node.operands[::-1]):
        if other.function == "constant" and other.value is not None:
            return one, float(other.value)
    return None


def _clipped(over: Expression) -> tuple[str, float, float] | None:
    """Relu, or a clip in either order of its bounds."""
    variable = load(0, DType.FLOAT32)
    highest = _bound(over, "max")
    if highest is not None and highest[0] is variable:
        return ("relu", 0.0, 0.0) if highest[1] == 0 else None
    for outer, inner in (("min", "max"), ("max", "min")):
        one = _bound(over, outer)
        two = None if one is None else _bound(one[0], inner)
        if one is not None and two is not None and two[0] is variable:
            low, high = (two[1], one[1]) if outer == "min" else (one[1], two[1])
            return ("clip", low, high) if low < high else None
    return None


#: Functions whose compositions are analytic: two that agree at many points are the same function.
_ANALYTIC = (
    *("load", "constant", "add", "subtract", "multiply", "divide", "power", "negative"),
    *("reciprocal", "exp", "tanh", "erf", "sigmoid"),
)


def _tanh_gelu(x: Array) -> Array:
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)))


_SMOOTH: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda x: np.asarray(1 / (1 + np.exp(-x))),
    "tanh": np.tanh,
    "silu": lambda x: np.asarray(x / (1 + np.exp(-x))),
    "gelu": lambda x: np.asarray(0.5 * x * (1 + erf(x * np.sqrt(0.5)))),
    "gelu_tanh": _tanh_gelu,
}
_POINTS = np.linspace(-9.0, 9.0, 181)
#: float32 arithmetic stays below this; the two forms of GELU lie 4.7e-4 apart.
_TOLERANCE = 2e-5


def _smooth(over: Expression) -> tuple[str, float, float] | None:
    """An activation without corners, told by its values."""
    if any(node.function not in _ANALYTIC for node in order(over)):
        return None
    with np.errstate(all="ignore"):
        values = evaluate(over, [_POINTS.astype(np.float32)]).astype(np.float64)
    for name, function in _SMOOTH.items():
        if np.allclose(values, function(_POINTS), rtol=_TOLERANCE, atol=_TOLERANCE):
            return name, 0.0, 0.0
    return None
