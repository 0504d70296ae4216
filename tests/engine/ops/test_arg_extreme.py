"""ArgMax and ArgMin find the first or last extreme element as onnxruntime does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.ops.single_node import assert_agree, ours


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_the_index_agrees_with_onnxruntime(name: str, axis: int, last: int, keepdims: int) -> None:
    data = np.random.default_rng(0).integers(0, 3, (4, 5, 3)).astype(np.float32)
    assert_agree(name, [data], axis=axis, select_last_index=last, keepdims=keepdims)


def test_a_scalar_is_its_own_extreme() -> None:
    assert ours("ArgMax", [np.array(3.0)])[0].shape == ()
