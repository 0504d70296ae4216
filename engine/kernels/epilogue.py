"""What a contraction does to each sum before it stores it: an expression over the sum and operands.

Load 0 is the sum; load i is epilogue operand i, which is a value per column (a bias), per row, per
element (a residual), or one scalar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.ir.types import DType
from engine.kernels.c_expression import print_expression
from engine.kernels.kernel import Array, refuse_others, take_choice, take_list
from engine.ops.expression import Expression, call, constant, evaluate, load, loads, order

__all__ = ["IDENTITY", "OPERAND_KINDS", "Epilogue", "print_epilogue", "standard"]

OPERAND_KINDS = ("column", "row", "full", "scalar")
MOST_OPERANDS = 8


@dataclass(frozen=True, slots=True)
class Epilogue:
    """An expression over load 0, the sum, and load i, operand i of kind ``operands[i - 1]``."""

    expression: Expression
    operands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The epilogue as JSON."""
        return {"expression": self.expression.to_json(), "operands": list(self.operands)}

    @classmethod
    def from_json(cls, value: object) -> Epilogue:
        """Read and check; raises ValueError naming what is wrong."""
        if not isinstance(value, Mapping):
            raise ValueError("field epilogue: expected an object")
        refuse_others(value, ("expression", "operands"))
        kinds = take_list(value, "operands", MOST_OPERANDS)
        operands = tuple(take_choice({"operand": kind}, "operand", OPERAND_KINDS) for kind in kinds)
        expression = Expression.from_json(value.get("expression"))
        found = loads(expression)
        if expression.dtype is not DType.FLOAT32 or any(
            dtype is not DType.FLOAT32 or position > len(operands)
            for position, dtype in found.items()
        ):
            raise ValueError(
                f"field expression: expected float32 over loads 0 to {len(operands)}, found {found}"
            )
        for node in order(expression):
            if node.function == "index" or node.function.startswith("row_"):
                raise ValueError(f"field expression: {node.function} means nothing in an epilogue")
        print_epilogue(expression, ["0.0f"] * (len(operands) + 1))  # refuses what C has not
        return cls(expression, operands)

    def evaluate(self, values: Sequence[Array]) -> Array:
        """The expression over arrays that broadcast against the sums."""
        return evaluate(self.expression, values)


def print_epilogue(expression: Expression, names: Sequence[str]) -> tuple[str, str]:
    """C statements and the text of the value; ``names`` are the C texts of the loads.

    The statements rest on `engine.kernels.c_expression.PRELUDE`.
    """
    lines, value = print_expression(expression, names)
    return " ".join(lines), value


def standard(*operands: str, relu: bool = False) -> Epilogue:
    """The sum plus every operand, then relu if asked."""
    total = load(0, DType.FLOAT32)
    for position in range(len(operands)):
        total = call("add", total, load(position + 1, DType.FLOAT32))
    if relu:
        total = call("max", total, constant(0.0, DType.FLOAT32))
    return Epilogue(total, operands)


IDENTITY = standard()
