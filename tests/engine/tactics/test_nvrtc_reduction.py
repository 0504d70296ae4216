"""Reductions over any axes and leftover elementwise operators, run on the host by the shim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.ir.graph import Node
from engine.ir.sizes import symbol
from engine.ir.types import DType
from engine.ops.operator import find
from engine.tactics import Refusal
from engine.tactics.nvrtc_reduction import NvrtcReduction, reduction_region
from engine.tactics.nvrtc_scalar import NvrtcScalar
from engine.target import describe
from tests.cuda_layer import constant, feed, layer, meaning, run_candidate

TARGET = describe("cuda:sm90")
N = symbol("N")
FLOATS = ("Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp")


def values(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    generator = np.random.default_rng(sum(shape))
    if np.dtype(dtype).kind in "iu":
        return generator.integers(0, 7, shape).astype(dtype)
    return (generator.random(shape) + 0.25).astype(dtype)


def offered(node: Node, point: dict[str, int] | None = None) -> list[Any]:
    tactic = NvrtcReduction() if node.kind in NvrtcReduction.kinds else NvrtcScalar()
    found = tactic.offers(node, point or {}, TARGET)
    assert not isinstance(found, Refusal), found.reason
    return list(found)


def check(graph: Any, node: Node, point: dict[str, int] | None = None, most: int = 1) -> None:
    (expected,) = meaning(node)
    if not node.outputs[0].tensor.rank:  # `feed` makes one axis of none
        expected = expected.reshape(())
    for candidate in offered(node, point)[:most]:
        (found,) = run_candidate(graph, node, candidate, point)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        tolerance = {2: 2e-3, 4: 1e-5, 8: 1e-12}.get(found.dtype.itemsize, 0)
        np.testing.assert_allclose(
            found.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
        )


def reduce(kind: str, axes: tuple[int, ...] | None, keep: int = 1) -> Any:
    return find("", f"Reduce{kind}", 11)(axes=axes, keepdims=keep)


@pytest.mark.parametrize("kind", FLOATS)
def test_reductions_over_a_middle_axis(kind: str) -> None:
    check(*layer(reduce(kind, (1,)), [feed(values(3, 5, 9))]))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 4, 5), (0, 1)),
        ((3, 4, 5), (-1, 1)),
        ((3, 4, 5), None),
        ((4, 1, 3, 1), (1, 2)),
        ((4, 1, 3), (0, 2)),  # neighbours, once the axis of one element is left out
        ((4, 1), (1,)),
        ((), None),
    ],
)
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_over_several_axes(shape: Any, axes: Any, keep: int) -> None:
    check(*layer(reduce("Sum", axes, keep), [feed(values(*shape))]))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("kind", ["Sum", "Max"])
def test_reductions_of_every_width(kind: str, dtype: Any) -> None:
    check(*layer(reduce(kind, (0,)), [feed(values(6, 7, dtype=dtype))]), most=2)


def test_axes_as_an_input() -> None:
    op = find("", "ReduceMean", 18)(keepdims=0)
    axes = constant(np.array([0], np.int64))
    check(*layer(op, [feed(values(6, 7)), axes]))
    noop = find("", "ReduceSumSquare", 18)(noop_with_empty_axes=1)
    check(*layer(noop, [feed(values(6, 7))]))


def test_logarithms_of_sums_of_extreme_numbers() -> None:
    x = np.array([[-np.inf, 1, np.inf], [-np.inf, 200, 2], [-np.inf, 300, 3]], np.float32)
    check(*layer(reduce("LogSumExp", (0,)), [feed(x)]))


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_place_of_an_extreme(kind: str, last: int, axis: int) -> None:
    x = values(6, 7, dtype=np.int32).astype(np.float32)  # with ties
    x[2, 3] = np.nan
    op = find("", kind, 13)(axis=axis, select_last_index=last, keepdims=last)
    check(*layer(op, [feed(x)]))


def test_the_place_of_an_extreme_among_integers_of_any_count() -> None:
    op = find("", "ArgMax", 13)(axis=0)
    check(*layer(op, [feed(values(5, 6, dtype=np.int64), (N, 6))]), {"N": 5}, most=4)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_values_along_another_axis(kind: str, dtype: Any) -> None:
    check(*layer(find("", kind, 13)(axis=1), [feed(values(2, 5, 6, dtype=dtype))]), most=2)


def test_softmax_of_old_models_takes_all_axes_from_one_on() -> None:
    check(*layer(find("", "Softmax", 11)(axis=1), [feed(values(2, 3, 4))]))


@pytest.mark.parametrize("count", [1, 3, 700])
@pytest.mark.parametrize("shape", ["first", "last"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_means_over_open_sizes(count: int, shape: str, dtype: Any) -> None:
    x = values(count, 4, dtype=dtype)
    given, axis = feed(x, (N, 4)), 0
    if shape == "last":
        given, axis = feed(x.T, (4, N)), 1
    check(*layer(reduce("Mean", (axis,)), [given]), {"N": count}, most=4)


def test_what_no_region_serves_has_a_reason() -> None:
    _, node = layer(reduce("Sum", (0, 2)), [feed(values(3, 4, 5))])
    with pytest.raises(ValueError, match="no neighbours"):
        reduction_region(node)
    _, node = layer(reduce("L2", (0,)), [feed(values(3, 4, dtype=np.int32))])
    with pytest.raises(ValueError, match="integers"):
        reduction_region(node)
    _, node = layer(reduce("Sum", (0,)), [feed(values(0, 4))])
    assert "empty" in NvrtcReduction().offers(node, {}, TARGET).reason  # type: ignore[union-attr]
    cpu = NvrtcReduction().offers(node, {}, describe("cpu"))
    assert isinstance(cpu, Refusal) and cpu.reason == "the target is no GPU"


@pytest.mark.parametrize("shape", [(), (1,), (3, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_leftover_elementwise_operators(shape: Any, dtype: Any) -> None:
    x = values(*shape, dtype=dtype)
    check(*layer(find("", "Mul", 14)(), [feed(x), feed(np.array(3, dtype))]))


def test_casts_to_the_type_of_a_tensor_that_is_not_read() -> None:
    x = values(3, 5)
    check(*layer(find("", "CastLike", 15)(), [feed(x), feed(values(2, dtype=np.float16))]))
    _, node = layer(find("", "Add", 14)(), [feed(x), feed(values(5))])
    assert "broadcast" in NvrtcScalar().offers(node, {}, TARGET).reason  # type: ignore[union-attr]
    _, node = layer(find("", "Relu", 14)(), [feed(x.astype(DType.BFLOAT16.numpy))])
    assert not isinstance(NvrtcScalar().offers(node, {}, TARGET), Refusal)
