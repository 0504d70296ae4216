"""Random tensors follow their distributions; a seed makes them the same again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.ops import find
from engine.ops.dtype_codes import dtype_of_code
from tests.engine.ops.single_node import ours

HALF = np.full((4, 1000), 0.5, np.float32)
CASES: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [
    ("RandomNormal", [], {"shape": (4, 1000), "mean": 3.0, "scale": 2.0}),
    ("RandomUniform", [], {"shape": (4, 1000), "low": -1.0, "high": 3.0}),
    ("RandomNormalLike", [HALF], {}),
    ("RandomUniformLike", [HALF], {}),
    ("Bernoulli", [HALF], {}),
    ("Multinomial", [np.zeros((4, 2), np.float32)], {"sample_size": 1000}),
]


@pytest.mark.parametrize(("name", "inputs", "attributes"), CASES, ids=lambda item: str(item)[:16])
def test_a_seed_repeats_and_none_differs(
    name: str, inputs: list[np.ndarray], attributes: dict[str, Any]
) -> None:
    once, again = (ours(name, inputs, 22, seed=1.5, **attributes)[0] for _ in range(2))
    assert once.tolist() == again.tolist()
    assert once.shape == (4, 1000)
    fresh = [ours(name, inputs, 22, **attributes)[0].tolist() for _ in range(2)]
    assert fresh[0] != fresh[1]
    assert not find("", name, 22).deterministic


@pytest.mark.parametrize(
    ("name", "inputs", "attributes", "mean", "deviation"),
    [
        (*CASES[0], 3.0, 2.0),
        (*CASES[1], 1.0, 4 / 12**0.5),
        (*CASES[2], 0.0, 1.0),
        (*CASES[3], 0.5, 1 / 12**0.5),
        (*CASES[4], 0.5, 0.5),
        (*CASES[5], 0.5, 0.5),
    ],
    ids=lambda item: str(item)[:16],
)
def test_mean_and_deviation_are_those_of_the_distribution(
    name: str, inputs: list[np.ndarray], attributes: dict[str, Any], mean: float, deviation: float
) -> None:
    (drawn,) = ours(name, inputs, 22, seed=7.0, **attributes)
    assert drawn.mean() == pytest.approx(mean, abs=5 * deviation / 4000**0.5)
    assert drawn.std() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("code", [1, 10, 11, 16])
def test_the_type_is_the_one_asked_for(code: int) -> None:
    for name, inputs, attributes in CASES[:4]:
        (found,) = ours(name, inputs, 22, dtype=code, **attributes)
        assert found.dtype == dtype_of_code(code).numpy


def test_multinomial_weights_are_logarithms() -> None:
    logits = np.log(np.array([[0.1, 0.0, 0.9]]) + 1e-30).astype(np.float32)
    (drawn,) = ours("Multinomial", [logits], 22, seed=1.0, sample_size=5000, dtype=7)
    assert drawn.dtype == np.int64
    assert np.bincount(drawn[0], minlength=3) / 5000 == pytest.approx([0.1, 0, 0.9], abs=0.03)
