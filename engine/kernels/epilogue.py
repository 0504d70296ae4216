"""What a contraction does to each sum before it stores it: an expression over the sum and operands.

Load 0 is the sum; load i is epilogue operand i, which is a value per column (a bias), per row, per
element (a residual), or one scalar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.types import DType
from engine.kernels.kernel import Array, take_choice, take_list
from engine.ops.expression import Expression, constant, load

__all__ = ["IDENTITY", "Epilogue", "print_epilogue", "standard"]

OPERAND_KINDS = ("column", "row", "full", "scalar")
MOST_OPERANDS = 8
_MOST_DEPTH = 64
_C_FORMS = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "max": "ef_maximum({}, {})",
    "min": "ef_minimum({}, {})",
}
_NUMPY_FORMS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}
PREAMBLE = """
static inline float ef_maximum(float a, float b) { return a != a ? a : (a < b || b != b ? b : a); }
static inline float ef_minimum(float a, float b) { return a != a ? a : (b < a || b != b ? b : a); }
"""


@dataclass(frozen=True, slots=True)
class Epilogue:
    """An expression over load 0, the sum, and load i, operand i of kind ``operands[i - 1]``."""

    expression: Expression
    operands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The epilogue as JSON."""
        return {"expression": _to_json(self.expression), "operands": list(self.operands)}

    @classmethod
    def from_json(cls, value: object) -> Epilogue:
        """Read and check; raises ValueError naming what is wrong."""
        if not isinstance(value, Mapping):
            raise ValueError("field epilogue: expected an object")
        kinds = take_list(value, "operands", MOST_OPERANDS)
        operands = tuple(
            take_choice({"operands": kind}, "operands", OPERAND_KINDS) for kind in kinds
        )
        return cls(_from_json(value.get("expression"), len(operands) + 1, 0), operands)

    def evaluate(self, values: Sequence[Array]) -> Array:
        """The expression over arrays that broadcast against the sums."""
        return _evaluate(self.expression, values)


def _to_json(expression: Expression) -> dict[str, object]:
    found: dict[str, object] = {"function": expression.function}
    if expression.value is not None:
        found["value"] = expression.value
    if expression.operands:
        found["operands"] = [_to_json(operand) for operand in expression.operands]
    return found


def _from_json(value: object, loads: int, depth: int) -> Expression:
    if not isinstance(value, Mapping) or depth > _MOST_DEPTH:
        raise ValueError("field expression: expected an object, nested at most 64 deep")
    function, number = value.get("function"), value.get("value")
    if function == "load":
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < loads:
            raise ValueError(f"field expression: load of {number!r}, expected 0 to {loads - 1}")
        return load(number, DType.FLOAT32)
    if function == "constant":
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"field expression: constant {number!r}, expected a number")
        return constant(number, DType.FLOAT32)
    name = take_choice(value, "function", tuple(_C_FORMS))
    operands = take_list(value, "operands", 2)
    if len(operands) != 2:
        raise ValueError(f"field expression: {name} takes 2 operands, found {len(operands)}")
    parts = tuple(_from_json(operand, loads, depth + 1) for operand in operands)
    return Expression(name, DType.FLOAT32, parts)


def _evaluate(expression: Expression, values: Sequence[Array]) -> Array:
    if expression.function == "load":
        assert isinstance(expression.value, int)
        return values[expression.value]
    if expression.function == "constant":
        return np.asarray(expression.value, np.float32)
    left, right = (_evaluate(operand, values) for operand in expression.operands)
    result: Array = _NUMPY_FORMS[expression.function](left, right)
    return result


def print_epilogue(expression: Expression, names: Sequence[str]) -> str:
    """A scalar C expression; ``names`` are the C expressions of the loads."""
    if expression.function == "load":
        assert isinstance(expression.value, int)
        return names[expression.value]
    if expression.function == "constant":
        assert expression.value is not None
        return f"({float(expression.value).hex()}f)"
    parts = [print_epilogue(operand, names) for operand in expression.operands]
    return _C_FORMS[expression.function].format(*parts)


def standard(*operands: str, relu: bool = False) -> Epilogue:
    """The sum plus every operand, then relu if asked."""
    total = load(0, DType.FLOAT32)
    for position in range(len(operands)):
        total = Expression("add", DType.FLOAT32, (total, load(position + 1, DType.FLOAT32)))
    if relu:
        total = Expression("max", DType.FLOAT32, (total, constant(0.0, DType.FLOAT32)))
    return Epilogue(total, operands)


IDENTITY = standard()
