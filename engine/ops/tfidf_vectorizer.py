"""TfIdfVectorizer: counts of known n-grams, weighted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register

__all__ = ["TfIdfVectorizer"]


@register("TfIdfVectorizer", since=9)
@dataclass(frozen=True, slots=True)
class TfIdfVectorizer(Operator):
    """How often each n-gram of a pool occurs: (C) to (columns), (N, C) to (N, columns), float32.

    The items of an n-gram lie 1, 2, ... ``max_skip_count`` + 1 places apart. The i-th n-gram of the
    pool has the i-th weight and adds to column ``ngram_indexes[i]``.
    """

    max_gram_length: int
    max_skip_count: int
    min_gram_length: int
    mode: str
    ngram_counts: tuple[int, ...]
    ngram_indexes: tuple[int, ...]
    pool_int64s: tuple[int, ...] = ()
    pool_strings: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def columns(self) -> int:
        """The size of the output's last axis."""
        return max(self.ngram_indexes, default=-1) + 1

    def infer(self, x: Operand, /) -> Sequence[Type]:
        if x.shape is None:
            return [TensorType(DType.FLOAT32, None)]
        if len(x.shape) > 2:
            raise ValueError(f"the input is {x.type}, expected shape [C] or [N, C]")
        return [TensorType(DType.FLOAT32, (*x.shape[:-1], self.columns))]

    def meaning(self, x: Array, /) -> Array:
        if x.ndim > 2:
            raise ValueError(f"the input has shape {x.shape}, expected (C,) or (N, C)")
        rows = x.reshape(1, -1) if x.ndim < 2 else x
        numbers = self._numbers()
        counts = np.zeros((len(rows), len(self.ngram_indexes)), np.float32)
        for count, row in zip(counts, rows.tolist(), strict=True):
            for gram in self._grams(row):
                if gram in numbers:
                    count[numbers[gram]] += 1
        result = np.zeros((len(rows), self.columns), np.float32)
        for column, weighted in zip(self.ngram_indexes, self._weighted(counts).T, strict=True):
            result[:, column] += weighted
        return result.reshape((*x.shape[:-1], self.columns))

    def _numbers(self) -> dict[tuple[Any, ...], int]:
        """The number in the pool of each n-gram that is looked for."""
        pool: tuple[Any, ...] = self.pool_strings or self.pool_int64s
        ends = [*self.ngram_counts[1:], len(pool)]
        result: dict[tuple[Any, ...], int] = {}
        number = 0
        for size, (start, end) in enumerate(zip(self.ngram_counts, ends, strict=True), 1):
            for place in range(start, end - size + 1, size):
                if self.min_gram_length <= size <= self.max_gram_length:
                    result[pool[place : place + size]] = number
                number += 1
        return result

    def _grams(self, row: list[Any]) -> Any:
        """All n-grams of a row; single items once, whatever may be skipped."""
        for size in range(self.min_gram_length, self.max_gram_length + 1):
            for step in range(1, self.max_skip_count + 2 if size > 1 else 2):
                for start in range(len(row) - (size - 1) * step):
                    yield tuple(row[start : start + (size - 1) * step + 1 : step])

    def _weighted(self, counts: Array) -> Array:
        weights = np.array(self.weights or (1.0,), np.float32)
        if len(weights) not in (1, counts.shape[1]):
            raise ValueError(f"{len(weights)} weights for {counts.shape[1]} n-grams")
        if self.mode == "TF":
            return counts
        if self.mode == "IDF":
            return as_array((counts > 0) * weights)
        if self.mode == "TFIDF":
            return as_array(counts * weights)
        raise ValueError(f"mode is {self.mode!r}, expected TF, IDF or TFIDF")
