"""Gathers and scatters of index tuples, run on the host by the shim beside their meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.sizes import symbol
from engine.ops.operator import find
from engine.tactics.nvrtc_indexing import NvrtcIndexing
from engine.tactics.tactic import Refusal
from engine.target import describe
from tests.cuda_layer import Feed, constant, emitted, feed, layer, meaning, run_candidate

TARGET = describe("cuda:sm90")
RNG = np.random.default_rng(8)
N, M = symbol("N"), symbol("M")
POINT = {"N": 3, "M": 5}


def data(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.integers(-40, 40, shape).astype(dtype)


def dtype_of_compiled(kind: str, dtype: Any) -> bool:
    """Compiling takes a while: types whose text differs are compiled, others only run here."""
    return dtype in (np.float32, np.int64) or kind == "ScatterElements"


def check(kind: str, inputs: list[Feed | None], **attributes: Any) -> None:
    graph, node = layer(find("", kind, 18)(**attributes), inputs)
    offered = NvrtcIndexing().offers(node, POINT, TARGET)
    assert not isinstance(offered, Refusal), offered
    (expected,) = meaning(node)
    (found,) = run_candidate(graph, node, offered[0], POINT)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    if dtype_of_compiled(kind, expected.dtype):
        for kernel in emitted(graph, node, offered[0]).device_kernels:
            assert not compile_nvrtc(kernel, (9, 0)).spilled_nbytes


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.bool_])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_gathers_of_tuples(dtype: Any, index: Any) -> None:
    places = RNG.integers(-3, 3, (5, 2)).astype(index)
    check("GatherND", [feed(data(3, 4, 7, dtype=dtype), (N, 4, 7)), feed(places, (M, 2))])


def test_gathers_of_tuples_per_batch() -> None:
    places = RNG.integers(-4, 4, (3, 5, 1))
    check("GatherND", [feed(data(3, 4, 7), (N, 4, 7)), feed(places, (N, M, 1))], batch_dims=1)
    whole = RNG.integers(-4, 4, (2, 3, 6, 2))
    check("GatherND", [feed(data(2, 3, 4, 5)), feed(whole)], batch_dims=2)


def test_gathers_of_single_elements() -> None:
    places = RNG.integers(-3, 3, (2, 9, 3))
    check("GatherND", [feed(data(3, 4, 7)), feed(places)])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_slices_to_their_places(dtype: Any) -> None:
    places = np.array([[0, 1], [2, -1], [1, 0], [-1, 2], [0, 0]])
    inputs = [feed(data(3, 4, 7, dtype=dtype), (N, 4, 7)), feed(places, (M, 2))]
    check("ScatterND", [*inputs, feed(data(5, 7, dtype=dtype), (M, 7))])


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_updates_that_join_what_stands_there(reduction: str, dtype: Any) -> None:
    places = np.array([[0], [2], [0], [-1], [2]])
    updates = data(5, 7, dtype=dtype)
    inputs: list[Feed | None] = [feed(data(3, 7, dtype=dtype)), constant(places), feed(updates)]
    check("ScatterND", inputs, reduction=reduction)
    along = RNG.integers(-3, 3, (5, 4))
    inputs = [feed(data(3, 7, dtype=dtype)), feed(along), feed(data(5, 4, dtype=dtype))]
    check("ScatterElements", inputs, reduction=reduction)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_elements_to_their_places(axis: int) -> None:
    shape = (3, 4, 6)
    count = shape[axis]
    order = np.argsort(RNG.random((3, 4, 6)), axis) - (count if axis else 0)
    indices = np.take(order, np.arange(count - 1), axis)
    updates = data(*indices.shape)
    dims = (N, *indices.shape[1:]) if axis else indices.shape
    inputs = [feed(data(*shape), (N, 4, 6)), feed(indices, dims), feed(updates, dims)]
    check("ScatterElements", inputs, axis=axis)


def test_what_is_not_served_has_a_reason() -> None:
    halves = [feed(data(3, 4, dtype=np.float16)), feed(np.array([[0]]))]
    updates = feed(data(1, 4, dtype=np.float16))
    _, node = layer(find("", "ScatterND", 18)(reduction="add"), [*halves, updates])
    refused = NvrtcIndexing().offers(node, {}, TARGET)
    assert isinstance(refused, Refusal) and "float16" in refused.reason
    refused = NvrtcIndexing().offers(node, {}, describe("cpu"))
    assert isinstance(refused, Refusal) and refused.reason == "the target is no GPU"
