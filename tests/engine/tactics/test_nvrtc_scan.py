"""Running sums and greatest elements, run on the host by the shim beside their meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ops.operator import find
from engine.tactics.nvrtc_scan import NvrtcScan, NvrtcTopK
from engine.tactics.tactic import Candidate, Refusal
from engine.target import describe
from tests.cuda_layer import constant, emitted, feed, layer, meaning, run_candidate

TARGET = describe("cuda:sm90")
RNG = np.random.default_rng(6)
N = symbol("N")


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.integers(-9, 9, shape).astype(dtype)  # with ties, and sums that are exact


def offered(graph: Graph, node: Node, point: dict[str, int]) -> list[Candidate]:
    tactic = NvrtcScan() if node.kind == "CumSum" else NvrtcTopK()
    found = tactic.offers(node, point, TARGET)
    assert not isinstance(found, Refusal), found
    return list(found)


def check(graph: Graph, node: Node, point: dict[str, int], *, forms: int = 2) -> None:
    expected = meaning(node)
    candidates = offered(graph, node, point)
    assert len(candidates) == forms
    for candidate in candidates:
        found = run_candidate(graph, node, candidate, point)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def sums(x: np.ndarray, axis: int, dims: Any = None, **attributes: int) -> tuple[Graph, Node]:
    operator = find("", "CumSum", 14)(**attributes)
    return layer(operator, [feed(x, dims), constant(np.array(axis, np.int64))])


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_running_sums(exclusive: int, reverse: int, axis: int) -> None:
    x = numbers(3, 5, 7)
    check(*sums(x, axis, (N, 5, 7), exclusive=exclusive, reverse=reverse), {"N": 3})


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.int64])
def test_running_sums_of_long_lines(dtype: Any) -> None:
    check(*sums(numbers(2, 700, dtype=dtype), 1, (2, N)), {"N": 700})


def top(x: np.ndarray, count: int, axis: int, dims: Any = None, **more: int) -> tuple[Graph, Node]:
    operator = find("", "TopK", 11)(axis=axis, **more)
    return layer(operator, [feed(x, dims), constant(np.array([count], np.int64))])


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, np.uint8])
def test_the_first_of_equal_elements_comes_first(largest: int, dtype: Any) -> None:
    x = numbers(2, 300).astype(dtype)
    check(*top(x, 7, 1, largest=largest), {})


@pytest.mark.parametrize("largest", [0, 1])
def test_the_order_of_extreme_numbers(largest: int) -> None:
    x = numbers(2, 40)
    x[0, [3, 5, 7, 20, 21]] = np.nan, np.inf, -np.inf, 0.0, -0.0
    x[1, [0, 39]] = np.nan
    check(*top(x, 40, 1, largest=largest), {})


@pytest.mark.parametrize("axis", [0, 1])
def test_along_any_axis(axis: int) -> None:
    check(*top(numbers(5, 9, 4), 3, axis), {})


def test_lines_of_open_length_are_searched() -> None:
    check(*top(numbers(3, 600), 4, 1, (3, N)), {"N": 600}, forms=1)
    check(*top(numbers(1, 5000), 2, 1), {}, forms=1)


def test_kernels_compile() -> None:
    for graph, node in (sums(numbers(2, 700), 1, (2, N)), top(numbers(2, 700), 5, 1)):
        for candidate in offered(graph, node, {"N": 700}):
            for kernel in emitted(graph, node, candidate).device_kernels:
                for capability in ((8, 0), (9, 0)):
                    assert not compile_nvrtc(kernel, capability).spilled_nbytes


def test_what_is_not_served_has_a_reason() -> None:
    _, node = top(numbers(2, 40, dtype=np.float64), 3, 1)
    refused = NvrtcTopK().offers(node, {}, TARGET)
    assert isinstance(refused, Refusal) and "32 bits" in refused.reason
    _, node = top(numbers(1, 9000), 5000, 1)
    refused = NvrtcTopK().offers(node, {}, TARGET)
    assert isinstance(refused, Refusal) and "too many" in refused.reason
    for tactic in (NvrtcTopK(), NvrtcScan()):
        refused = tactic.offers(node, {}, describe("cpu"))
        assert isinstance(refused, Refusal) and refused.reason == "the target is no GPU"
