"""Regions, concatenations and transposes as steps of a GPU: candidates give the meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.ops.expression import call, cast, load
from engine.ops.expression import constant as number
from engine.ops.operator import Operator, find
from engine.ops.region import Gather, Load, Region, Store
from engine.plan.device import LaunchStep, Pointer
from engine.tactics.nvrtc_concat import NvrtcConcat
from engine.tactics.nvrtc_region import NvrtcRegion
from engine.tactics.nvrtc_transpose import NvrtcTranspose
from engine.tactics.tactic import Candidate, Refusal
from engine.target import CudaTarget, describe
from tests.cuda_layer import Feed, constant, emitted, feed, layer, meaning, run_candidate
from tests.engine.cuda.test_region import layer_norm

HALF, SINGLE = DType.FLOAT16, DType.FLOAT32
TARGETS = [describe(f"cuda:{name}") for name in ("sm80", "sm90", "sm100")]
H200 = TARGETS[1]
RNG = np.random.default_rng(7)


def array(dtype: DType, *shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32).astype(dtype.numpy)


def offered(tactic: Any, node: Node, point: dict[str, int] | None = None) -> Sequence[Candidate]:
    found = tactic.offers(node, point or {}, H200)
    assert not isinstance(found, Refusal), found.reason
    assert len({str(dict(item.choice)) for item in found}) == len(found) >= 1
    return list(found)


def check(
    graph: Graph,
    node: Node,
    tactic: Any,
    tolerance: float = 0,
    point: dict[str, int] | None = None,
    placed: dict[int, Placement] | None = None,
) -> None:
    """Every candidate gives what the node means."""
    expected = meaning(node)
    for candidate in offered(tactic, node, point):
        found = run_candidate(graph, node, candidate, point, placed=placed)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(
                one.astype(np.float64), other.astype(np.float64), tolerance, tolerance,
                err_msg=f"{candidate.tactic} {dict(candidate.choice)}",
            )  # fmt: skip


def norm_layer(rows: int, width: int) -> tuple[Graph, Node]:
    region = layer_norm(symbol("T"), width, HALF)
    feeds: list[Feed | None] = [
        feed(array(HALF, rows, width), (symbol("T"), width)) for _ in range(2)
    ]
    return layer(region, [*feeds, constant(array(HALF, width)), constant(array(HALF, width))])


@pytest.mark.parametrize(("rows", "width"), [(3, 768), (9, 40)])
def test_residual_and_layer_normalisation(rows: int, width: int) -> None:
    graph, node = norm_layer(rows, width)
    check(graph, node, NvrtcRegion(), 4e-3, {"T": rows})


def test_the_normal_case_is_one_launch_that_brings_weights_before_it_waits() -> None:
    graph, node = norm_layer(3, 768)
    candidate = offered(NvrtcRegion(), node, {"T": 4096})[0]
    assert candidate.choice["form"] == "rows" and candidate.choice["width"] == 8
    builder = emitted(graph, node, candidate)
    (step,) = builder.steps
    assert isinstance(step, LaunchStep)
    pointers = [item for item in step.parameters if isinstance(item, Pointer)]
    assert [item.writes for item in pointers] == [False] * 4 + [True] * 2
    body = builder.device_kernels[0].source.partition("__global__")[2]
    before, _, after = body.partition("ef_wait();")
    assert "(p2 +" in before and "(p3 +" in before and "(p0 +" not in before
    assert "(p0 +" in after and "(p2 +" not in after


def embedding() -> tuple[Graph, Node]:
    reads = (
        Load(0, DType.INT64, 0, (1, 0)),
        Load(1, HALF, 0, (0, 1), Gather(0, 24, 50)),
        Load(2, HALF, 0, (24, 1)),
    )
    total = call("add", cast(load(1, HALF), SINGLE), cast(load(2, HALF), SINGLE))
    store = Store(cast(total, HALF), 0, (6, 24), 0, (24, 1))
    region = Region((6, 24), reads, (store,), ((6,), (50, 24), (6, 24)))
    table = array(HALF, 50, 24)
    ids = np.array([0, 49, -1, 7, 7, 3], np.int64)
    return layer(region, [feed(ids), constant(table), feed(array(HALF, 6, 24))])


def test_embeddings() -> None:
    check(*embedding(), NvrtcRegion(), 1e-3)


def relu(rows: int, channels: int) -> tuple[Graph, Node]:
    n = symbol("N")
    value = call("max", cast(load(0, HALF), SINGLE), number(0.0, SINGLE))
    store = Store(cast(value, HALF), 0, (n, channels), 0, (channels, 1))
    region = Region((n, channels), (Load(0, HALF, 0, (channels, 1)),), (store,), ((n, channels),))
    return layer(region, [feed(array(HALF, rows, channels), (n, channels))])


@pytest.mark.parametrize(("channels", "before", "pixel"), [(16, 8, 40), (12, 5, 33), (24, 4, 28)])
def test_regions_between_slices_of_wider_tensors(channels: int, before: int, pixel: int) -> None:
    graph, node = relu(11, channels)
    x, y, n = node.inputs[0], node.outputs[0], symbol("N")
    assert x is not None
    placed = {}
    for value in (x, y):
        root = graph.value("wide", TensorType(HALF, (n, pixel)))
        placed[id(value)] = Placement(root, before, pixel)
    check(graph, node, NvrtcRegion(), 0, {"N": 11}, placed)


def operator(kind: str, **attributes: Any) -> Operator:
    found = find("", kind, 21)
    assert found is not None
    return found(**attributes)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenations(axis: int) -> None:
    shapes = [[3, 4, 16], [3, 4, 16], [3, 4, 16]]
    shapes[1][axis], shapes[2][axis] = 8, 5
    op = operator("Concat", axis=axis)
    graph, node = layer(op, [feed(array(HALF, *shape)) for shape in shapes])
    check(graph, node, NvrtcConcat())


def test_inputs_that_lie_in_their_slices_are_not_copied() -> None:
    op = operator("Concat", axis=-1)
    graph, node = layer(op, [feed(array(HALF, 5, 16)), feed(array(HALF, 5, 8))])
    first, output = node.inputs[0], node.outputs[0]
    assert first is not None
    placed = {id(first): Placement(output, 0, 24)}
    check(graph, node, NvrtcConcat(), 0, None, placed)
    assert len(emitted(graph, node, offered(NvrtcConcat(), node)[0], placed).steps) == 1


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 1, 2), (2, 3, 0, 1), (3, 2, 1, 0)])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 16, 5, 24)])
def test_transposes(shape: Sequence[int], perm: Sequence[int]) -> None:
    graph, node = layer(operator("Transpose", perm=tuple(perm)), [feed(array(HALF, *shape))])
    check(graph, node, NvrtcTranspose())


def test_what_no_gpu_kernel_serves_is_refused_with_a_reason() -> None:
    _, node = relu(3, 16)
    refused = NvrtcRegion().offers(node, {}, describe("cpu"))
    assert isinstance(refused, Refusal) and "no GPU" in refused.reason
    turned = layer(operator("Transpose", perm=(1, 0, 2)), [feed(array(HALF, 2, 3, 4))])[1]
    refused = NvrtcTranspose().offers(turned, {}, H200)
    assert isinstance(refused, Refusal) and "last axis" in refused.reason
    odd = np.zeros((2, 3), DType.FLOAT8E5M2.numpy)
    joined = layer(operator("Concat", axis=0), [feed(odd), feed(odd)])[1]
    refused = NvrtcConcat().offers(joined, {}, H200)
    assert isinstance(refused, Refusal) and "element type" in refused.reason


@pytest.mark.parametrize("target", TARGETS, ids=lambda item: item.architecture)
def test_first_candidates_compile_without_spills(target: CudaTarget) -> None:
    turned = operator("Transpose", perm=(0, 2, 3, 1))
    layers = [
        (norm_layer(2, 768), NvrtcRegion()),
        (embedding(), NvrtcRegion()),
        (relu(4, 64), NvrtcRegion()),
        (layer(turned, [feed(array(HALF, 1, 3, 8, 8))]), NvrtcTranspose()),
        (layer(turned, [feed(array(HALF, 1, 64, 8, 8))]), NvrtcTranspose()),
    ]
    for (graph, node), tactic in layers:
        for candidate in offered(tactic, node):
            for kernel in emitted(graph, node, candidate).device_kernels:
                compiled = compile_nvrtc(kernel, target.capability)
                assert compiled.spilled_nbytes == 0 and compiled.registers <= 128
                assert compiled.waits == (target.capability >= (9, 0))
