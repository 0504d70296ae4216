"""Reductions over axes: sums, products, means, extremes, norms and logarithms of sums.

Each is one function of the data and the axes, registered twice: the axes were an attribute first
and became an input later. Floats of 16 bits and fewer are computed in float32. Over no element a
sum is 0, a product 1, a maximum the least value of its type, a minimum the greatest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.ir.types import Array, Operand, Shape, TensorType
from engine.ops.arrays import as_array
from engine.ops.contents import element_count, integers, known_integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import normalize_axes, unknown_shape

__all__ = ["REDUCTIONS", "ReduceOverAttribute", "ReduceOverInput"]

Axes = tuple[int, ...]
Reduction = Callable[[Array, Axes], Any]


def _sum(data: Array, axes: Axes) -> Any:
    return np.add.reduce(data, axis=axes, keepdims=True, dtype=data.dtype)


def _product(data: Array, axes: Axes) -> Any:
    return np.multiply.reduce(data, axis=axes, keepdims=True, dtype=data.dtype)


def _mean(data: Array, axes: Axes) -> Any:
    count = 1
    for axis in axes:
        count *= data.shape[axis]
    if data.dtype.kind in "iu":
        wide = np.int64 if data.dtype.kind == "i" else np.uint64
        total = np.add.reduce(data, axis=axes, keepdims=True, dtype=wide)
        return np.sign(total) * (np.abs(total) // max(count, 1))
    with np.errstate(invalid="ignore"):
        return np.divide(_sum(data, axes), data.dtype.type(count))


def _least(dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "b":
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def _greatest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max if dtype.kind in "iu" else np.inf


def _maximum(data: Array, axes: Axes) -> Any:
    return np.maximum.reduce(data, axis=axes, keepdims=True, initial=_least(data.dtype))


def _minimum(data: Array, axes: Axes) -> Any:
    return np.minimum.reduce(data, axis=axes, keepdims=True, initial=_greatest(data.dtype))


def _l1(data: Array, axes: Axes) -> Any:
    return _sum(np.abs(data), axes)


def _sum_square(data: Array, axes: Axes) -> Any:
    return _sum(np.square(data), axes)


def _l2(data: Array, axes: Axes) -> Any:
    return np.sqrt(_sum_square(_real(data), axes))


def _log_sum(data: Array, axes: Axes) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(_sum(_real(data), axes))


def _log_sum_exp(data: Array, axes: Axes) -> Any:
    values = _real(data)
    peak = _maximum(values, axes)
    peak = np.where(np.isfinite(peak), peak, values.dtype.type(0))
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(_sum(np.exp(values - peak), axes)) + peak


def _real(data: Array) -> Array:
    return data.astype(np.float64) if data.dtype.kind in "iu" else data


#: Name to (reduction, opset from which the axes are an input).
REDUCTIONS: dict[str, tuple[Reduction, int]] = {
    "ReduceL1": (_l1, 18),
    "ReduceL2": (_l2, 18),
    "ReduceLogSum": (_log_sum, 18),
    "ReduceLogSumExp": (_log_sum_exp, 18),
    "ReduceMax": (_maximum, 18),
    "ReduceMean": (_mean, 18),
    "ReduceMin": (_minimum, 18),
    "ReduceProd": (_product, 18),
    "ReduceSum": (_sum, 13),
    "ReduceSumSquare": (_sum_square, 18),
}


def _reduced_shape(shape: Shape | None, axes: Sequence[int], *, keep: bool) -> Shape | None:
    if shape is None:
        return None
    places = normalize_axes(axes, len(shape))
    if keep:
        return tuple(1 if axis in places else dim for axis, dim in enumerate(shape))
    return tuple(dim for axis, dim in enumerate(shape) if axis not in places)


def _apply(reduction: Reduction, data: Array, axes: Sequence[int], *, keep: bool) -> Array:
    places = normalize_axes(axes, data.ndim)
    shape = integers(_reduced_shape(data.shape, places, keep=keep) or ())
    values = data if data.dtype == object else widened(data)
    with np.errstate(invalid="ignore", over="ignore"):
        return as_array(reduction(values, places)).astype(data.dtype, copy=False).reshape(shape)


@dataclass(frozen=True, slots=True)
class ReduceOverAttribute(Operator):
    """A reduction over the axes that an attribute names; over all of them when it is absent."""

    reduction: ClassVar[Reduction]
    axes: tuple[int, ...] | None = None
    keepdims: int = 1

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The axes reduced to 1, or dropped."""
        given = tensor(data, "data")
        if given.shape is None:
            is_scalar = not self.axes and not self.keepdims
            return [TensorType(given.dtype, () if is_scalar else None)]
        axes = self.axes or range(len(given.shape))
        dims = _reduced_shape(given.shape, axes, keep=bool(self.keepdims))
        return [TensorType(given.dtype, dims)]

    def meaning(self, data: Array, /) -> Array:
        """NumPy's reduction."""
        axes = self.axes or range(data.ndim)
        return _apply(type(self).reduction, data, axes, keep=bool(self.keepdims))


@dataclass(frozen=True, slots=True)
class ReduceOverInput(Operator):
    """A reduction over the axes that an input names.

    Without axes it goes over all of them, or over none when ``noop_with_empty_axes`` is set.
    """

    shape_inputs = (1,)
    reduction: ClassVar[Reduction]
    keepdims: int = 1
    noop_with_empty_axes: int = 0

    def infer(self, data: Operand, axes: Operand | None = None, /) -> list[TensorType]:
        """The axes reduced to 1, or dropped."""
        given = tensor(data, "data")
        if given.shape is None:
            return [given]
        named = [] if axes is None else known_integers(axes)
        if axes is not None and named is None:
            return [TensorType(given.dtype, self._unknown(axes, len(given.shape)))]
        places = self._places(named or [], len(given.shape))
        dims = _reduced_shape(given.shape, places, keep=bool(self.keepdims))
        return [TensorType(given.dtype, dims)]

    def meaning(self, data: Array, axes: Array | None = None, /) -> Array:
        """NumPy's reduction."""
        places = self._places([] if axes is None else integers(axes), data.ndim)
        return _apply(type(self).reduction, data, places, keep=bool(self.keepdims))

    def _places(self, named: Sequence[int], rank: int) -> Sequence[int]:
        return named if named or self.noop_with_empty_axes else range(rank)

    def _unknown(self, axes: Operand, rank: int) -> Shape | None:
        if self.keepdims:
            return unknown_shape(rank)
        count = element_count(axes)
        return unknown_shape(rank - count) if count else None


def _enter(name: str, reduction: Reduction, input_since: int) -> None:
    for parent, since in ((ReduceOverAttribute, 1), (ReduceOverInput, input_since)):
        body = {
            "__slots__": (),
            "__module__": __name__,
            "__doc__": f"{name} from opset {since} on.",
            "reduction": staticmethod(reduction),
            "symbolic": name in ("ReduceSum", "ReduceProd"),
        }
        register(name, since=since)(type(f"{name}{since}", (parent,), body))


for _name, (_reduction, _since) in REDUCTIONS.items():
    _enter(_name, _reduction, _since)
