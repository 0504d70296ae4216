"""Arithmetic of fused expressions in float32: narrow floats are rounded when they are stored.

Operators one by one round each result to its element type. Fused into one expression that is
neither faster nor better, so fused expressions read narrow floats, compute in float32, and round
once at the end. Results differ from the unfused ones by being closer to exact arithmetic.
"""

from __future__ import annotations

from engine.ir.types import DType
from engine.ops.expression import Expression, cast, constant, order

__all__ = ["NARROW", "widen"]

NARROW = frozenset({DType.FLOAT16, DType.BFLOAT16})


def widen(root: Expression) -> Expression:
    """The expression with arithmetic on float16 and bfloat16 done in float32, of the same type."""
    if not any(node.dtype in NARROW for node in order(root)):
        return root
    wide: dict[Expression, Expression] = {}
    for node in order(root):
        wide[node] = _widened(node, tuple(wide[item] for item in node.operands))
    return cast(wide[root], root.dtype)


def _widened(node: Expression, operands: tuple[Expression, ...]) -> Expression:
    """A node over widened operands; of type float32 where it was narrow."""
    dtype = DType.FLOAT32 if node.dtype in NARROW else node.dtype
    if node.function == "load":
        return cast(node, dtype)
    if node.function == "constant" and node.dtype in NARROW:
        assert node.value is not None
        return constant(node.value, dtype)
    if node.function == "cast":
        # Rounding to a narrow type in between is what fusing leaves out.
        return cast(operands[0], dtype)
    return Expression(node.function, dtype, operands, node.value)
