"""Attention: scaled dot products of queries and keys as weights of values.

Everything is computed in float32 (float64 for float64 inputs or softmax precision) and rounded
once, to the type of Q. A query that may attend to nothing gives zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import Dim, floordiv
from engine.ir.types import Array, DType, Operand, Shape, TensorType
from engine.ops.arrays import as_array
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import agree, unknown, unknown_shape
from engine.ops.softmax import peak

__all__ = ["Attention", "split_heads", "weigh_values"]

_PRECISIONS = (DType.FLOAT32, DType.FLOAT16, DType.FLOAT64, DType.BFLOAT16)


def split_heads(x: Array, heads: int) -> Array:
    """[N, L, heads * D] as [N, heads, L, D]; ValueError when the last axis does not divide."""
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"{x.shape[-1]} features do not make {heads} heads")
    return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads).transpose(0, 2, 1, 3)


def _grouped(q: Array, kv_heads: int) -> Array:
    """Queries [N, H, L, D] with the heads that share a key together: [N, KV, H / KV, L, D]."""
    if kv_heads < 1 or q.shape[1] % kv_heads:
        raise ValueError(f"{q.shape[1]} query heads do not share {kv_heads} key heads")
    return q.reshape(q.shape[0], kv_heads, q.shape[1] // kv_heads, *q.shape[2:])


def query_keys(q: Array, k: Array, scale: float) -> Array:
    """Scores [N, H, L, S] of queries [N, H, L, D] and keys [N, KV, S, D], scaled."""
    root = np.sqrt(scale) if scale >= 0 else None
    if root is not None:
        q, k = q * q.dtype.type(root), k * k.dtype.type(root)
    scores = np.matmul(_grouped(q, k.shape[1]), k[:, :, None].swapaxes(-1, -2))
    scores = scores.reshape(*q.shape[:3], k.shape[2])
    return as_array(scores if root is not None else scores * q.dtype.type(scale))


def weigh_values(weights: Array, v: Array) -> Array:
    """Values [N, KV, S, D] added up by weights [N, H, L, S]: [N, H, L, D]."""
    result = np.matmul(_grouped(weights, v.shape[1]), v[:, :, None])
    return as_array(result.reshape(*weights.shape[:3], v.shape[3]))


def attention_weights(scores: Array) -> Array:
    """Softmax over the last axis; zeros where every score is minus infinity."""
    greatest = peak(scores, -1)
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - np.where(np.isneginf(greatest), 0, greatest))
    total = np.sum(powers, axis=-1, keepdims=True)
    return as_array(powers / np.where(total == 0, 1, total))


@dataclass(frozen=True, slots=True)
class _Attention(Operator):
    """Attention with masks, shared key heads and caches."""

    is_causal: int = 0
    kv_num_heads: int | None = None
    q_num_heads: int | None = None
    qk_matmul_output_mode: int = 0
    scale: float | None = None
    softcap: float = 0.0
    softmax_precision: int | None = None

    def window(self) -> tuple[int, int]:
        """How far a query sees to its left and to its right; -1 for without limit."""
        return -1, -1

    def _heads(self, kind: TensorType, count: int | None, name: str) -> Shape:
        """The shape [N, H, L, D] of an input of rank 3 or 4."""
        if kind.shape is None:
            return unknown_shape(4)
        if len(kind.shape) == 4:
            return kind.shape
        if len(kind.shape) != 3:
            raise ValueError(f"{name} has rank {len(kind.shape)}, expected 3 or 4")
        if not count:
            raise ValueError(f"{name} has rank 3, which needs the numbers of heads as attributes")
        batch, length, features = kind.shape
        return (batch, count, length, floordiv(features, count))

    def infer_all(
        self,
        q: Operand,
        k: Operand,
        v: Operand,
        mask: Operand | None,
        past_key: Operand | None,
        past_value: Operand | None,
    ) -> list[TensorType]:
        """[N, L, H * Dv] or [N, H, L, Dv]; keys and values so far; scores [N, H, L, S]."""
        if self.softmax_precision and dtype_of_code(self.softmax_precision) not in _PRECISIONS:
            raise ValueError(f"softmax_precision is {self.softmax_precision}, which is no float")
        if (past_key is None) != (past_value is None):
            raise ValueError("past_key and past_value are used together or not at all")
        query = self._heads(tensor(q, "Q"), self.q_num_heads, "Q")
        key = self._heads(tensor(k, "K"), self.kv_num_heads, "K")
        value = self._heads(tensor(v, "V"), self.kv_num_heads, "V")
        total: Dim = key[2]
        if past_key is not None:
            shape = past_key.shape
            total = unknown() if shape is None or _is_unknown(total) else shape[2] + total
        if not _is_unknown(query[3]) and not _is_unknown(key[3]):
            agree(query[3], key[3], name="the size of a head of Q and K")
        if q.shape is None:
            out: Shape | None = None
        elif len(q.shape) == 4:
            out = (*query[:3], value[3])
        else:
            width = unknown() if _is_unknown(value[3]) else value[3] * query[1]
            out = (query[0], query[2], width)
        return [
            TensorType(q.dtype, out),
            TensorType(k.dtype, (*key[:2], total, key[3])),
            TensorType(v.dtype, (*value[:2], total, value[3])),
            TensorType(q.dtype, (*query[:3], total)),
        ]

    def run(
        self,
        inputs: tuple[Array, Array, Array],
        mask: Array | None,
        past: tuple[Array | None, Array | None],
        lengths: Array | None,
    ) -> tuple[Array, ...]:
        """The output, the keys and values so far, and the scores at the stage asked for."""
        q, k, v = inputs
        flat = q.ndim == 3
        if flat:
            q = split_heads(q, self.q_num_heads or 0)
        if k.ndim == 3:
            k, v = split_heads(k, self.kv_num_heads or 0), split_heads(v, self.kv_num_heads or 0)
        before = 0
        if past[0] is not None and past[1] is not None:
            before = past[0].shape[2]
            k, v = np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)
        bias = self._bias(q, k, mask, before, lengths)
        weights, shown = self._weights(q, k, bias)
        wide = widened(v).astype(weights.dtype, copy=False)
        y = weigh_values(weights, wide)
        if flat:
            y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)
        return rounded(y, q), k, v, rounded(shown, q)

    def _weights(self, q: Array, k: Array, bias: Array | None) -> tuple[Array, Array]:
        """The weights of the values, and the stage of them that is asked for."""
        precise = self.softmax_precision and dtype_of_code(self.softmax_precision)
        wide = np.float64 if DType.FLOAT64 in (precise, DType.of(q.dtype)) else np.float32
        scale = self.scale if self.scale is not None else 1 / np.sqrt(q.shape[-1])
        scores = query_keys(widened(q).astype(wide), widened(k).astype(wide), float(scale))
        stages = [scores]
        if self.softcap:
            cap = scores.dtype.type(self.softcap)
            scores = as_array(np.tanh(scores / cap) * cap)
        stages.append(scores)
        if bias is not None:
            scores = as_array(scores + bias.astype(wide))
        stages.append(scores)
        weights = attention_weights(scores)
        stages.append(weights)
        if not 0 <= self.qk_matmul_output_mode <= 3:
            raise ValueError(f"qk_matmul_output_mode is {self.qk_matmul_output_mode}, not 0 to 3")
        return weights, stages[self.qk_matmul_output_mode]

    def _bias(
        self, q: Array, k: Array, mask: Array | None, before: int, lengths: Array | None
    ) -> Array | None:
        """What is added to the scores: the mask, and minus infinity where nothing may be seen."""
        queries, keys = q.shape[2], k.shape[2]
        bias: Array | None = None
        if mask is not None:
            bias = np.where(mask, 0, -np.inf) if mask.dtype == bool else widened(mask)
            missing = keys - mask.shape[-1] if mask.ndim else 0
            if missing > 0:
                widths = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
                bias = np.pad(bias, widths, constant_values=-np.inf)
        allowed = self._allowed(queries, keys, before, lengths)
        if allowed is None:
            return bias
        hidden = np.where(allowed, np.float32(0), np.float32(-np.inf))
        return hidden if bias is None else as_array(bias + hidden)

    def _allowed(self, queries: int, keys: int, before: int, lengths: Array | None) -> Array | None:
        """Which query may see which key, [N or 1, 1, L, S]; None for all."""
        left, right = self.window()
        column = np.arange(keys)
        offset: Array = np.array([before])
        if lengths is not None and before == 0:
            offset = lengths.reshape(-1) - queries
        position = np.arange(queries)[:, None] + offset[:, None, None, None]
        seen: list[Array] = []
        if lengths is not None:
            seen.append(column < lengths.reshape(-1, 1, 1, 1))
        if self.is_causal:
            seen.append(column <= position)
        if left >= 0:
            seen.append(column >= position - left)
        if right >= 0:
            seen.append(column <= position + right)
        if not seen:
            return None
        result = seen[0]
        for item in seen[1:]:
            result = result & item
        return result


def _is_unknown(dim: object) -> bool:
    return dim == unknown()


@register("Attention", since=23)
@dataclass(frozen=True, slots=True)
class Attention23(_Attention):
    """Attention of Q, K, V [N, heads, length, D] or [N, length, heads * D]."""

    def infer(
        self,
        q: Operand,
        k: Operand,
        v: Operand,
        mask: Operand | None = None,
        past_key: Operand | None = None,
        past_value: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """Output, keys and values so far, scores."""
        return self.infer_all(q, k, v, mask, past_key, past_value)

    def meaning(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        past_key: Array | None = None,
        past_value: Array | None = None,
        /,
    ) -> tuple[Array, ...]:
        """Two matrix products with a softmax between them."""
        return self.run((q, k, v), mask, (past_key, past_value), None)


@register("Attention", since=24)
@dataclass(frozen=True, slots=True)
class Attention24(_Attention):
    """Attention that may be told how many keys of each sample are valid."""

    def infer(
        self,
        q: Operand,
        k: Operand,
        v: Operand,
        mask: Operand | None = None,
        past_key: Operand | None = None,
        past_value: Operand | None = None,
        lengths: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """Output, keys and values so far, scores."""
        return self.infer_all(q, k, v, mask, past_key, past_value)

    def meaning(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        past_key: Array | None = None,
        past_value: Array | None = None,
        lengths: Array | None = None,
        /,
    ) -> tuple[Array, ...]:
        """Two matrix products with a softmax between them."""
        return self.run((q, k, v), mask, (past_key, past_value), lengths)


@register("Attention", since=25)
@dataclass(frozen=True, slots=True)
class Attention(Attention24):
    """Attention that may see only a window of keys around each query."""

    left_window_size: int = -1
    right_window_size: int = -1

    def window(self) -> tuple[int, int]:
        """How far a query sees to its left and to its right; -1 for without limit."""
        return self.left_window_size, self.right_window_size
