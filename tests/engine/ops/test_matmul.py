"""Matrix products agree with onnxruntime, broadcast, and refuse sizes that differ."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ops.matmul import matmul_shape
from tests.engine.ops.single_node import assert_agree, ours


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.asarray(np.random.default_rng(len(shape)).normal(size=shape)).astype(dtype)


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)), ((5, 1, 2, 3), (4, 3, 2))],
)
def test_products_agree_with_onnxruntime(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = normal(*left), normal(*right)
    (found,) = ours("MatMul", [a, b])
    np.testing.assert_allclose(found, np.matmul(a, b), rtol=1e-6)
    assert_agree("MatMul", [a, b])


def test_nothing_multiplies_to_zeros() -> None:
    assert ours("MatMul", [normal(2, 0), normal(0, 3)])[0].tolist() == [[0, 0, 0]] * 2


def test_narrow_floats_are_accumulated_in_float32() -> None:
    ones = np.ones((1, 1000), ml_dtypes.bfloat16)
    assert ours("MatMul", [ones, ones.T])[0].astype(float).item() == 1000


@pytest.mark.parametrize("flip_a", [0, 1])
@pytest.mark.parametrize("flip_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (4,), (2, 1), (2, 4)])
def test_gemm_agrees_with_onnxruntime(
    flip_a: int, flip_b: int, bias: tuple[int, ...] | None
) -> None:
    a, b = normal(*((3, 2) if flip_a else (2, 3))), normal(*((4, 3) if flip_b else (3, 4)))
    c = None if bias is None else normal(*bias)
    attributes = {"transA": flip_a, "transB": flip_b, "alpha": 0.5, "beta": 2.0}
    assert_agree("Gemm", [a, b, c], **attributes)


@pytest.mark.parametrize("signed", [np.uint8, np.int8])
def test_matmul_integer_agrees_with_onnxruntime(signed: type) -> None:
    random = np.random.default_rng(0)
    a = random.integers(0, 255, (2, 300)).astype(np.uint8)
    b = random.integers(-100, 100, (300, 3)).astype(signed)
    zero = np.array(3, np.uint8)
    assert_agree("MatMulInteger", [a, b, zero, np.array(5, signed)])
    assert_agree("MatMulInteger", [a, b, zero, np.array([1, 2, 3], signed)])
    (found,) = ours("MatMulInteger", [a, b, np.array([1, 2], np.uint8)])
    rows = a.astype(np.int64) - np.array([[1], [2]])
    assert found.tolist() == (rows @ b.astype(np.int64)).tolist()


def test_symbols_stay_in_their_places() -> None:
    n, m = symbol("n"), symbol("m")
    assert matmul_shape((n, 12, m, 64), (n, 12, 64, m)) == (n, 12, m, m)
    assert matmul_shape((n, m, 768), (768, 3072)) == (n, m, 3072)


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="inner size"):
        matmul_shape((2, 3), (4, 5))
    with pytest.raises(ValueError, match="scalar"):
        matmul_shape((), (4, 5))
    with pytest.raises(ValueError, match=r"broadcast|dimensions"):
        ours("Gemm", [normal(2, 3), normal(3, 4), normal(3, 2, 4)])
