"""DepthToSpace agrees with onnxruntime, and SpaceToDepth undoes it."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from tests.engine.ops.single_node import assert_agree, ours

DATA = np.arange(2 * 8 * 3 * 5, dtype=np.float32).reshape(2, 8, 3, 5)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_the_two_are_inverse(mode: str) -> None:
    assert_agree("DepthToSpace", [DATA], 13, blocksize=2, mode=mode)
    (spread,) = ours("DepthToSpace", [DATA], 13, blocksize=2, mode=mode)
    (back,) = ours("SpaceToDepth", [spread], 28, blocksize=2, mode=mode)
    assert back.tolist() == DATA.tolist()


def test_space_to_depth_agrees_with_onnxruntime() -> None:
    assert_agree("SpaceToDepth", [DATA.reshape(2, 8, 5, 3)[:, :, :4, :2]], 13, blocksize=2)


def test_symbols_are_multiplied() -> None:
    n = symbol("n")
    data = Operand(TensorType(DType.FLOAT32, (1, 8, n, 4)))
    (found,) = find("", "DepthToSpace", 13)(blocksize=2).infer(data)
    assert found.shape == (1, 2, n * 2, 8)


def test_sizes_that_do_not_divide_are_refused() -> None:
    data = Operand(TensorType(DType.FLOAT32, (1, 6, 3, 4)))
    for name in ("DepthToSpace", "SpaceToDepth"):
        with pytest.raises(ValueError, match="divide"):
            find("", name, 13)(blocksize=2).infer(data)
    with pytest.raises(ValueError, match="mode"):
        find("", "DepthToSpace", 13)(blocksize=2, mode="XY").infer(data)
