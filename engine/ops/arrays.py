"""Arrays as meanings take them: NumPy's, or those of a library that NumPy's functions accept."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from engine.ir.types import Array

__all__ = ["as_array"]


def as_array(value: Any, dtype: Any = None, order: Literal["C"] | None = None) -> Array:
    """The value as an array, copied only when its type or order must change.

    What implements ``__array_function__`` (as CuPy's arrays on a GPU) stays what it is: NumPy's own
    `numpy.asarray` would bring it to the host, or refuse to.
    """
    if isinstance(value, np.ndarray) or not hasattr(type(value), "__array_function__"):
        return np.asarray(value, dtype, order)
    if dtype is None:
        return value  # type: ignore[no-any-return]
    found: Array = value.astype(dtype, copy=False)
    return found
