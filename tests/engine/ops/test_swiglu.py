"""SwiGLU is the gate times its sigmoid times the value."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from tests.engine.ops.single_node import ours


@pytest.mark.parametrize("alpha", [1.0, 1.702, -2.0])
def test_the_gate_follows_its_definition(alpha: float) -> None:
    gate, value = np.random.default_rng(0).normal(size=(2, 50), scale=5)
    (found,) = ours("SwiGLU", [gate, value], 28, alpha=alpha)
    np.testing.assert_allclose(found, gate / (1 + np.exp(-alpha * gate)) * value, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_great_gates_neither_overflow_nor_change_type(dtype: type) -> None:
    gate = np.array([-1e4, 1e4]).astype(dtype)
    (found,) = ours("SwiGLU", [gate, np.ones(2, dtype)], 28)
    assert found.dtype == dtype
    assert found.astype(float).tolist() == [0, float(gate[1])]


def test_two_shapes_are_refused() -> None:
    a, b = (Operand(TensorType(DType.FLOAT32, shape)) for shape in ((2, 3), (3,)))
    with pytest.raises(ValueError, match="one shape"):
        find("", "SwiGLU", 28)().infer(a, b)
