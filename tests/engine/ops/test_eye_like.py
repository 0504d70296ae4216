"""EyeLike puts ones on the diagonal asked for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.ops.single_node import assert_agree, ours


@pytest.mark.parametrize("k", [-4, -1, 0, 1, 5])
@pytest.mark.parametrize("dtype", [None, 1, 7])
def test_eye_like_agrees_with_onnxruntime(k: int, dtype: int | None) -> None:
    attributes = {} if dtype is None else {"dtype": dtype}
    assert_agree("EyeLike", [np.zeros((3, 4), np.int32)], k=k, **attributes)


def test_only_a_matrix_has_a_diagonal() -> None:
    with pytest.raises(ValueError, match=r"matrix|unpack"):
        ours("EyeLike", [np.zeros(3)])


def test_an_unknown_type_number_is_refused() -> None:
    with pytest.raises(ValueError, match="99"):
        ours("EyeLike", [np.zeros((2, 2))], dtype=99)
