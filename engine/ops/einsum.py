"""Einsum: sums of products over named axes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Dim, Operand, Shape, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import widened
from engine.ops.shapes import broadcast, unknown_shape

__all__ = ["Einsum", "parse_equation"]

ELLIPSIS = "..."
Term = tuple[str, ...]


def parse_equation(equation: str) -> tuple[list[Term], Term]:
    """The labels of every operand and of the output; an ellipsis stays one label.

    Without an arrow the output has the ellipsis, then the labels that occur once, in ASCII order.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = [_labels(part, equation) for part in left.split(",")]
    if arrow:
        output = _labels(right, equation)
        known = {label for term in terms for label in term}
        wrong = [label for label in output if label not in known or output.count(label) > 1]
        if wrong:
            raise ValueError(
                f"equation {equation!r}: {wrong[0]!r} in the output is no single label"
            )
        return terms, output
    counts = Counter(label for term in terms for label in term)
    once = sorted(label for label, count in counts.items() if count == 1 and label != ELLIPSIS)
    return terms, ((ELLIPSIS,) if ELLIPSIS in counts else ()) + tuple(once)


def _labels(part: str, equation: str) -> Term:
    head, dots, tail = part.partition(ELLIPSIS)
    if not all(item.isascii() and item.isalpha() for item in head + tail):
        raise ValueError(f"equation {equation!r}: {part!r} holds something else than letters")
    return (*head, *([ELLIPSIS] if dots else []), *tail)


def _spread(term: Term, rank: int) -> list[str]:
    """One label per axis; the axes of an ellipsis are labelled from the back: "-2", "-1"."""
    hidden = rank - (len(term) - (ELLIPSIS in term))
    if hidden < 0 or (hidden and ELLIPSIS not in term):
        raise ValueError(f"an operand has rank {rank}, expected {len(term)} axes {''.join(term)}")
    dots = [str(axis - hidden) for axis in range(hidden)]
    return [label for item in term for label in (dots if item == ELLIPSIS else [item])]


@register("Einsum", since=12)
@dataclass(frozen=True, slots=True)
class Einsum(Operator):
    """The sum of products that ``equation`` describes, such as "bij,bjk->bik"."""

    equation: str

    def infer(self, *inputs: Operand) -> list[TensorType]:
        """One size per output label; operands that share a label broadcast along it."""
        types = [tensor(item, f"Inputs[{place}]") for place, item in enumerate(inputs)]
        dtype = types[0].dtype if types else tensor(None, "Inputs[0]").dtype
        shapes = [item.shape for item in types]
        if any(shape is None for shape in shapes):
            output = parse_equation(self.equation)[1]
            dims = None if ELLIPSIS in output else unknown_shape(len(output))
            return [TensorType(dtype, dims)]
        known = [shape for shape in shapes if shape is not None]
        labels, output_labels = self._axes([len(shape) for shape in known])
        sizes = _sizes(labels, known)
        return [TensorType(dtype, tuple(sizes[label] for label in output_labels))]

    def meaning(self, *inputs: Array) -> Array:
        """One matrix product for two operands, NumPy's einsum for other forms."""
        labels, output = self._axes([item.ndim for item in inputs])
        if _is_product(labels, inputs):
            values = [widened(item) for item in inputs]
            return _product(values, labels, output).astype(inputs[0].dtype, copy=False)
        names = {label: place for place, label in enumerate(sorted({x for t in labels for x in t}))}
        arguments: list[object] = []
        for item, term in zip(inputs, labels, strict=True):
            arguments += [widened(item), [names[label] for label in term]]
        arguments.append([names[label] for label in output])
        result = np.einsum(*arguments, optimize=len(inputs) > 1)  # type: ignore[call-overload]
        return as_array(result).astype(inputs[0].dtype, copy=False)

    def _axes(self, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
        terms, output = parse_equation(self.equation)
        if len(terms) != len(ranks):
            raise ValueError(f"equation {self.equation!r} has {len(terms)} terms, not {len(ranks)}")
        labels = [_spread(term, rank) for term, rank in zip(terms, ranks, strict=True)]
        dots = {label for term in labels for label in term if label.startswith("-")}
        hidden = sorted(dots, key=int)
        spread = [x for item in output for x in (hidden if item == ELLIPSIS else [item])]
        return labels, spread


def _sizes(labels: Sequence[Sequence[str]], shapes: Sequence[Shape]) -> dict[str, Dim]:
    sizes: dict[str, Dim] = {}
    for term, shape in zip(labels, shapes, strict=True):
        for label, dim in zip(term, shape, strict=True):
            joined = broadcast((sizes.get(label, 1),), (dim,)) or (dim,)
            sizes[label] = joined[0]
    return sizes


def _is_product(labels: Sequence[Sequence[str]], inputs: Sequence[Array]) -> bool:
    """Whether two operands meet without diagonals and broadcasting."""
    if len(inputs) != 2 or any(len(set(term)) < len(term) for term in labels):
        return False
    left, right = (dict(zip(t, x.shape, strict=True)) for t, x in zip(labels, inputs, strict=True))
    return all(left[label] == right[label] for label in left.keys() & right.keys())


def _product(inputs: Sequence[Array], labels: Sequence[list[str]], output: list[str]) -> Array:
    """A batched matrix product: shared labels are the batch when kept, else the inner axis."""
    (left, right), (first, second) = inputs, labels
    left, first = _sum_alone(left, first, {*second, *output})
    right, second = _sum_alone(right, second, {*first, *output})
    batch = [label for label in first if label in second and label in output]
    inner = [label for label in first if label in second and label not in output]
    rows = [label for label in first if label not in second]
    columns = [label for label in second if label not in first]
    sizes = dict(zip(first + second, left.shape + right.shape, strict=True))

    def ordered(data: Array, term: list[str], *groups: list[str]) -> Array:
        moved = data.transpose([term.index(label) for group in groups for label in group])
        head = [sizes[label] for label in groups[0]]
        return moved.reshape(*head, *(math.prod(sizes[x] for x in group) for group in groups[1:]))

    a = ordered(left, first, batch, rows, inner)
    b = ordered(right, second, batch, inner, columns)
    result = as_array(np.matmul(a, b))
    order = batch + rows + columns
    spread = result.reshape([sizes[label] for label in order])
    return spread.transpose([order.index(label) for label in output])


def _sum_alone(data: Array, term: list[str], wanted: set[str]) -> tuple[Array, list[str]]:
    """The operand summed over the labels that occur nowhere else."""
    alone = tuple(axis for axis, label in enumerate(term) if label not in wanted)
    summed = np.add.reduce(data, axis=alone, dtype=data.dtype) if alone else data
    return as_array(summed), [label for label in term if label in wanted]
