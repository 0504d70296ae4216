"""Trilu keeps the triangle that onnxruntime keeps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.ops.single_node import assert_agree, ours


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [-9, -1, 0, 2, 9])
def test_triangles_agree_with_onnxruntime(upper: int, k: int) -> None:
    data = np.arange(1.0, 25.0).reshape(2, 3, 4)
    assert_agree("Trilu", [data, np.array(k)], upper=upper)
    assert_agree("Trilu", [data], upper=upper)


def test_only_matrices_have_triangles() -> None:
    with pytest.raises(ValueError, match=r"rank 1|unpack"):
        ours("Trilu", [np.zeros(3)])
