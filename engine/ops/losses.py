"""Losses of classifiers: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import agree
from engine.ops.softmax import log_softmax

__all__ = ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"]

_REDUCTIONS = ("none", "sum", "mean")


def _likelihood_loss(
    log_probability: Array,
    target: Array,
    weight: Array | None,
    *,
    reduction: str,
    ignored: int | None,
) -> Array:
    """Minus the weighted log probability [N, C, ...] of each target [N, ...], reduced.

    A mean is weighted; targets equal to ``ignored`` have weight 0.
    """
    classes = log_probability.shape[1]
    counted = np.ones(target.shape, bool) if ignored is None else target != ignored
    index = np.where(counted, target, 0)
    if index.size and not ((index >= 0) & (index < classes)).all():
        raise ValueError(f"a target lies outside the {classes} classes")
    chosen = np.take_along_axis(log_probability, index[:, None], axis=1)[:, 0]
    factors = counted.astype(log_probability.dtype)
    if weight is not None:
        factors = np.where(counted, weight[index], 0).astype(log_probability.dtype)
    losses = as_array(np.where(counted, -chosen * factors, 0))
    if reduction == "none":
        return losses
    total = as_array(np.sum(losses, dtype=losses.dtype))
    with np.errstate(invalid="ignore"):
        return total if reduction == "sum" else as_array(total / np.sum(factors))


def _loss_type(scores: Operand, target: Operand, reduction: str) -> TensorType:
    kind, goal = tensor(scores, "input"), tensor(target, "target")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(_REDUCTIONS)}")
    if kind.shape is not None and goal.shape is not None:
        if len(kind.shape) != len(goal.shape) + 1:
            raise ValueError(f"the input has rank {len(kind.shape)}, the target {len(goal.shape)}")
        for left, right in zip((kind.shape[0], *kind.shape[2:]), goal.shape, strict=True):
            agree(left, right, name="an axis of the target")
    return TensorType(kind.dtype, goal.shape if reduction == "none" else ())


@register("NegativeLogLikelihoodLoss", since=12)
@dataclass(frozen=True, slots=True)
class NegativeLogLikelihoodLoss(Operator):
    """Minus the log probability [N, C, ...] of each target [N, ...], weighted per class."""

    ignore_index: int | None = None
    reduction: str = "mean"

    def infer(
        self, scores: Operand, target: Operand, weight: Operand | None = None, /
    ) -> list[TensorType]:
        """A scalar, or the shape of the target without reduction."""
        return [_loss_type(scores, target, self.reduction)]

    def meaning(self, scores: Array, target: Array, weight: Array | None = None, /) -> Array:
        """Gather, weigh, reduce."""
        loss = _likelihood_loss(
            widened(scores),
            target,
            None if weight is None else widened(weight),
            reduction=self.reduction,
            ignored=self.ignore_index,
        )
        return rounded(loss, scores)


@register("SoftmaxCrossEntropyLoss", since=12)
@dataclass(frozen=True, slots=True)
class SoftmaxCrossEntropyLoss(Operator):
    """The loss of the logarithm of the softmax of scores [N, C, ...], which is also an output."""

    ignore_index: int | None = None
    reduction: str = "mean"

    def infer(
        self, scores: Operand, labels: Operand, weights: Operand | None = None, /
    ) -> list[TensorType]:
        """A scalar, or the shape of the labels without reduction; the shape of the scores."""
        return [_loss_type(scores, labels, self.reduction), tensor(scores, "scores")]

    def meaning(
        self, scores: Array, labels: Array, weights: Array | None = None, /
    ) -> tuple[Array, Array]:
        """LogSoftmax over axis 1, then NegativeLogLikelihoodLoss."""
        logarithms = log_softmax(widened(scores), 1)
        loss = _likelihood_loss(
            logarithms,
            labels,
            None if weights is None else widened(weights),
            reduction=self.reduction,
            ignored=self.ignore_index,
        )
        return rounded(loss, scores), rounded(logarithms, scores)
