"""Special functions that NumPy lacks."""

from __future__ import annotations

import numpy as np

from engine.ir.types import Array
from engine.ops.arrays import as_array

__all__ = ["erf"]

# Rational approximations of W. J. Cody, "Rational Chebyshev approximations for the error function",
# Mathematics of Computation 23 (1969), pages 631-637; good to about 1e-16 relative.
_SMALL_UP = (
    1.85777706184603153e-1,
    3.16112374387056560e0,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
_SMALL_DOWN = (
    1.0,
    2.36012909523441209e1,
    2.44024637934444173e2,
    1.28261652607737228e3,
    2.84423683343917062e3,
)
_MIDDLE_UP = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e0,
    6.61191906371416295e1,
    2.98635138197400131e2,
    8.81952221241769090e2,
    1.71204761263407058e3,
    2.05107837782607147e3,
    1.23033935479799725e3,
)
_MIDDLE_DOWN = (
    1.0,
    1.57449261107098347e1,
    1.17693950891312499e2,
    5.37181101862009858e2,
    1.62138957456669019e3,
    3.29079923573345963e3,
    4.36261909014324716e3,
    3.43936767414372164e3,
    1.23033935480374942e3,
)
_LARGE_UP = (
    1.63153871373020978e-2,
    3.05326634961232344e-1,
    3.60344899949804439e-1,
    1.25781726111229246e-1,
    1.60837851487422766e-2,
    6.58749161529837803e-4,
)
_LARGE_DOWN = (
    1.0,
    2.56852019228982242e0,
    1.87295284992346725e0,
    5.27905102951428412e-1,
    6.05183413124413191e-2,
    2.33520497626869185e-3,
)


def _ratio(x: Array, up: tuple[float, ...], down: tuple[float, ...]) -> Array:
    above, below = np.full_like(x, up[0]), np.full_like(x, down[0])
    for a, b in zip(up[1:], down[1:], strict=True):
        above = above * x + a
        below = below * x + b
    result: Array = above / below
    return result


def erf(x: Array) -> Array:
    """The error function, in the type of ``x`` (computed in float64)."""
    values = as_array(x, np.float64)
    size = np.minimum(np.abs(values), 6.0)  # erf(6) rounds to 1; NaN stays NaN
    flat = size.reshape(-1)
    result = np.empty_like(flat)
    small, large = flat <= 0.46875, flat > 4.0
    middle = ~(small | large)
    part = flat[small]
    result[small] = part * _ratio(part * part, _SMALL_UP, _SMALL_DOWN)
    part = flat[middle]
    result[middle] = 1.0 - np.exp(-part * part) * _ratio(part, _MIDDLE_UP, _MIDDLE_DOWN)
    part = flat[large]
    inverse = 1.0 / (part * part)
    tail = (1.0 / np.sqrt(np.pi) - inverse * _ratio(inverse, _LARGE_UP, _LARGE_DOWN)) / part
    result[large] = 1.0 - np.exp(-part * part) * tail
    signed: Array = np.copysign(result.reshape(values.shape), values).astype(as_array(x).dtype)
    return signed
