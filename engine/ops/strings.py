"""Operators on strings: concatenate, split, normalise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import maximum, provably_equal
from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.operator import Operator, register
from engine.ops.shapes import broadcast, unknown

__all__ = ["StringConcat", "StringNormalizer", "StringSplit", "string_array"]


def string_array(items: Sequence[str], shape: Sequence[int]) -> Array:
    """A string tensor (an object array) from its elements in row-major order."""
    result = np.empty(len(items), object)
    result[:] = items
    return result.reshape(tuple(shape))


@register("StringConcat", since=20)
@dataclass(frozen=True, slots=True)
class StringConcat(Operator):
    """Elementwise concatenation with broadcasting."""

    def infer(self, x: Operand, y: Operand, /) -> Sequence[Type]:
        return [TensorType(DType.STRING, broadcast(x.shape, y.shape))]

    def meaning(self, x: Array, y: Array, /) -> Array:
        left, right = np.broadcast_arrays(x, y)
        pairs = zip(left.ravel().tolist(), right.ravel().tolist(), strict=True)
        return string_array([a + b for a, b in pairs], left.shape)


@register("StringSplit", since=20)
@dataclass(frozen=True, slots=True)
class StringSplit(Operator):
    """The parts of every string on a new last axis, padded with "", and their numbers.

    Without a delimiter runs of white space separate, and those at the ends are dropped.
    """

    delimiter: str | None = None
    maxsplit: int | None = None

    def infer(self, x: Operand, /) -> Sequence[Type]:
        shape = None if x.shape is None else (*x.shape, unknown())
        return [TensorType(DType.STRING, shape), TensorType(DType.INT64, x.shape)]

    def meaning(self, x: Array, /) -> tuple[Array, Array]:
        limit = -1 if self.maxsplit is None else self.maxsplit
        parts = [item.split(self.delimiter or None, limit) for item in x.ravel().tolist()]
        width = max(map(len, parts), default=0)
        padded = [item for row in parts for item in row + [""] * (width - len(row))]
        numbers = np.array([len(row) for row in parts], np.int64).reshape(x.shape)
        return string_array(padded, (*x.shape, width)), numbers


#: Languages whose rules for upper and lower case differ from Unicode's default rules.
_OTHER_CASES = {"az", "lt", "tr"}
_CHANGES: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}


@register("StringNormalizer", since=10)
@dataclass(frozen=True, slots=True)
class StringNormalizer(Operator):
    """Drop stop words, then change the case: (C) or (1, C) to fewer strings, at least one "".

    Case follows Unicode's default rules; a locale whose rules differ from them is refused.
    """

    case_change_action: str = "NONE"
    is_case_sensitive: int = 0
    locale: str | None = None
    stopwords: tuple[str, ...] = ()

    def infer(self, x: Operand, /) -> Sequence[Type]:
        self._change()
        if x.shape is None:
            return [TensorType(DType.STRING, None)]
        rank = len(x.shape)
        if rank not in (1, 2) or (rank == 2 and provably_equal(x.shape[0], 1) is False):
            raise ValueError(f"the input is {x.type}, expected shape [C] or [1, C]")
        most = unknown(maximum(x.shape[-1], 1))
        return [TensorType(DType.STRING, (most,) if rank == 1 else (1, most))]

    def _change(self) -> Callable[[str], str]:
        if self.case_change_action not in _CHANGES:
            raise ValueError(
                f"case_change_action is {self.case_change_action!r}, expected one of "
                f"{', '.join(_CHANGES)}"
            )
        cases = self.case_change_action != "NONE" or (self.stopwords and not self.is_case_sensitive)
        language = (self.locale or "").replace("-", "_").split("_")[0].lower()
        if cases and language in _OTHER_CASES:
            raise ValueError(
                f"the locale {self.locale!r} has its own rules for upper and lower case, which "
                "are not known here"
            )
        return _CHANGES[self.case_change_action]

    def meaning(self, x: Array, /) -> Array:
        if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
            raise ValueError(f"the input has shape {x.shape}, expected (C,) or (1, C)")
        key: Callable[[str], str] = str if self.is_case_sensitive else str.lower
        dropped = {key(word) for word in self.stopwords}
        change = self._change()
        kept = [change(item) for item in x.ravel().tolist() if key(item) not in dropped] or [""]
        return string_array(kept, (len(kept),) if x.ndim == 1 else (1, len(kept)))
