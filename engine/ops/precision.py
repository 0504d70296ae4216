"""The precision that meanings compute in: narrow floats are widened to float32 and rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.ir.types import Array, DType
from engine.ops.arrays import as_array

__all__ = ["is_narrow_float", "rounded", "widened"]


def is_narrow_float(array: Array) -> bool:
    """Whether the elements are floats of 16 bits or fewer."""
    return DType.of(array.dtype).is_float and array.dtype.itemsize <= 2


def widened(array: Array) -> Array:
    """The array in float32 when its floats have 16 bits or fewer, else itself."""
    return array.astype(np.float32) if is_narrow_float(array) else array


def rounded(values: Any, like: Array) -> Array:
    """A result computed in a wide type as an array of the type of ``like``."""
    return as_array(values).astype(like.dtype, copy=False)
