"""SVMClassifier and SVMRegressor (ai.onnx.ml): support vector machines in libsvm's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from engine.ir.types import Array, Operand, Type
from engine.ops.arrays import as_array
from engine.ops.linear_models import two_scores
from engine.ops.operator import Operator, register
from engine.ops.score_transforms import (
    ML,
    classified,
    logistic,
    pick_labels,
    rows_of,
    scored,
    transform_scores,
)

__all__ = ["SVMClassifier", "SVMRegressor", "couple"]

_LEAST_PROBABILITY = 1e-7


def kernel(rows: Array, vectors: Array, name: str, parameters: Sequence[float]) -> Array:
    """The kernel of every row with every vector: (N, F) and (V, F) to (N, V)."""
    gamma, offset, degree = (*parameters, 0.0, 0.0, 0.0)[:3]
    if name == "RBF":
        squares = (rows**2).sum(1)[:, None] + (vectors**2).sum(1) - 2 * rows @ vectors.T
        return as_array(np.exp(-gamma * np.maximum(squares, 0)))
    products = rows @ vectors.T
    if name == "LINEAR":
        return as_array(products)
    if name == "POLY":
        return as_array((gamma * products + offset) ** int(degree))
    if name == "SIGMOID":
        return as_array(np.tanh(gamma * products + offset))
    raise ValueError(f"kernel_type is {name!r}, expected LINEAR, POLY, RBF or SIGMOID")


def floats(values: Sequence[float]) -> Array:
    """Attribute values, which are float32, as float64."""
    return np.array(values, np.float32).astype(np.float64)


@register("SVMRegressor", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class SVMRegressor(Operator):
    """A weighted sum of kernels: (N, F) to (N, 1); with ``one_class`` only its sign, 1 or -1."""

    coefficients: tuple[float, ...] = ()
    kernel_params: tuple[float, ...] = ()
    kernel_type: str = "LINEAR"
    n_supports: int = 0
    one_class: int = 0
    post_transform: str = "NONE"
    rho: tuple[float, ...] = ()
    support_vectors: tuple[float, ...] = ()

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [scored(x, 1)]

    def meaning(self, x: Array, /) -> Array:
        rows, weights = rows_of(x), floats(self.coefficients)
        if self.n_supports > 0:
            vectors = floats(self.support_vectors).reshape(self.n_supports, -1)
            values = kernel(rows, vectors, self.kernel_type, self.kernel_params)
        else:
            values = rows
        score = (values @ weights + floats(self.rho[:1] or (0.0,)))[:, None]
        if self.one_class:
            return np.where(score > 0, 1, -1).astype(np.float32)
        return transform_scores(score, self.post_transform).astype(np.float32)


@register("SVMClassifier", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class SVMClassifier(Operator):
    """One against one with votes, or (without support vectors) one linear score per class.

    The scores are probabilities of the classes when ``prob_a`` is given, else the decisions of all
    pairs, in which two classes stand as -s and s.
    """

    classlabels_ints: tuple[int, ...] = ()
    classlabels_strings: tuple[str, ...] = ()
    coefficients: tuple[float, ...] = ()
    kernel_params: tuple[float, ...] = ()
    kernel_type: str = "LINEAR"
    post_transform: str = "NONE"
    prob_a: tuple[float, ...] = ()
    prob_b: tuple[float, ...] = ()
    rho: tuple[float, ...] = ()
    support_vectors: tuple[float, ...] = ()
    vectors_per_class: tuple[int, ...] = ()

    @property
    def _classes(self) -> int:
        return max(len(self.classlabels_ints), len(self.classlabels_strings), 1)

    @property
    def _pairwise(self) -> bool:
        return sum(self.vectors_per_class) > 0

    def infer(self, x: Operand, /) -> Sequence[Type]:
        classes = self._classes
        columns = classes
        if self._pairwise and not self.prob_a:
            columns = max(classes * (classes - 1) // 2, 1)
            if columns == 1 and classes == 2:
                columns = 2
        return classified(x, self.classlabels_strings, columns)

    def meaning(self, x: Array, /) -> tuple[Array, Array]:
        rows = rows_of(x)
        if not self._pairwise:
            return self._linear(rows)
        decisions = self._decisions(rows)
        chosen = np.argmax(self._votes(decisions), axis=1)
        if self.prob_a:
            scores = transform_scores(self._probabilities(decisions), self.post_transform)
        elif decisions.shape[1] == 1:
            scores = two_scores(decisions, self.post_transform, complement=0.0)
        else:
            scores = transform_scores(decisions, self.post_transform)
        labels = pick_labels(chosen, self.classlabels_strings, self.classlabels_ints)
        return labels, scores.astype(np.float32)

    def _linear(self, rows: Array) -> tuple[Array, Array]:
        weights = floats(self.coefficients).reshape(self._classes, -1)
        raw = rows @ weights.T + floats(self.rho[:1] or (0.0,))
        scores = transform_scores(raw, self.post_transform).astype(np.float32)
        if self._classes > 1:
            chosen = np.argmax(raw, axis=1)
            return pick_labels(chosen, self.classlabels_strings, self.classlabels_ints), scores
        positive = (raw[:, 0] > 0).astype(np.int64)
        strings = ("", *self.classlabels_strings) if self.classlabels_strings else ()
        return pick_labels(positive, strings, (0, *(self.classlabels_ints or (1,)))), scores

    def _decisions(self, rows: Array) -> Array:
        """The decision of every pair of classes i < j: (N, pairs); positive is for i."""
        counts = self.vectors_per_class
        if len(counts) != self._classes:
            raise ValueError(f"{len(counts)} vectors_per_class, expected {self._classes}")
        total = sum(counts)
        vectors = floats(self.support_vectors).reshape(total, -1)
        weights = floats(self.coefficients).reshape(-1, total)
        values = kernel(rows, vectors, self.kernel_type, self.kernel_params)
        ends = np.cumsum(counts)
        parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        rho, columns = floats(self.rho), []
        for number, (i, j) in enumerate(combinations(range(self._classes), 2)):
            first = values[:, parts[i]] @ weights[j - 1, parts[i]]
            second = values[:, parts[j]] @ weights[i, parts[j]]
            columns.append(first + second + rho[number])
        return np.stack(columns, axis=1)

    def _votes(self, decisions: Array) -> Array:
        votes = np.zeros((len(decisions), self._classes))
        for number, (i, j) in enumerate(combinations(range(self._classes), 2)):
            votes[:, i] += decisions[:, number] > 0
            votes[:, j] += decisions[:, number] <= 0
        return votes

    def _probabilities(self, decisions: Array) -> Array:
        """Probabilities of the classes from Platt's sigmoid of each pair: (N, classes)."""
        pairs = logistic(-(decisions * floats(self.prob_a) + floats(self.prob_b)))
        pairs = np.clip(pairs, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        matrix = np.zeros((len(pairs), self._classes, self._classes))
        for number, (i, j) in enumerate(combinations(range(self._classes), 2)):
            matrix[:, i, j], matrix[:, j, i] = pairs[:, number], 1 - pairs[:, number]
        return np.array([couple(item) for item in matrix]).reshape(len(pairs), self._classes)


def couple(pairs: Array) -> Array:
    """Class probabilities (K) from pairwise ones (K, K).

    The second method of Wu, Lin and Weng, "Probability estimates for multi-class classification by
    pairwise coupling" (2004), with the stopping rule of libsvm.
    """
    size = len(pairs)
    q = -pairs.T * pairs
    np.fill_diagonal(q, (pairs.T**2).sum(axis=1))
    result = np.full(size, 1 / size)
    for _ in range(max(100, size)):
        products = q @ result
        total = result @ products
        if np.abs(products - total).max() < 0.005 / size:
            break
        for t in range(size):
            step = (total - products[t]) / q[t, t]
            result[t] += step
            total = (total + step * (step * q[t, t] + 2 * products[t])) / (1 + step) ** 2
            products = (products + step * q[t]) / (1 + step)
            result /= 1 + step
    return result
