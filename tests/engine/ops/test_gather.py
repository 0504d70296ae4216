"""Gathers read by index as onnxruntime does, negative indices from the back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import symbol
from engine.ops import find
from tests.engine.ops.single_node import assert_agree

DATA = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@settings(max_examples=25, deadline=None)
@given(
    axis=st.integers(-3, 2), shape=st.lists(st.integers(0, 3), max_size=2), seed=st.integers(0, 99)
)
def test_gather_agrees_with_onnxruntime(axis: int, shape: list[int], seed: int) -> None:
    size = DATA.shape[axis]
    places = np.random.default_rng(seed).integers(-size, size, shape)
    assert_agree("Gather", [DATA, np.asarray(places)], axis=axis)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements_agrees_with_onnxruntime(axis: int) -> None:
    size = DATA.shape[axis]
    places = np.random.default_rng(0).integers(-size, size, (2, 2, 4))
    assert_agree("GatherElements", [DATA, places], axis=axis)


@pytest.mark.parametrize(
    ("batch", "shape"), [(0, (3, 2)), (0, (2, 2, 3)), (1, (2, 2)), (1, (2, 5, 1)), (2, (2, 3, 1))]
)
def test_gather_nd_agrees_with_onnxruntime(batch: int, shape: tuple[int, ...]) -> None:
    places = np.random.default_rng(1).integers(-2, 2, shape)
    assert_agree("GatherND", [DATA, places], batch_dims=batch)


def test_gather_picks_symbolic_sizes() -> None:
    shape = np.array([symbol("n"), 4, symbol("m") * 2], object)
    gather = find("", "Gather", 13)()
    assert gather.meaning(shape, np.array(-1)).reshape(-1)[0] == symbol("m") * 2
    assert gather.meaning(shape, np.array([0, 1])).tolist() == [symbol("n"), 4]


def test_an_index_outside_is_an_error() -> None:
    with pytest.raises(IndexError):
        find("", "Gather", 13)().meaning(DATA, np.array([2]))
