"""Identity: a value under another name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.ir.types import Operand, Type
from engine.ops.operator import Operator, register

__all__ = ["Identity"]


@register("Identity", since=1)
@dataclass(frozen=True, slots=True)
class Identity(Operator):
    """The input itself: a tensor, a sequence or an optional."""

    symbolic = True

    def infer(self, value: Operand, /) -> list[Type]:
        """The type of the input."""
        return [value.type]

    def meaning(self, value: Any, /) -> Any:
        """The input itself."""
        return value
