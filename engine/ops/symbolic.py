"""Expressions over symbolic sizes: the elementwise part of shape arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.ir.sizes import Dim, Size, bounds, floordiv, maximum, minimum, modulo, provably_equal
from engine.ir.types import Array, DType
from engine.ops.arrays import as_array
from engine.ops.expression import Expression, order

__all__ = ["evaluate_sizes", "holds_conditions", "holds_sizes"]


def holds_sizes(array: Array) -> bool:
    """Whether an object array holds sizes (and not strings)."""
    return array.dtype == object and all(
        isinstance(item, (int, np.integer, Size)) for item in array.ravel()[:1]
    )


def holds_conditions(array: Array) -> bool:
    """Whether the elements are truth values, as a bool array or as objects."""
    if array.dtype == object:
        return array.size > 0 and all(isinstance(item, bool) for item in array.flat)
    return bool(array.dtype == np.bool_)


def _undecided(text: str) -> ValueError:
    return ValueError(f"undecided: {text} depends on the sizes at run time")


def _truncated(left: Dim, right: Dim) -> Dim:
    if isinstance(left, int) and isinstance(right, int):
        if right == 0:
            raise _undecided("a division by zero")
        return -(-left // right) if (left < 0) != (right < 0) else left // right
    if (bounds(left)[0] or 0) < 0 or bounds(left)[0] is None or right == 0:
        raise _undecided(f"{left} / {right}")
    return floordiv(left, right)


def _remainder(left: Dim, right: Dim) -> Dim:
    if right == 0:
        raise _undecided(f"{left} % 0")
    return modulo(left, right)


def _fmod(left: Dim, right: Dim) -> Dim:
    return left - _truncated(left, right) * right


def _sign(value: Dim) -> int:
    lower, upper = bounds(value)
    if lower is not None and lower > 0:
        return 1
    if upper is not None and upper < 0:
        return -1
    if lower == upper == 0:
        return 0
    raise _undecided(f"the sign of {value}")


def _absolute(value: Dim) -> Dim:
    lower, upper = bounds(value)
    if lower is not None and lower >= 0:
        return value
    if upper is not None and upper <= 0:
        return -value
    raise _undecided(f"the absolute value of {value}")


def _equal(left: Dim, right: Dim) -> bool:
    answer = provably_equal(left, right)
    if answer is None:
        raise _undecided(f"{left} == {right}")
    return answer


def _less(left: Dim, right: Dim) -> bool:
    lower, upper = bounds(left - right)
    if upper is not None and upper < 0:
        return True
    if lower is not None and lower >= 0:
        return False
    raise _undecided(f"{left} < {right}")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": _truncated,
    "floor_mod": _remainder,
    "fmod": _fmod,
    "min": minimum,
    "max": maximum,
    "negative": operator.neg,
    "abs": _absolute,
    "sign": _sign,
    "equal": _equal,
    "not_equal": lambda a, b: not _equal(a, b),
    "less": _less,
    "greater": lambda a, b: _less(b, a),
    "less_equal": lambda a, b: not _less(b, a),
    "greater_equal": lambda a, b: not _less(a, b),
    "logical_and": lambda a, b: a and b,
    "logical_or": lambda a, b: a or b,
    "logical_xor": operator.ne,
    "logical_not": operator.not_,
    "select": lambda condition, a, b: a if condition else b,
}


def _cast(value: Any, source: DType, target: DType) -> Any:
    if target is DType.BOOL:
        return value if source is DType.BOOL else not _equal(value, 0)
    if target.is_integer and target.nbytes >= 4:
        return int(value) if source is DType.BOOL else value
    raise _undecided(f"a size as {target.value}")


def evaluate_sizes(expression: Expression, operands: Sequence[Array | None]) -> Array:
    """The expression over arrays of sizes: an object array, or a bool array for a condition.

    Raises ValueError ("undecided") when the answer depends on the values of the symbols.
    """
    values: dict[Expression, Any] = {}
    for node in order(expression):
        inputs = [values[item] for item in node.operands]
        if node.function == "load":
            array = operands[int(node.value or 0)]
            assert array is not None
            values[node] = array.astype(object)
        elif node.function == "constant":
            values[node] = np.array(node.value, object)
        elif node.function == "cast":
            source, target = node.operands[0].dtype, node.dtype
            values[node] = np.frompyfunc(
                lambda value, s=source, t=target: _cast(value, s, t), 1, 1
            )(*inputs)
        elif node.function in _FUNCTIONS:
            values[node] = np.frompyfunc(_FUNCTIONS[node.function], len(inputs), 1)(*inputs)
        else:
            raise _undecided(node.function)
    result = as_array(values[expression], object)
    return result.astype(bool) if expression.dtype is DType.BOOL else result
