"""Running sums and products, from either end, with or without the element itself."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.engine.ops.single_node import assert_agree, ours

DATA = np.arange(1, 7, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums_agree_with_onnxruntime(axis: int, exclusive: int, reverse: int) -> None:
    place = np.array(axis)
    assert_agree("CumSum", [DATA, place], 14, exclusive=exclusive, reverse=reverse)
    logs = [np.log(DATA).astype(np.float64), place]
    (sums,) = ours("CumSum", logs, 14, exclusive=exclusive, reverse=reverse)
    products = [DATA.astype(np.float64), place]
    (found,) = ours("CumProd", products, 26, exclusive=exclusive, reverse=reverse)
    np.testing.assert_allclose(found, np.exp(sums), rtol=1e-6)


def test_bfloat16_does_not_stall() -> None:
    (found,) = ours("CumSum", [np.ones(400, ml_dtypes.bfloat16), np.array(0)])
    assert float(found[-1]) == 400


def test_nothing_accumulates_to_nothing() -> None:
    assert ours("CumSum", [np.zeros((0, 2)), np.array(0)], exclusive=1)[0].shape == (0, 2)
