"""Several elementwise operators as one: what the merging pass makes of a chain or a diamond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from engine.ir.types import DType
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.expression import Expression, load, substitute
from engine.ops.operator import DOMAIN, register

__all__ = ["Pointwise"]

_SAME = load(0, DType.FLOAT32)


@register("Pointwise", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class Pointwise(ElementwiseOperator):
    """One expression over broadcast inputs; load i is input i."""

    symbolic: ClassVar[bool] = False
    body: Expression = _SAME
    #: What the expression is known as, for reports: "gelu", "silu" and so on.
    label: str = ""

    def expression(self, *operands: Any) -> Expression:
        return substitute(
            self.body, {i: item for i, item in enumerate(operands) if item is not None}
        )
