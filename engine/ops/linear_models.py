"""LinearClassifier and LinearRegressor (ai.onnx.ml)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, Type
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register
from engine.ops.score_transforms import (
    ML,
    classified,
    pick_labels,
    rows_of,
    scored,
    transform_scores,
)

__all__ = ["LinearClassifier", "LinearRegressor"]


def linear_scores(
    x: Array, coefficients: Sequence[float], intercepts: Sequence[float], targets: int
) -> Array:
    """Rows times W.T plus intercepts, with W (targets, F) given row by row; float64."""
    weights = np.array(coefficients, np.float32).astype(np.float64)
    rows = rows_of(x)
    if weights.size != targets * rows.shape[1]:
        raise ValueError(
            f"{weights.size} coefficients for {targets} targets, expected {rows.shape[1]} each"
        )
    if intercepts and len(intercepts) != targets:
        raise ValueError(f"{len(intercepts)} intercepts, expected {targets}")
    offset = np.array(intercepts or 0, np.float32).astype(np.float64)
    return as_array(rows @ weights.reshape(targets, -1).T + offset)


@register("LinearRegressor", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class LinearRegressor(Operator):
    """Linear functions of the features: (N, F) to (N, targets) in float32."""

    coefficients: tuple[float, ...] = ()
    intercepts: tuple[float, ...] = ()
    post_transform: str = "NONE"
    targets: int = 1

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [scored(x, self.targets)]

    def meaning(self, x: Array, /) -> Array:
        scores = linear_scores(x, self.coefficients, self.intercepts, self.targets)
        return transform_scores(scores, self.post_transform).astype(np.float32)


@register("LinearClassifier", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class LinearClassifier(Operator):
    """The class with the greatest linear score, and the scores (N, classes) in float32.

    One score s for two classes means the second class where s > 0; the scores are then 1 - s and s,
    or what the transform makes of -s and s.
    """

    coefficients: tuple[float, ...]
    classlabels_ints: tuple[int, ...] = ()
    classlabels_strings: tuple[str, ...] = ()
    intercepts: tuple[float, ...] = ()
    multi_class: int = 0
    post_transform: str = "NONE"

    @property
    def _classes(self) -> int:
        return max(len(self.classlabels_ints), len(self.classlabels_strings))

    def _targets(self, features: int) -> int:
        return max(len(self.coefficients) // max(features, 1), 1)

    def infer(self, x: Operand, /) -> Sequence[Type]:
        features = None if x.shape is None else x.shape[-1] if x.shape else 1
        columns = self._classes
        if columns < 2:
            columns = self._targets(features) if isinstance(features, int) else 1
        return classified(x, self.classlabels_strings, columns)

    def meaning(self, x: Array, /) -> tuple[Array, Array]:
        targets = self._targets(x.shape[-1])
        raw = linear_scores(x, self.coefficients, self.intercepts, targets)
        if targets > 1:
            scores = transform_scores(raw, self.post_transform)
            chosen = np.argmax(raw, axis=1)
        elif self._classes == 2:
            scores = two_scores(raw, self.post_transform, complement=1.0)
            chosen = (raw[:, 0] > 0).astype(np.int64)
        else:
            scores = transform_scores(raw, self.post_transform)
            return self._single(raw[:, 0] > 0), scores.astype(np.float32)
        labels = pick_labels(chosen, self.classlabels_strings, self.classlabels_ints)
        return labels, scores.astype(np.float32)

    def _single(self, positive: Array) -> Array:
        """The only label where the score is positive, else "" or 0."""
        strings = ("", *self.classlabels_strings) if self.classlabels_strings else ()
        return pick_labels(
            positive.astype(np.int64), strings, (0, *(self.classlabels_ints or (1,)))
        )


def two_scores(score: Array, transform: str, *, complement: float) -> Array:
    """Scores of both classes from the one (N, 1) of the second class.

    Without a transform they are complement - s and s (ONNX Runtime's rule).
    """
    if transform in ("NONE", "PROBIT"):
        return transform_scores(np.hstack([complement - score, score]), transform)
    return transform_scores(np.hstack([-score, score]), transform)
