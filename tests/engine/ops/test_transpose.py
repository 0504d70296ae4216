"""Transpose orders axes as onnxruntime does."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from engine.ops import find
from tests.engine.ops.single_node import assert_agree


@pytest.mark.parametrize("perm", [None, *permutations(range(3))])
def test_transpose_agrees_with_onnxruntime(perm: tuple[int, ...] | None) -> None:
    attributes = {} if perm is None else {"perm": perm}
    assert_agree("Transpose", [np.arange(24.0).reshape(2, 3, 4)], **attributes)


@pytest.mark.parametrize("perm", [(0,), (0, 0), (0, 2)])
def test_an_order_that_is_none_is_refused(perm: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="perm"):
        find("", "Transpose", 13)(perm=perm).meaning(np.zeros((2, 3)))
