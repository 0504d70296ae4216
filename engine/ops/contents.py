"""Reading the contents of small integer inputs: shapes, axes, starts, repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.ir.types import Operand
from engine.ops.arrays import as_array

__all__ = ["element_count", "integers", "known_integers"]


def integers(values: Any) -> list[int]:
    """The elements of an integer array; ValueError for one that is a symbolic size."""
    try:
        return [int(item) for item in as_array(values).reshape(-1)]
    except TypeError:
        raise ValueError(f"symbolic sizes {values} stand where integers are needed") from None


def known_integers(operand: Operand | None) -> list[int] | None:
    """The elements of an integer input when all are known before a run, else None."""
    sizes: Sequence[Any] | None = None if operand is None else operand.sizes
    if sizes is None or not all(isinstance(item, int) for item in sizes):
        return None
    return [int(item) for item in sizes]


def element_count(operand: Operand) -> int | None:
    """How many elements a 1-D (or scalar) input has, when that is a number, else None."""
    shape = operand.shape
    if shape is None:
        return None
    if len(shape) > 1:
        raise ValueError(f"a 1-D tensor was expected, found rank {len(shape)}")
    count = shape[0] if shape else 1
    return count if isinstance(count, int) else None
