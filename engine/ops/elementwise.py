"""The parent of all elementwise operators: shape rule and meaning follow from one expression.

Operators that are only an expression are rows of one table per family; `define` turns a row into a
registered class. Floats below 32 bits are widened at the start and rounded once at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.ir.types import Array, DType, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.conversions import is_narrow
from engine.ops.expression import Expression, cast, constant, evaluate, load
from engine.ops.operator import Operator, find, register, tensor
from engine.ops.shapes import broadcast
from engine.ops.symbolic import evaluate_sizes, holds_conditions, holds_sizes

__all__ = ["ElementwiseOperator", "Formula", "define", "number"]

Formula = Callable[..., Expression]


def number(value: float, like: Expression) -> Expression:
    """A constant of the same type as another expression."""
    return constant(value, like.dtype)


def _widened(operand: Expression) -> Expression:
    narrow = operand.dtype.is_float and is_narrow(operand.dtype)
    return cast(operand, DType.FLOAT32) if narrow else operand


@dataclass(frozen=True, slots=True)
class ElementwiseOperator(Operator):
    """An operator whose every output element is one expression over elements of its inputs.

    Subclasses give `formula`. The result takes the narrow float type of input ``result_like``.
    """

    result_like: ClassVar[int] = 0

    def formula(self, *operands: Any) -> Expression:
        """The expression over operands of 32 or more bits; None for absent optional inputs."""
        raise NotImplementedError(type(self).__name__)

    def expression(self, *operands: Expression | None) -> Expression:
        """The output element as an expression of the input elements, all already broadcast.

        Absent optional inputs are None. Raises ValueError when the element types do not fit.
        """
        wide = [item if item is None else _widened(item) for item in operands]
        result = self.formula(*wide)
        like = operands[self.result_like]
        if like is not None and like is not wide[self.result_like]:
            return cast(result, like.dtype) if result.dtype is DType.FLOAT32 else result
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """Classes made from table rows have no name in a module; the registry knows them."""
        return _restored, (self.name, self.since, self.attributes())

    def _over(self, dtypes: Sequence[DType | None]) -> Expression:
        loads = [
            None if dtype is None else load(position, dtype)
            for position, dtype in enumerate(dtypes)
        ]
        return self.expression(*loads)

    def infer(self, *operands: Any) -> Sequence[Type]:
        """The broadcast of all shapes with the expression's type."""
        types = [
            None if item is None else tensor(item, f"operand {position}")
            for position, item in enumerate(operands)
        ]
        result = self._over([None if item is None else item.dtype for item in types])
        shape = broadcast(*(item.shape for item in types if item is not None))
        return [TensorType(result.dtype, shape)]

    def meaning(self, *inputs: Any) -> Array:
        """The expression, evaluated over the broadcast inputs (arrays, or arrays of sizes)."""
        arrays = [None if item is None else as_array(item) for item in inputs]
        if any(item is not None and holds_sizes(item) for item in arrays):
            return evaluate_sizes(self._over([_size_dtype(item) for item in arrays]), arrays)
        expression = self._over([None if a is None else DType.of(a.dtype) for a in arrays])
        given = [np.zeros(0) if item is None else item for item in arrays]
        result = evaluate(expression, given)
        shape = np.broadcast_shapes(*(item.shape for item in arrays if item is not None))
        return result if result.shape == shape else np.array(np.broadcast_to(result, shape))


def _restored(name: str, since: int, attributes: dict[str, Any]) -> Operator:
    return find("", name, since).from_attributes(attributes)


def _size_dtype(array: Array | None) -> DType | None:
    """The element type of an operand in shape arithmetic, where every integer counts as int64."""
    if array is None:
        return None
    if holds_conditions(array):
        return DType.BOOL
    dtype = DType.INT64 if array.dtype.kind in "Oiu" else DType.of(array.dtype)
    if dtype is not DType.INT64:
        raise ValueError(f"shape arithmetic is undecided for {dtype.value}")
    return dtype


def define(
    name: str,
    since: int,
    formula: Formula,
    *,
    text: str,
    attributes: Mapping[str, tuple[type, Any]] | None = None,
    symbolic: bool = False,
    result_like: int = 0,
) -> type[ElementwiseOperator]:
    """A registered operator class from a table row.

    ``formula(operator, *operands)`` gives the expression; ``attributes`` maps names to type and
    default; ``text`` becomes the docstring.
    """
    fields = [
        (key, hint, dataclasses.field(default=default))
        for key, (hint, default) in (attributes or {}).items()
    ]
    members = {
        "__doc__": text,
        "formula": formula,
        "symbolic": symbolic,
        "result_like": result_like,
        "__module__": formula.__module__,
    }
    made = dataclasses.make_dataclass(
        name, fields, bases=(ElementwiseOperator,), namespace=members, frozen=True, slots=True
    )
    made.__module__ = formula.__module__
    return register(name, since=since)(made)
