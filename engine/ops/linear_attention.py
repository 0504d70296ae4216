"""Recurrent and positional companions of attention: LinearAttention and RotaryEmbedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import Dim, floordiv
from engine.ir.types import Array, Operand, TensorType
from engine.ops.attention import split_heads
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import unknown, unknown_shape

__all__ = ["LinearAttention", "RotaryEmbedding"]

_RULES = ("linear", "gated", "delta", "gated_delta")


def _size(kind: TensorType, axis: int, name: str) -> Dim | None:
    if kind.shape is not None and len(kind.shape) != 3:
        raise ValueError(f"{name} has rank {len(kind.shape)}, expected 3")
    return None if kind.shape is None else kind.shape[axis]


@register("LinearAttention", since=27)
@dataclass(frozen=True, slots=True)
class LinearAttention(Operator):
    """A state per head that every step decays, corrects and adds a key times a value to.

    Query [N, T, Hq * Dk], key [N, T, H * Dk], value [N, T, H * Dv], state [N, H, Dk, Dv],
    decay [N, T, H] or [N, T, H * Dk] as logarithms, beta [N, T, H] or [N, T, 1].
    """

    chunk_size: int = 64
    kv_num_heads: int = 0
    q_num_heads: int = 0
    scale: float = 0.0
    update_rule: str = "gated_delta"

    def _check(self) -> None:
        if self.update_rule not in _RULES:
            raise ValueError(
                f"update_rule is {self.update_rule!r}, expected one of {', '.join(_RULES)}"
            )
        if self.kv_num_heads < 1 or self.q_num_heads < 1 or self.q_num_heads % self.kv_num_heads:
            raise ValueError(
                f"{self.q_num_heads} query heads do not share {self.kv_num_heads} key heads"
            )

    def infer(
        self,
        query: Operand,
        key: Operand,
        value: Operand,
        past: Operand | None = None,
        decay: Operand | None = None,
        beta: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """[N, T, Hq * Dv] and the state [N, H, Dk, Dv]."""
        self._check()
        q, k, v = tensor(query, "query"), tensor(key, "key"), tensor(value, "value")
        width, depth = _size(v, 2, "value"), _size(k, 2, "key")
        lead = unknown_shape(2) if _size(q, 0, "query") is None else q.dims[:2]
        own = unknown() if width is None else floordiv(width, self.kv_num_heads)
        features = unknown() if width is None else own * self.q_num_heads
        rows = unknown() if depth is None else floordiv(depth, self.kv_num_heads)
        state = q.dtype if past is None else past.dtype
        return [
            TensorType(q.dtype, (*lead, features)),
            TensorType(state, (lead[0], self.kv_num_heads, rows, own)),
        ]

    def meaning(
        self,
        query: Array,
        key: Array,
        value: Array,
        past: Array | None = None,
        decay: Array | None = None,
        beta: Array | None = None,
        /,
    ) -> tuple[Array, Array]:
        """The recurrence, step by step, in float32."""
        self._check()
        heads = self.kv_num_heads
        q = split_heads(widened(query), self.q_num_heads)
        k, v = split_heads(widened(key), heads), split_heads(widened(value), heads)
        batch, _, steps, depth = k.shape
        gates = None if decay is None else np.exp(self._per_head(widened(decay), depth))
        rates = None if beta is None else self._per_head(widened(beta), depth)
        self._check_inputs(gates, rates)
        state = np.zeros((batch, heads, depth, v.shape[3]), np.float32)
        if past is not None:
            state = past.astype(np.float32)
        outputs = np.empty((batch, self.q_num_heads, steps, v.shape[3]), np.float32)
        group = self.q_num_heads // heads
        for step in range(steps):
            row, new = k[:, :, step, :, None], v[:, :, step, None, :]
            if gates is not None:
                state = state * gates[:, :, step, :, None]
            if rates is not None:
                known = np.matmul(row.swapaxes(-1, -2), state)
                new = rates[:, :, step, :, None] * (new - known)
            state = state + row * new
            asked = q[:, :, step].reshape(batch, heads, group, depth)
            outputs[:, :, step] = np.matmul(asked, state).reshape(batch, self.q_num_heads, -1)
        outputs *= np.float32(self.scale or 1 / np.sqrt(depth))
        flat = outputs.transpose(0, 2, 1, 3).reshape(batch, steps, -1)
        return rounded(flat, query), rounded(state, query if past is None else past)

    def _per_head(self, x: Array, depth: int) -> Array:
        """[N, T, H * D], [N, T, H] or [N, T, 1] as [N, H or 1, T, D or 1]."""
        heads, width = self.kv_num_heads, x.shape[2]
        if width not in (1, heads, heads * depth):
            raise ValueError(f"decay or beta has {width} features for {heads} heads of {depth}")
        return split_heads(x, 1 if width == 1 else heads)

    def _check_inputs(self, gates: Array | None, rates: Array | None) -> None:
        for name, given, needed in (
            ("decay", gates is not None, self.update_rule in ("gated", "gated_delta")),
            ("beta", rates is not None, self.update_rule in ("delta", "gated_delta")),
        ):
            if given != needed:
                verb = "needs" if needed else "takes no"
                raise ValueError(f"update_rule {self.update_rule!r} {verb} input {name!r}")


@register("RotaryEmbedding", since=23)
@dataclass(frozen=True, slots=True)
class RotaryEmbedding(Operator):
    """Pairs of features turned by an angle that grows with the position (Su et al., 2021).

    x [N, heads, L, D] or [N, L, heads * D]; cosines and sines [positions, R / 2] looked up by
    position_ids [N, L], or [N, L, R / 2] without them. Only the first R features are turned.
    """

    interleaved: int = 0
    num_heads: int | None = None
    rotary_embedding_dim: int = 0

    def infer(
        self, x: Operand, cosines: Operand, sines: Operand, positions: Operand | None = None, /
    ) -> list[TensorType]:
        """The type of x."""
        kind = tensor(x, "X")
        tensor(cosines, "cos_cache")
        tensor(sines, "sin_cache")
        if kind.shape is not None and len(kind.shape) not in (3, 4):
            raise ValueError(f"X has rank {len(kind.shape)}, expected 3 or 4")
        if kind.shape is not None and len(kind.shape) == 3 and not self.num_heads:
            raise ValueError("X has rank 3, which needs the attribute num_heads")
        return [kind]

    def meaning(
        self, x: Array, cosines: Array, sines: Array, positions: Array | None = None, /
    ) -> Array:
        """a, b become a cos - b sin, a sin + b cos; in float32, rounded once."""
        heads = widened(split_heads(x, self.num_heads or 0) if x.ndim == 3 else x)
        if positions is not None:
            cosines, sines = cosines[positions], sines[positions]
        cos, sin = widened(cosines)[:, None], widened(sines)[:, None]
        turned = self.rotary_embedding_dim or heads.shape[3]
        if cos.shape[-1] != turned // 2 or sin.shape[-1] != turned // 2:
            raise ValueError(
                f"the caches have {cos.shape[-1]} and {sin.shape[-1]} angles, expected "
                f"{turned // 2} for {turned} features"
            )
        first = slice(0, turned, 2) if self.interleaved else slice(0, turned // 2)
        second = slice(1, turned, 2) if self.interleaved else slice(turned // 2, turned)
        a, b = heads[..., first], heads[..., second]
        result = heads.copy()
        result[..., first] = a * cos - b * sin
        result[..., second] = a * sin + b * cos
        if x.ndim == 3:
            result = result.transpose(0, 2, 1, 3).reshape(x.shape)
        return rounded(result, x)
