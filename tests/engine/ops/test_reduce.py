"""Reductions agree with onnxruntime, also over nothing, and their axes may be unknown."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops import find
from engine.ops.reduce import REDUCTIONS
from tests.engine.ops.single_node import assert_agree, ours

AXES: list[tuple[int, ...] | None] = [None, (0,), (-1,), (0, 2)]


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions_agree_with_onnxruntime(
    name: str, axes: tuple[int, ...] | None, keepdims: int
) -> None:
    data = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
    given = None if axes is None else np.array(axes)
    assert_agree(name, [data, given], 18, keepdims=keepdims)
    attributes = {} if axes is None else {"axes": axes}
    assert_agree(name, [data], 11, keepdims=keepdims, **attributes)


@pytest.mark.parametrize("name", ["ReduceSum", "ReduceMax", "ReduceMean", "ReduceProd"])
def test_integers_agree_with_onnxruntime(name: str) -> None:
    data = np.random.default_rng(0).integers(-9, 9, (3, 4)).astype(np.int32)
    assert_agree(name, [data, np.array([1])], 18)


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("ReduceSum", np.float32, 0.0),
        ("ReduceProd", np.float32, 1.0),
        ("ReduceMax", np.float32, -np.inf),
        ("ReduceMin", np.float32, np.inf),
        ("ReduceMax", np.int32, -(2**31)),
        ("ReduceMin", np.bool_, True),
        ("ReduceLogSum", np.float32, -np.inf),
        ("ReduceLogSumExp", np.float32, -np.inf),
        ("ReduceL2", np.float32, 0.0),
    ],
)
def test_nothing_reduces_to_the_neutral_element(name: str, dtype: type, expected: float) -> None:
    (found,) = ours(name, [np.zeros((2, 0), dtype), np.array([1])], 20, keepdims=0)
    assert found.tolist() == [expected, expected]


def test_without_axes_nothing_or_everything_is_reduced() -> None:
    data, none = np.array([[-3.0, 4.0]]), np.zeros(0, np.int64)
    (all_axes,) = ours("ReduceSumSquare", [data, none], 18)
    assert all_axes.tolist() == [[25]]
    (no_axis,) = ours("ReduceSumSquare", [data, none], 18, noop_with_empty_axes=1)
    assert no_axis.tolist() == [[9, 16]]


def test_log_sum_exp_does_not_overflow() -> None:
    (found,) = ours("ReduceLogSumExp", [np.array([1e4, 1e4], np.float32)], 18, keepdims=0)
    assert found == pytest.approx(1e4 + np.log(2))
    (found,) = ours("ReduceLogSumExp", [np.full(2, -np.inf, np.float32)], 18, keepdims=0)
    assert found == -np.inf


def test_narrow_floats_are_summed_in_float32() -> None:
    (found,) = ours("ReduceSum", [np.ones(1000, ml_dtypes.bfloat16)], 13, keepdims=0)
    assert float(found) == 1000


def test_the_product_of_symbolic_sizes_is_a_size() -> None:
    shape = np.array([symbol("n"), 4], object)
    found = find("", "ReduceProd", 18)(keepdims=0).meaning(shape)
    assert found.reshape(-1)[0] == symbol("n") * 4


def test_unknown_axes_leave_the_sizes_open() -> None:
    data = Operand(TensorType(DType.FLOAT32, (2, 3)))
    axes = Operand(TensorType(DType.INT64, (1,)))
    (found,) = find("", "ReduceSum", 13)(keepdims=0).infer(data, axes)
    assert [type(dim) for dim in found.dims] == [UnknownSize]
    with pytest.raises(ValueError, match="axes"):
        ours("ReduceSum", [np.zeros(2), np.array([1])], 13)
