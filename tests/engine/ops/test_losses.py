"""Losses agree with a peer, whatever the reduction, the weights and the ignored class."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType, Operand, TensorType
from engine.ops.losses import NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss
from tests.engine.ops.single_node import assert_agree

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, 2, -1])
@pytest.mark.parametrize("spatial", [(), (5,), (3, 2)])
def test_losses_agree_with_a_peer(reduction, weighted, ignored, spatial) -> None:
    scores = RANDOM.standard_normal((3, 4, *spatial)).astype(np.float32)
    target = RANDOM.integers(0, 4, (3, *spatial))
    target.reshape(-1)[0] = 2 if ignored is None else ignored
    weight = RANDOM.random(4).astype(np.float32) if weighted else None
    attributes = {"reduction": reduction} | ({} if ignored is None else {"ignore_index": ignored})
    assert_agree("NegativeLogLikelihoodLoss", [scores, target, weight], 13, **attributes)
    inputs = [scores, target, weight]
    assert_agree("SoftmaxCrossEntropyLoss", inputs, 13, outputs=2, **attributes)


def test_a_target_outside_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="classes"):
        NegativeLogLikelihoodLoss().meaning(np.zeros((1, 3)), np.array([3]))


def test_shapes_that_contradict_are_refused() -> None:
    scores = Operand(TensorType(DType.FLOAT32, (2, 3, 4)))
    target = Operand(TensorType(DType.INT64, (2, 5)))
    with pytest.raises(ValueError, match="axis of the target"):
        SoftmaxCrossEntropyLoss().infer(scores, target)
    with pytest.raises(ValueError, match="reduction"):
        SoftmaxCrossEntropyLoss(reduction="max").infer(scores, target)
