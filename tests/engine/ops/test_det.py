"""Det agrees with onnxruntime and with the product rule."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.ops.single_node import assert_agree, ours


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 4), (1, 1)])
def test_determinants_agree_with_onnxruntime(shape: tuple[int, ...]) -> None:
    assert_agree("Det", [np.random.default_rng(0).normal(size=shape).astype(np.float32)])


def test_the_determinant_of_a_product_is_the_product() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 4, 4))
    found = [float(ours("Det", [item])[0]) for item in (a, b, a @ b)]
    assert found[0] * found[1] == pytest.approx(found[2])


def test_only_square_matrices_have_one() -> None:
    with pytest.raises(ValueError, match=r"[Ss]quare"):
        ours("Det", [np.zeros((2, 3))])
