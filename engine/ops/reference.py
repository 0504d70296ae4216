"""A node that has no meaning here, kept for onnx's own reference evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import MissingExtraError
from engine.ir.types import DType, Operand, TensorType, Type, UnknownSize
from engine.ops.operator import DOMAIN, Operator, register

__all__ = ["Reference"]


@register("Reference", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class Reference(Operator):
    """An ONNX node as its own bytes (base64), evaluated by the package onnx when it runs.

    ``dtypes`` and ``ranks`` describe the outputs (rank -1 when it is unknown); sizes are found by
    running.
    """

    node: str = ""
    operator: str = ""
    opsets: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        return [
            TensorType(
                DType(dtype),
                None if rank < 0 else tuple(UnknownSize() for _ in range(rank)),  # type: ignore[misc]
            )
            for dtype, rank in zip(self.dtypes, self.ranks)
        ]

    def meaning(self, *inputs: Any) -> Any:
        """Refuses: only the runtime's registered host function evaluates such a node."""
        raise MissingExtraError("onnx", "build", f"the reference step for {self.operator}")
