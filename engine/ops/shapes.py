"""Shape rules that many operators share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from engine.ir.sizes import maximum, provably_equal
from engine.ir.types import Dim, Operand, Shape, TensorType, UnknownSize

__all__ = [
    "agree",
    "broadcast",
    "normalize_axes",
    "normalize_axis",
    "same_as",
    "unknown",
    "unknown_shape",
]


def broadcast(*shapes: Shape | None) -> Shape | None:
    """The shape of a NumPy broadcast; None when a rank is unknown; ValueError when impossible.

    Two different symbols are taken as "equal or one of them 1", hence their maximum.
    """
    if any(shape is None for shape in shapes):
        return None
    known: Sequence[Shape] = [shape for shape in shapes if shape is not None]
    rank = max((len(shape) for shape in known), default=0)
    result: list[Dim] = [1] * rank
    for shape in known:
        for axis, dim in enumerate(shape, rank - len(shape)):
            result[axis] = _broadcast_dim(result[axis], dim, shapes)
    return tuple(result)


def _broadcast_dim(left: Dim, right: Dim, shapes: Sequence[Shape | None]) -> Dim:
    if left == right or right == 1:
        return left
    if left == 1:
        return right
    if isinstance(left, int) and isinstance(right, int):
        text = ", ".join(str([str(d) for d in shape or ()]) for shape in shapes)
        raise ValueError(f"shapes {text} do not broadcast: {left} meets {right}")
    if isinstance(left, int):
        return left
    if isinstance(right, int):
        return right
    return left if provably_equal(left, right) else maximum(left, right)


def normalize_axis(axis: int, rank: int, *, name: str = "axis") -> int:
    """The axis as an index in [0, rank); ValueError when it lies outside [-rank, rank)."""
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"{name} is {axis}, expected a value in [{-rank}, {rank - 1}]")
    return axis + rank if axis < 0 else axis


def same_as(operand: Operand | None) -> list[TensorType]:
    """One output of the type of the first input."""
    if operand is None:
        raise ValueError("a required input is absent")
    return [operand.tensor]


def normalize_axes(axes: Iterable[int], rank: int, *, name: str = "axes") -> tuple[int, ...]:
    """The axes as indices in [0, rank), in order; ValueError for one outside or given twice."""
    found = tuple(normalize_axis(int(axis), rank, name=name) for axis in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"{name} are {list(found)}, expected no axis twice")
    return found


def agree(left: Dim, right: Dim, *, name: str = "size") -> Dim:
    """The one size that two equal sizes have, the known one if any; ValueError when they differ."""
    if provably_equal(left, right) is False:
        raise ValueError(f"{name} is {left} in one input and {right} in another")
    return right if isinstance(right, int) else left


def unknown(bound: Dim | None = None) -> Dim:
    """In an operator's answer: a size that only a run tells, at most ``bound``."""
    return cast(Dim, UnknownSize(bound))


def unknown_shape(rank: int) -> Shape:
    """A shape of known rank with sizes that only a run tells."""
    return tuple(unknown() for _ in range(rank))
