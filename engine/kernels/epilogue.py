"""What a contraction does to each sum before it stores it: an expression over the sum and operands.

Load 0 is the sum; load i is epilogue operand i, which is a value per column (a bias), per row, per
element (a residual), or one scalar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.ir.types import DType
from engine.kernels.kernel import Array, refuse_others, take_choice, take_list
from engine.ops.expression import Expression, call, constant, evaluate, load, loads, order

__all__ = ["IDENTITY", "OPERAND_KINDS", "Epilogue", "preamble", "print_epilogue", "standard"]

OPERAND_KINDS = ("column", "row", "full", "scalar")
MOST_OPERANDS = 8
_C_FORMS = {
    "add": "({} + {})",
    "subtract": "({} - {})",
    "multiply": "({} * {})",
    "max": "ef_maximum({}, {})",
    "min": "ef_minimum({}, {})",
}
_PREAMBLE = """
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
        return cls(expression, operands)

    def evaluate(self, values: Sequence[Array]) -> Array:
        """The expression over arrays that broadcast against the sums."""
        return evaluate(self.expression, values)


def preamble(expression: Expression) -> str:
    """C text that the printed expression needs before the function it stands in."""
    return _PREAMBLE


def print_epilogue(expression: Expression, names: Sequence[str]) -> str:
    """A scalar C expression; ``names`` are the C expressions of the loads."""
    texts: dict[Expression, str] = {}
    for node in order(expression):
        if node.function == "load":
            assert isinstance(node.value, int)
            texts[node] = names[node.value]
        elif node.function == "constant":
            assert node.value is not None
            texts[node] = f"({float(node.value).hex()}f)"
        elif node.function in _C_FORMS:
            parts = [texts[operand] for operand in node.operands]
            texts[node] = _C_FORMS[node.function].format(*parts)
        else:
            raise ValueError(f"no C form of {node.function} in an epilogue")
    return texts[expression]


def standard(*operands: str, relu: bool = False) -> Epilogue:
    """The sum plus every operand, then relu if asked."""
    total = load(0, DType.FLOAT32)
    for position in range(len(operands)):
        total = call("add", total, load(position + 1, DType.FLOAT32))
    if relu:
        total = call("max", total, constant(0.0, DType.FLOAT32))
    return Epilogue(total, operands)


IDENTITY = standard()
