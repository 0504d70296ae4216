from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import PlanCorruptError
from engine.kernels.packing import pack
from engine.plan.recipes import RecipeStep, apply, check_recipe, read_recipe_step


def step(function: str, *inputs: int, **arguments: Any) -> RecipeStep:
    return RecipeStep(function, inputs, arguments)


def test_steps_number_sources_first_and_results_after() -> None:
    left, right = np.arange(6.0).reshape(2, 3), np.arange(3.0)
    found = apply(
        [
            step("transpose", 0, order=[1, 0]),
            step("concatenate", 2, 2, axis=1),
            step("scale", 3, 1, axis=0),
            step("cast", 4, dtype="float32"),
            step("reshape", 5, shape=[12]),
        ],
        [left, right],
    )
    expected = np.concatenate([left.T, left.T], 1) * right[:, None]
    np.testing.assert_array_equal(found, expected.astype(np.float32).reshape(12))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


def test_an_empty_recipe_gives_its_one_source() -> None:
    array = np.arange(4.0)
    np.testing.assert_array_equal(apply([], [array]), array)
    assert apply([], [np.array(2.0)]).shape == ()


@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from([8, 16, 64]))
def test_packing_is_the_kernels_own(rows: int, columns: int, width: int) -> None:
    matrix = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    found = apply([step("pack", 0, name="columns", numbers=[width])], [matrix])
    np.testing.assert_array_equal(found, pack("columns", matrix, [width]))


def test_any_deterministic_operator_is_a_step() -> None:
    operator = {"domain": "", "name": "Add", "since": 7, "attributes": {}}
    found = apply([step("meaning", 0, 0, operator=operator)], [np.arange(3.0)])
    np.testing.assert_array_equal(found, [0, 2, 4])


def test_scaling_rounds_once() -> None:
    value, factor = np.float32([1 / 3, 7.1]), np.float32([1 / 7, 0.3])
    found = apply([step("scale", 0, 1, axis=0)], [value, factor])
    np.testing.assert_array_equal(
        found, (value.astype(np.float64) * factor.astype(np.float64)).astype(np.float32)
    )


REFUSED: list[tuple[RecipeStep, str]] = [
    (step("evaluate", 0), "no recipe step"),
    (step("cast", 1, dtype="float32"), "takes values"),
    (step("cast", -1, dtype="float32"), "takes values"),
    (step("cast", 0, 0, dtype="float32"), "found 2 values"),
    (step("cast", 0, dtype="object"), "expected one of"),
    (step("cast", 0, dtype="string"), "expected one of"),
    (step("transpose", 0, order=[0, 0]), "no permutation"),
    (step("transpose", 0), "missing"),
    (step("reshape", 0, shape=[-1]), "expected an integer"),
    (step("concatenate", axis=0), "no values"),
    (step("pack", 0, name="columns", numbers=[]), "found 0, expected 1"),
    (step("pack", 0, name="other", numbers=[8]), "expected one of"),
    (
        step(
            "meaning",
            0,
            operator={"domain": "", "name": "RandomNormalLike", "since": 1, "attributes": {}},
        ),
        "random",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED)
def test_a_wrong_step_is_refused(wrong: RecipeStep, message: str) -> None:
    with pytest.raises(PlanCorruptError, match=message):
        check_recipe([wrong], 1, "here")


def test_a_scale_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot scale"):
        apply([step("scale", 0, 1, axis=0)], [np.zeros((2, 3)), np.zeros(3)])


def test_steps_survive_json() -> None:
    once = step("pack", 0, name="columns", numbers=[8])
    written = {"function": once.function, "inputs": list(once.inputs), "arguments": once.arguments}
    assert read_recipe_step(json.loads(json.dumps(written)), "here") == once
