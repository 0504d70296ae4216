"""Attention: softmax(scale Q K^T + mask) V per head, without a matrix of scores in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from engine.kernels.attention_source import print_attention
from engine.kernels.isa import Isa
from engine.kernels.kernel import (
    Array,
    Kernel,
    refuse_others,
    register,
    take_boolean,
    take_choice,
    take_integer,
    window,
)

__all__ = ["Attention", "candidates"]

MASKS = ("none", "key", "full")
#: The widest vector and the tallest tile of scores of any instruction set, for scratch sizes.
_WIDEST = 16
_TALLEST = 12
_STRIDES = tuple(f"{part}_{axis}" for part in "qkvom" for axis in ("batch", "head", "row"))


@register
@dataclass(frozen=True, slots=True)
class Attention(Kernel):
    """Fused float32 attention over strided queries, keys, values and output.

    The elements of a head are adjacent; every other stride is free, so that packed projections are
    read in place and heads are merged as they are written. ``mask`` is added to the scaled scores:
    "key" has one value per key and batch (and head), "full" one per query too, keys adjacent.
    ``causal`` lets query i see keys up to i + past. A query that sees no key gives NaN, zeros when
    ``guarded``.
    """

    kind: ClassVar[str] = "attention"

    head_size: int
    scale: float
    mask: str = "none"
    causal: bool = False
    query_block: int = 32
    key_block: int = 128
    guarded: bool = False

    def to_json(self) -> dict[str, object]:
        """All fields; the scale as its exact hexadecimal text."""
        return {
            "head_size": self.head_size,
            "scale": float(self.scale).hex(),
            "mask": self.mask,
            "causal": self.causal,
            "query_block": self.query_block,
            "key_block": self.key_block,
            "guarded": self.guarded,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        names = ("head_size", "scale", "mask", "causal", "query_block", "key_block", "guarded")
        refuse_others(fields, names)
        text = fields.get("scale")
        if not isinstance(text, str) or len(text) > 40:
            raise ValueError(f"field scale: found {text!r}, expected a hexadecimal float")
        scale = float.fromhex(text)
        if not math.isfinite(scale) or abs(scale) > 1e30:
            raise ValueError(f"field scale: found {scale}, expected a finite number")
        return cls(
            head_size=take_integer(fields, "head_size", 1, 256),
            scale=scale,
            mask=take_choice(fields, "mask", MASKS),
            causal=take_boolean(fields, "causal"),
            query_block=16 * take_integer({"query_block": _sixteens(fields)}, "query_block", 1, 4),
            key_block=take_integer(fields, "key_block", 16, 1024),
            guarded=take_boolean(fields, "guarded"),
        )

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """Queries, keys, values, the mask if there is one, the output."""
        return ("float32",) * (4 if self.mask == "none" else 5)

    @property
    def size_names(self) -> tuple[str, ...]:
        """Sizes, then the strides of q, k, v, the output o and the mask m (0 without one).

        ``group`` is how many query heads share a key head; ``past`` is used when causal.
        """
        return ("batch", "heads", "group", "queries", "keys", "past", *_STRIDES)

    def items(self, sizes: Sequence[int]) -> int:
        """Blocks of queries of all heads."""
        s = self._checked(sizes)
        return s["batch"] * s["heads"] * -(-s["queries"] // self.query_block)

    def _checked(self, sizes: Sequence[int]) -> dict[str, int]:
        s = self.named(sizes)
        if s["group"] < 1:
            raise ValueError("attention: group is 0, expected at least 1")
        return s

    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Reach of every operand in elements."""
        s = self._checked(sizes)
        if 0 in (s["batch"], s["heads"], s["queries"]):
            return (0,) * self.operand_count

        def reach(part: str, heads: int, rows: int, columns: int) -> int:
            if rows == 0:
                return 0
            outer = (s["batch"] - 1) * s[f"{part}_batch"] + (heads - 1) * s[f"{part}_head"]
            return outer + (rows - 1) * s[f"{part}_row"] + columns

        shared = -(-s["heads"] // s["group"])
        found = [
            reach("q", s["heads"], s["queries"], self.head_size),
            reach("k", shared, s["keys"], self.head_size),
            reach("v", shared, s["keys"], self.head_size),
        ]
        if self.mask != "none":
            rows = s["queries"] if self.mask == "full" else 1
            found.append(reach("m", s["heads"], rows, s["keys"]) if s["keys"] else 0)
        return (*found, reach("o", s["heads"], s["queries"], self.head_size))

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """Transposed queries, a block of scores, output rows and three values per query."""
        padded = -(-self.head_size // _WIDEST) * _WIDEST
        rows = self.head_size + self.key_block + _TALLEST + padded + 3
        return rows * self.query_block * 4

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """Two products and the softmax; every operand once."""
        s = self._checked(sizes)
        scores = float(s["batch"] * s["heads"] * s["queries"] * s["keys"])
        if self.causal:
            scores /= 2
        rows = s["batch"] * s["heads"] * (s["queries"] * 2 + s["keys"] * 2)
        return scores * (4 * self.head_size + 20), rows * self.head_size * 4.0

    def source(self, name: str, isa: Isa) -> str:
        """The C text for an instruction set."""
        return print_attention(self, name, isa)

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """Plain attention with whole matrices of scores, head by head."""
        s = self._checked(sizes)
        if 0 in (s["batch"], s["heads"], s["queries"]):
            return
        shared, head = -(-s["heads"] // s["group"]), self.head_size

        def view(place: int, part: str, heads: int, rows: int, columns: int) -> Array:
            strides = [s[f"{part}_{axis}"] for axis in ("batch", "head", "row")]
            return window(operands[place], (s["batch"], heads, rows, columns), (*strides, 1))

        q = view(0, "q", s["heads"], s["queries"], head)
        k = view(1, "k", shared, s["keys"], head)
        v = view(2, "v", shared, s["keys"], head)
        out = view(len(operands) - 1, "o", s["heads"], s["queries"], head)
        index = np.arange(s["heads"]) // s["group"]
        scores = (q * np.float32(self.scale)) @ k[:, index].swapaxes(-1, -2)
        if self.mask == "key":
            steps = (s["m_batch"], s["m_head"], 0, 1)
            shape = (s["batch"], s["heads"], 1, s["keys"])
            scores = scores + window(operands[3], shape, steps)
        elif self.mask == "full":
            scores = scores + view(3, "m", s["heads"], s["queries"], s["keys"])
        if self.causal:
            visible = np.arange(s["keys"]) <= np.arange(s["queries"])[:, None] + s["past"]
            scores = np.where(visible, scores, np.float32("-inf"))
        with np.errstate(invalid="ignore", divide="ignore"):
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            weights = np.exp(scores - np.where(np.isinf(top) & (top < 0), 0, top))
            weights = weights.astype(np.float32)
            total = weights.sum(-1, keepdims=True)
            if self.guarded:
                total = np.where(total == 0, np.float32(1), total)
            out[...] = (weights @ v[:, index]) / total


def _sixteens(fields: Mapping[str, object]) -> int:
    """How many times 16 the query block is; 0 when it is no multiple."""
    value = fields.get("query_block")
    whole = isinstance(value, int) and not isinstance(value, bool) and value % 16 == 0
    return value // 16 if whole and isinstance(value, int) else 0


def candidates(
    *,
    head_size: int,
    scale: float,
    mask: str = "none",
    causal: bool = False,
    keys: int = 128,
    guarded: bool = False,
) -> list[Attention]:
    """Parameter sets worth measuring, the likely best first."""
    longest = max(16, min(1024, -(-keys // 16) * 16))
    blocks = sorted({min(128, longest), min(256, longest)})
    return [
        Attention(head_size, scale, mask, causal, query_block, key_block, guarded)
        for query_block in (32, 64)
        for key_block in blocks
    ]
