"""Operators that change a tensor's shape and keep its elements in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.ir.sizes import floordiv, product, provably_equal
from engine.ir.types import Array, Dim, Operand, Shape, TensorType
from engine.ops.contents import element_count, integers, known_integers
from engine.ops.operator import Operator, register, tensor
from engine.ops.shapes import normalize_axes, unknown, unknown_shape

__all__ = ["Flatten", "Reshape", "Squeeze1", "Squeeze13", "Unsqueeze1", "Unsqueeze13"]


def reshaped(shape: Shape | None, target: Sequence[Dim], *, allow_zero: bool) -> Shape:
    """The shape Reshape gives: 0 copies a size unless ``allow_zero``, one -1 takes what is left.

    A symbolic target size is taken as it stands, although a run may make it 0.
    """
    dims: list[Dim] = []
    for axis, dim in enumerate(target):
        if dim == 0 and not allow_zero:
            if shape is not None and axis >= len(shape):
                raise ValueError(f"target {_text(target)} copies axis {axis} of {_text(shape)}")
            dims.append(unknown() if shape is None else shape[axis])
        else:
            dims.append(dim)
    free = [axis for axis, dim in enumerate(target) if dim == -1]
    if len(free) > 1 or any(isinstance(dim, int) and dim < -1 for dim in target):
        raise ValueError(f"target {_text(target)} must hold sizes >= 0 and at most one -1")
    if shape is None:
        return tuple(unknown() if axis in free else dim for axis, dim in enumerate(dims))
    elements = product(shape)
    if free:
        rest = product(dim for axis, dim in enumerate(dims) if axis not in free)
        if rest == 0:
            raise ValueError(f"-1 in target {_text(target)} is ambiguous beside a size of 0")
        dims[free[0]] = floordiv(elements, rest)
    if provably_equal(product(dims), elements) is False:
        raise ValueError(f"shape {_text(shape)} cannot become {_text(dims)}: {elements} elements")
    return tuple(dims)


def _text(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join(str(dim) for dim in shape) + "]"


@register("Reshape", since=5)
@dataclass(frozen=True, slots=True)
class Reshape(Operator):
    """The same elements in another shape; a 0 in it copies a size unless ``allowzero``."""

    symbolic = True
    shape_inputs = (1,)
    allowzero: int = 0

    def infer(self, data: Operand, shape: Operand, /) -> list[TensorType]:
        """The target shape with 0 and -1 resolved."""
        given, target = tensor(data, "data"), tensor(shape, "shape")
        if shape.sizes is None:
            count = element_count(shape)
            dims = None if count is None else unknown_shape(count)
            return [TensorType(given.dtype, dims)]
        if target.shape is not None and len(target.shape) != 1:
            raise ValueError(f"the target shape has rank {len(target.shape)}, expected 1")
        dims = reshaped(given.shape, shape.sizes, allow_zero=bool(self.allowzero))
        return [TensorType(given.dtype, dims)]

    def meaning(self, data: Array, shape: Array, /) -> Array:
        """NumPy's reshape."""
        dims = reshaped(data.shape, integers(shape), allow_zero=bool(self.allowzero))
        return data.reshape(integers(dims))


@register("Flatten", since=1)
@dataclass(frozen=True, slots=True)
class Flatten(Operator):
    """A matrix: the axes before ``axis`` are its rows, the others its columns."""

    symbolic = True
    axis: int = 1

    def infer(self, data: Operand, /) -> list[TensorType]:
        """Two sizes, each a product."""
        given = tensor(data, "input")
        if given.shape is None:
            return [TensorType(given.dtype, unknown_shape(2))]
        return [TensorType(given.dtype, self._shape(given.shape))]

    def meaning(self, data: Array, /) -> Array:
        """NumPy's reshape."""
        return data.reshape(integers(self._shape(data.shape)))

    def _shape(self, shape: Shape) -> Shape:
        if not -len(shape) <= self.axis <= len(shape):
            raise ValueError(f"axis is {self.axis}, expected at most the rank {len(shape)}")
        axis = self.axis + len(shape) if self.axis < 0 else self.axis
        return product(shape[:axis]), product(shape[axis:])


