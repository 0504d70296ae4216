"""Shape and Size report what a tensor has."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.ops.single_node import assert_agree


@pytest.mark.parametrize(("start", "end"), [(0, 3), (1, 2), (-1, 9), (-9, -1), (2, 1)])
def test_shape_agrees_with_onnxruntime(start: int, end: int) -> None:
    assert_agree("Shape", [np.zeros((2, 0, 4))], start=start, end=end)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_size_agrees_with_onnxruntime(shape: tuple[int, ...]) -> None:
    assert_agree("Size", [np.zeros(shape)])
