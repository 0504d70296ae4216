"""Optimisers make a convex function smaller, and treat several tensors independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.ir.types import DType, Operand, TensorType
from engine.ops import find

CASES = {
    "Adagrad": (1, {}),
    "Adam": (2, {}),
    "Momentum": (
        1,
        {"alpha": 0.9, "beta": 1.0, "mode": "nesterov", "norm_coefficient": 0.0},
    ),
}


def op(name: str, **attributes: Any) -> Any:
    return find("ai.onnx.preview.training", name, 1).from_attributes(attributes)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_steps_approach_the_minimum(name: str, dtype: Any) -> None:
    states, attributes = CASES[name]
    operator = op(name, **attributes)
    x = np.array([3.0, -2.0], dtype)
    state = [np.zeros(2, dtype)] * states
    rate = np.array(0.5 if name != "Momentum" else 0.05, np.float64)
    for step in range(300):
        x, *state = operator.meaning(rate, np.array(step), x, 2 * x, *state)
    assert x.dtype == dtype
    assert np.abs(x).max() < 0.1


@pytest.mark.parametrize("name", CASES)
def test_two_tensors_together_are_each_alone(name: str) -> None:
    states, attributes = CASES[name]
    operator = op(name, **attributes)
    rng = np.random.default_rng(0)
    one, two = (
        [np.abs(rng.standard_normal(shape)) for _ in range(states + 2)] for shape in ((2,), (3, 4))
    )
    rate, step = np.array([0.1]), np.array(3)
    both = operator.meaning(
        rate, step, *[item for pair in zip(one, two, strict=True) for item in pair]
    )
    for place, group in enumerate((one, two)):
        for found, expected in zip(
            both[place::2], operator.meaning(rate, step, *group), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_the_types_are_those_of_tensors_and_states() -> None:
    kinds = [TensorType(DType.FLOAT32, (n,)) for n in (2, 3, 2, 3, 2, 3)]
    scalar = Operand(TensorType(DType.FLOAT32, ()))
    found = op("Adagrad").infer(scalar, scalar, *map(Operand, kinds))
    assert found == [kinds[0], kinds[1], kinds[4], kinds[5]]


def test_a_wrong_number_of_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        op("Adagrad").meaning(np.array(1.0), np.array(0), np.zeros(2), np.zeros(2))


def test_an_unknown_mode_is_refused() -> None:
    operator = op("Momentum", alpha=0.9, beta=1.0, mode="heavy", norm_coefficient=0.0)
    with pytest.raises(ValueError, match="heavy"):
        operator.meaning(np.array(1.0), np.array(0), *[np.zeros(2)] * 3)