def _of_rank(shape: Shape | None, count: int | None, *, sign: int) -> Shape | None:
    if shape is None or count is None:
        return None
    return unknown_shape(len(shape) + sign * count)


def _squeezed(shape: Shape | None, axes: Sequence[int] | None) -> Shape | None:
    if shape is None:
        return None
    if axes is None:
        if not all(isinstance(dim, int) for dim in shape):
            return None
        return tuple(dim for dim in shape if dim != 1)
    dropped = normalize_axes(axes, len(shape))
    for axis in dropped:
        if provably_equal(shape[axis], 1) is False:
            raise ValueError(f"axis {axis} of {_text(shape)} has size {shape[axis]}, expected 1")
    return tuple(dim for axis, dim in enumerate(shape) if axis not in dropped)


def _squeeze(data: Array, axes: Sequence[int] | None) -> Array:
    dims = _squeezed(data.shape, axes)
    return data.reshape(integers(dims or ()))


@register("Squeeze", since=1)
@dataclass(frozen=True, slots=True)
class Squeeze1(Operator):
    """The tensor without the given axes of size 1, or without all of them."""

    symbolic = True
    axes: tuple[int, ...] | None = None

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The shape without these axes."""
        given = tensor(data, "data")
        return [TensorType(given.dtype, _squeezed(given.shape, self.axes))]

    def meaning(self, data: Array, /) -> Array:
        """NumPy's reshape."""
        return _squeeze(data, self.axes)


@register("Squeeze", since=13)
@dataclass(frozen=True, slots=True)
class Squeeze13(Operator):
    """The tensor without the axes of size 1 that an input names, or without all of them."""

    symbolic = True
    shape_inputs = (1,)

    def infer(self, data: Operand, axes: Operand | None = None, /) -> list[TensorType]:
        """The shape without these axes."""
        given = tensor(data, "data")
        if axes is None:
            return [TensorType(given.dtype, _squeezed(given.shape, None))]
        dropped = known_integers(axes)
        if dropped is None:
            return [TensorType(given.dtype, _of_rank(given.shape, element_count(axes), sign=-1))]
        return [TensorType(given.dtype, _squeezed(given.shape, dropped))]

    def meaning(self, data: Array, axes: Array | None = None, /) -> Array:
        """NumPy's reshape."""
        return _squeeze(data, None if axes is None else integers(axes))


def _unsqueezed(shape: Shape | None, axes: Sequence[int]) -> Shape | None:
    if shape is None:
        return None
    rank = len(shape) + len(axes)
    added = normalize_axes(axes, rank)
    rest = iter(shape)
    return tuple(1 if axis in added else next(rest) for axis in range(rank))


def _unsqueeze(data: Array, axes: Sequence[int]) -> Array:
    dims = _unsqueezed(data.shape, axes)
    return data.reshape(integers(dims or ()))


@register("Unsqueeze", since=1)
@dataclass(frozen=True, slots=True)
class Unsqueeze1(Operator):
    """The tensor with new axes of size 1 at the given places of the result."""

    symbolic = True
    axes: tuple[int, ...]

    def infer(self, data: Operand, /) -> list[TensorType]:
        """The shape with a 1 at each of these places."""
        given = tensor(data, "data")
        return [TensorType(given.dtype, _unsqueezed(given.shape, self.axes))]

    def meaning(self, data: Array, /) -> Array:
        """NumPy's reshape."""
        return _unsqueeze(data, self.axes)


@register("Unsqueeze", since=13)
@dataclass(frozen=True, slots=True)
class Unsqueeze13(Operator):
    """The tensor with new axes of size 1 at the places of the result that an input names."""

    symbolic = True
    shape_inputs = (1,)

    def infer(self, data: Operand, axes: Operand, /) -> list[TensorType]:
        """The shape with a 1 at each of these places."""
        given = tensor(data, "data")
        tensor(axes, "axes")
        added = known_integers(axes)
        if added is None:
            return [TensorType(given.dtype, _of_rank(given.shape, element_count(axes), sign=1))]
        return [TensorType(given.dtype, _unsqueezed(given.shape, added))]

    def meaning(self, data: Array, axes: Array, /) -> Array:
        """NumPy's reshape."""
        return _unsqueeze(data, integers(axes))
