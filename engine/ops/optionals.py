"""Operators on optional values: a value that is there or None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.types import Array, DType, Operand, OptionalType, SequenceType, TensorType, Type
from engine.ops.operator import Operator, register

__all__ = ["ElementType", "Optional", "OptionalGetElement", "OptionalHasElement"]

_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class ElementType:
    """The ``type`` attribute of Optional: the type of a value that is absent."""

    type: Type

    def to_json(self) -> Any:
        """The type as nested lists; the sizes of tensors are left out."""
        return _to_json(self.type)

    @classmethod
    def from_json(cls, value: Any) -> ElementType:
        """A type from `to_json`'s lists, or from a type itself; ValueError for anything else."""
        if isinstance(value, (TensorType, SequenceType, OptionalType)):
            return cls(value)
        return cls(_from_json(value, 0))


def _to_json(kind: Type) -> Any:
    if isinstance(kind, TensorType):
        return ["tensor", kind.dtype.value]
    if isinstance(kind, (SequenceType, OptionalType)):
        name = "sequence" if isinstance(kind, SequenceType) else "optional"
        return [name, _to_json(kind.element)]
    raise ValueError(f"an optional of {kind} is not known, expected a tensor or a sequence")


def _from_json(value: Any, depth: int) -> Type:
    if depth > _DEEPEST or not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"attribute 'type' is {str(value)[:60]}, expected [kind, element]")
    kind, inner = value
    if kind == "tensor":
        return TensorType(DType(inner), None)
    if kind == "sequence":
        return SequenceType(_from_json(inner, depth + 1))
    if kind == "optional":
        return OptionalType(_from_json(inner, depth + 1))
    raise ValueError(f"attribute 'type' has the kind {kind!r}, expected tensor, sequence, optional")


@register("Optional", since=15)
@dataclass(frozen=True, slots=True)
class Optional(Operator):
    """A value as an optional; without an input, the absent value of a given type."""

    type: ElementType | None = None

    def infer(self, x: Operand | None = None, /) -> Sequence[Type]:
        if x is not None:
            return [x.type if isinstance(x.type, OptionalType) else OptionalType(x.type)]
        if self.type is None:
            raise ValueError("Optional has neither an input nor the attribute 'type'")
        return [OptionalType(self.type.type)]

    def meaning(self, x: Any = None, /) -> Any:
        return x


@register("OptionalHasElement", since=15)
@dataclass(frozen=True, slots=True)
class OptionalHasElement(Operator):
    """Whether an optional holds a value: a scalar of bool. Anything not optional does."""

    def infer(self, x: Operand | None = None, /) -> Sequence[Type]:
        return [TensorType(DType.BOOL, ())]

    def meaning(self, x: Any = None, /) -> Array:
        return np.array(x is not None)


@register("OptionalGetElement", since=15)
@dataclass(frozen=True, slots=True)
class OptionalGetElement(Operator):
    """The value that an optional holds; anything not optional is returned as it is."""

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [x.type.element if isinstance(x.type, OptionalType) else x.type]

    def meaning(self, x: Any, /) -> Any:
        if x is None:
            raise ValueError("OptionalGetElement was asked for the value of an empty optional")
        return x
