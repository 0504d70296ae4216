"""FlexAttention: attention whose scores and weights pass through bodies of the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.attention import query_keys, weigh_values
from engine.ops.control import Body, ControlOperator
from engine.ops.conversions import convert
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.operator import register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import agree, unknown_shape
from engine.ops.softmax import softmax

__all__ = ["FlexAttention"]


@register("FlexAttention", since=1, domain="ai.onnx.preview")
@dataclass(frozen=True, slots=True)
class FlexAttention(ControlOperator):
    """Attention of Q [N, H, L, D], K [N, KV, S, D], V [N, KV, S, Dv] with two optional bodies.

    The bodies change the scores before and the weights after the softmax, both [N, H, L, S] of
    the softmax's type; a node has both of them (one may be the identity) or none.
    """

    scale: float | None = None
    softmax_precision: int | None = None

    def _precision(self, query: DType) -> DType:
        if self.softmax_precision:
            return dtype_of_code(self.softmax_precision)
        return DType.FLOAT64 if query is DType.FLOAT64 else DType.FLOAT32

    def body_inputs(self, operands: Sequence[Operand | None]) -> Sequence[Sequence[Type]]:
        """The scores for the first body, the weights for the second."""
        query, key = operands[0], operands[1]
        assert query is not None
        assert key is not None
        left = query.shape or unknown_shape(4)
        right = key.shape or unknown_shape(4)
        kind = TensorType(self._precision(query.dtype), (*left[:3], right[2]))
        return [[kind], [kind]]

    def infer_bodies(
        self, operands: Sequence[Operand | None], results: Sequence[Sequence[Type]]
    ) -> Sequence[Type]:
        """The types that the operator has without bodies; a body keeps what it changes."""
        given = self.body_inputs(operands)
        for formal, result in zip(given, results, strict=False):
            before, after = formal[0], result[0] if len(result) == 1 else None
            if not isinstance(after, TensorType) or not isinstance(before, TensorType):
                raise ValueError("a body of FlexAttention has one tensor as its output")
            if after.dtype is not before.dtype:
                raise ValueError(f"a body makes {after} of {before}, expected the same type")
        return self.infer(*operands[:3])

    def infer(self, query: Any, key: Any, value: Any, /) -> Sequence[Type]:
        """[N, H, L, Dv]."""
        q, k, v = tensor(query, "Q"), tensor(key, "K"), tensor(value, "V")
        for kind, name in ((q, "Q"), (k, "K"), (v, "V")):
            if kind.shape is not None and len(kind.shape) != 4:
                raise ValueError(f"{name} has rank {len(kind.shape)}, expected 4")
        if q.shape is not None and k.shape is not None:
            agree(q.shape[3], k.shape[3], name="the size of a head of Q and K")
        lead = unknown_shape(3) if q.shape is None else q.shape[:3]
        width = unknown_shape(1)[0] if v.shape is None else v.shape[3]
        return [TensorType(q.dtype, (*lead, width))]

    def meaning(self, query: Array, key: Array, value: Array, /) -> Array:
        """Attention without bodies."""
        return as_array(self.run((), query, key, value)[0])

    def run(self, bodies: Sequence[Body], *inputs: Any) -> tuple[Any, ...]:
        """Scores in at least float32; the bodies see them in the softmax's type."""
        query, key, value = inputs[:3]
        captured = inputs[self.formal :] if self.formal else ()
        precision = self._precision(DType.of(query.dtype))
        wide = np.float64 if precision is DType.FLOAT64 else np.float32
        scale = self.scale if self.scale is not None else 1 / np.sqrt(query.shape[-1])
        scores = query_keys(widened(query).astype(wide), widened(key).astype(wide), float(scale))
        if bodies:
            (changed,) = bodies[0](convert(scores, precision), *captured)
            scores = as_array(changed).astype(wide)
        weights = softmax(scores, -1)
        if bodies:
            (changed,) = bodies[1](convert(weights, precision), *captured)
            weights = as_array(changed).astype(wide)
        return (rounded(weigh_values(weights, widened(value).astype(wide)), query),)
