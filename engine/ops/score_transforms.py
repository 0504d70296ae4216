"""What the classifiers and regressors of ai.onnx.ml share: transforms of scores, class labels.

The specification only names the transforms; their formulas are those of onnx's reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.softmax import peak
from engine.ops.strings import string_array

__all__ = [
    "ML",
    "classified",
    "label_type",
    "logistic",
    "pick_labels",
    "rows_of",
    "transform_scores",
]

#: The domain of classical machine learning.
ML = "ai.onnx.ml"

_NEAR_ZERO = 1e-7
_WINITZKI = 0.147


def logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return as_array(np.where(x < 0, small, 1.0) / (1 + small))


def softmax(x: Array) -> Array:
    """Exponentials divided by their sum, per row."""
    shifted = np.exp(x - peak(x, -1))
    return as_array(shifted / shifted.sum(axis=-1, keepdims=True))


def softmax_zero(x: Array) -> Array:
    """Softmax in which zeros stay (nearly) zero; a row of zeros only becomes 0.5 throughout."""
    top = peak(x, -1)
    shifted = np.where(np.abs(x) > _NEAR_ZERO, np.exp(x - top), x * np.exp(-top))
    total = shifted.sum(axis=-1, keepdims=True)
    return np.where(total == 0, 0.5, shifted / np.where(total == 0, 1, total))


def probit(x: Array) -> Array:
    """The quantile of the normal distribution, by Winitzki's approximation of the inverse erf."""
    y = 2 * x - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log((1 - y) * (1 + y))
        half = 2 / (np.pi * _WINITZKI) + log / 2
        inverse = np.sqrt(np.sqrt(half * half - log / _WINITZKI) - half)
        return as_array(np.where(np.isneginf(log), np.inf, np.sqrt(2) * inverse) * np.sign(y))


_TRANSFORMS: dict[str, Callable[[Array], Array]] = {
    "NONE": np.copy,
    "LOGISTIC": logistic,
    "SOFTMAX": softmax,
    "SOFTMAX_ZERO": softmax_zero,
    "PROBIT": probit,
}


def transform_scores(scores: Array, name: str) -> Array:
    """The scores (rows, classes) after a ``post_transform``; ValueError for an unknown one."""
    if name not in _TRANSFORMS:
        raise ValueError(f"post_transform is {name!r}, expected one of {', '.join(_TRANSFORMS)}")
    return _TRANSFORMS[name](scores)


def label_type(strings: Sequence[str]) -> DType:
    """The element type of class labels: strings if any are given, else int64."""
    return DType.STRING if strings else DType.INT64


def pick_labels(indices: Array, strings: Sequence[str], integers: Sequence[int]) -> Array:
    """The label of each class index; the index itself where no labels are given."""
    if strings:
        return string_array([strings[index] for index in indices.tolist()], indices.shape)
    return as_array(integers, np.int64)[indices] if integers else indices.astype(np.int64)


def rows_of(x: Array) -> Array:
    """Samples as float64 rows (N, F); a vector is one sample."""
    if x.ndim not in (1, 2):
        raise ValueError(f"the input has shape {x.shape}, expected (N, F)")
    return np.atleast_2d(x).astype(np.float64)


def count_of(x: Operand) -> Dim | None:
    """The number of samples in an input, None while its rank is unknown."""
    if x.shape is None:
        return None
    if len(x.shape) not in (1, 2):
        raise ValueError(f"the input is {x.type}, expected shape [N, F]")
    return x.shape[0] if len(x.shape) == 2 else 1


def classified(x: Operand, strings: Sequence[str], classes: int) -> list[Type]:
    """The types of a classifier's answer: labels (N) and scores (N, classes) in float32."""
    count = count_of(x)
    labels = TensorType(label_type(strings), None if count is None else (count,))
    return [labels, scored(x, classes)]


def scored(x: Operand, targets: int) -> TensorType:
    """The type of scores in float32: one row per sample."""
    count = count_of(x)
    return TensorType(DType.FLOAT32, None if count is None else (count, targets))
