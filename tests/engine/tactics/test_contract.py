"""Every candidate that a tactic offers computes what its node means, whatever the sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import DType, TensorType
from engine.lower.lowering import lower
from engine.ops.channels_last import ChannelNorm, ChannelShuffle, Pool
from engine.ops.expression import call, load
from engine.ops.fused import FusedConv, FusedMatMul
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.ops.operator import Operator, find
from engine.passes.move_data import move_data
from engine.plan.recipes import apply
from engine.runtime.engine import Engine
from engine.tactics import Candidate, candidates
from engine.tactics.tactic import _TACTICS
from engine.target import CPU_SOURCES, describe

FLOAT = DType.FLOAT32
BIAS = call("add", load(0, FLOAT), load(1, FLOAT))
RELU = call("max", BIAS, load(2, FLOAT))
RESIDUAL = call("add", call("tanh", BIAS), load(2, FLOAT))


def layer(op: Operator, feeds: Sequence[Any], constants: Sequence[int] = ()) -> Graph:
    """A graph of one node; inputs listed in ``constants`` are weights."""
    graph = Graph("layer")
    values = []
    for index, array in enumerate(feeds):
        if index in constants:
            values.append(graph.constant(f"c{index}", array))
            continue
        kind = TensorType(DType.of(array.dtype), tuple(array.shape))
        graph.inputs.append(Value(graph.fresh_name(f"x{index}"), kind))
        values.append(graph.inputs[-1])
    output = Value(graph.fresh_name("y"), TensorType(FLOAT, None))
    node = graph.append(Node(op, values, [output], name="layer"))
    infer_node(graph, node)
    graph.outputs, graph.output_names = [output], ["y"]
    return graph


def run(graph: Graph, candidate: Candidate, feeds: dict[str, Any]) -> Any:
    lowered = lower(graph, (), {graph.nodes[0].name: (candidate, 0)})
    weights = {
        name: apply(item.recipe, [source.constant for source in item.sources])
        for name, item in lowered.packed.items()
    }
    return Engine(lowered.program, weights, compile="wait")(feeds)["y"]


def check(graph: Graph, *, wanted: set[str]) -> None:
    """All candidates agree with the meaning, and the tactics expected are among them."""
    node = graph.nodes[0]
    offered, _ = candidates(node, ("c", "numpy"), {}, describe())
    assert wanted <= {candidate.tactic for candidate in offered}
    generator = np.random.default_rng(1)
    feeds = {
        value.name: generator.standard_normal(value.tensor.dims).astype(value.tensor.dtype.numpy)
        for value in graph.inputs
    }
    inputs = [v.constant if v.constant is not None else feeds[v.name] for v in node.inputs if v]
    expected = node.op.meaning(*inputs)
    for candidate in offered:
        found = run(graph, candidate, feeds)
        assert found.shape == expected.shape
        limit = 2e-4 * max(float(np.std(expected)), 1e-3)
        worst = float(np.abs(found - expected).max()) if expected.size else 0.0
        assert worst <= limit, (candidate.tactic, dict(candidate.choice), worst)


def array(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) / math.sqrt(shape[-1])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (1, 70, 33), (3, 33, 5), (17, 100, 300), (130, 48, 64), (5, 7, 0)]
)
def test_products_with_a_constant_matrix(m: int, n: int, k: int, transposed: bool) -> None:
    b = array(n, k) if transposed else array(k, n)
    op = FusedMatMul(transposed, RESIDUAL, ("column", "full"))
    feeds = [array(m, k), b, array(n), array(m, n)]
    check(layer(op, feeds, (1, 2)), wanted={"c.gemm", "numpy.meaning"})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3, 4, 5), (2, 3, 5, 6)),
        ((2, 3, 4, 5), (3, 5, 6)),
        ((2, 1, 4, 5), (1, 3, 5, 6)),
        ((3, 4, 5), (5, 6)),
        ((4, 5), (3, 5, 6)),
    ],
)
def test_products_of_two_inputs_with_batch_axes(left: Any, right: Any) -> None:
    check(layer(FusedMatMul(), [array(*left), array(*right)]), wanted={"c.gemm"})


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(
    ("size", "channels", "filters", "kernel", "stride", "pad", "group"),
    [
        ((1, 9, 9), 3, 17, (3, 3), 1, 1, 1),
        ((2, 8, 10), 16, 40, (3, 3), 1, 0, 1),
        ((1, 12, 12), 8, 8, (5, 3), 2, 2, 2),
        ((1, 7, 7), 33, 65, (1, 1), 1, 0, 1),
        ((1, 15, 11), 4, 20, (7, 7), 3, 3, 1),
        ((2, 6, 6), 12, 12, (3, 3), 1, 1, 12),
        ((1, 20, 18), 64, 32, (3, 3), 1, 1, 1),
    ],
)
def test_convolutions(
    size: Any, channels: int, filters: int, kernel: Any, stride: int, pad: int, group: int,
    planar: bool,
) -> None:  # fmt: skip
    images, height, width = size
    shape = (images, channels, height, width) if planar else (images, height, width, channels)
    weight = array(filters, channels // group, *kernel)
    op = FusedConv(
        strides=(stride, stride),
        pads=(pad, pad, pad, pad),
        group=group,
        input_layout="NCHW" if planar else "NHWC",
        epilogue=RESIDUAL,
        kinds=("column", "full"),
    )
    out = op.output_shape(shape, weight.shape)
    feeds = [array(*shape), weight, array(filters), array(*out)]
    wanted = {"c.convolution"}
    if kernel == (3, 3) and stride == 1 and not planar and group == 1:
        wanted.add("c.winograd")
    if group == channels and not planar:
        wanted.add("c.depthwise")
    check(layer(op, feeds, (1, 2)), wanted=wanted)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (5, 1, 2), (7, 7, 0)])
def test_poolings(kind: str, kernel: int, stride: int, pad: int) -> None:
    for counts in (False, True):
        op = Pool(
            kind=kind,
            kernel=(kernel, kernel),
            strides=(stride, stride),
            pads=(pad,) * 4,
            counts_padding=counts,
        )
        check(layer(op, [array(2, 14, 15, 19)]), wanted={"c.pooling"})


@pytest.mark.parametrize("mask", ["none", "key", "full"])
@pytest.mark.parametrize(("tokens", "head"), [(1, 16), (5, 24), (70, 64)])
def test_attention_over_packed_projections(mask: str, tokens: int, head: int) -> None:
    batch, heads, width = 2, 3, 3 * head
    packed = array(batch, tokens, 3 * width)
    row = 3 * width
    reads = [HeadAccess(i * width, tokens * row, head, row) for i in range(3)]
    masks = {
        "none": ((), HeadAccess(0, 0, 0, 0)),
        "key": ((batch, 1, 1, tokens), HeadAccess(0, tokens, 0, 0)),
        "full": ((batch, 1, tokens, tokens), HeadAccess(0, tokens * tokens, 0, tokens)),
    }
    shape, access = masks[mask]
    feeds = [packed, packed, packed] + ([array(*shape)] if shape else [])
    op = FusedAttention(
        head,
        1 / math.sqrt(head),
        (batch, heads, tokens, tokens),
        *reads,
        HeadAccess(0, tokens * width, head, width),
        (batch, tokens, width),
        tuple(item.shape for item in feeds),
        mask=mask,
        mask_access=access,
    )
    check(layer(op, feeds), wanted={"c.attention"})


def test_transposes_and_concatenations() -> None:
    turn = find("", "Transpose", 13).from_attributes({"perm": (0, 3, 1, 2)})
    check(layer(turn, [array(2, 5, 7, 33)]), wanted={"c.transpose"})
    for axis in (0, 1, 2):
        join = find("", "Concat", 13).from_attributes({"axis": axis})
        shapes = [[4, 5, 6] for _ in range(3)]
        for index, shape in enumerate(shapes):
            shape[axis] += index
        check(layer(join, [array(*shape) for shape in shapes]), wanted={"c.concat"})


@pytest.mark.parametrize(
    "op",
    [ChannelShuffle(3, 3), ChannelNorm(size=5), ChannelNorm(size=4, beta=0.6, bias=2.0)],
    ids=str,
)
def test_regions_of_channels(op: Operator) -> None:
    graph = layer(op, [array(2, 3, 4, 12)])
    expected = op.meaning(np.ones((2, 3, 4, 12), np.float32))
    assert move_data(graph)
    assert graph.nodes[0].kind == "Region"
    np.testing.assert_allclose(
        graph.nodes[0].op.meaning(np.ones((2, 3, 4, 12), np.float32)), expected, rtol=1e-5
    )
    check(graph, wanted={"c.region"})


def test_every_tactic_is_exercised_here() -> None:
    """The names in this file cover c_gemm, c_convolution, c_windows, c_attention and the rest."""
    candidates(layer(FusedMatMul(), [array(2, 2), array(2, 2)]).nodes[0], ("c",), {}, describe())
    assert {name for name in _TACTICS if name.partition(".")[0] in CPU_SOURCES} == {
        *("c.attention", "c.concat", "c.convolution", "c.depthwise", "c.gemm", "c.pooling"),
        *("c.region", "c.transpose", "c.winograd", "numpy.meaning"),
    }


def test_what_c_does_not_know_is_refused_with_a_reason() -> None:
    graph = layer(FusedMatMul(), [np.ones((2, 2)), np.ones((2, 2))])
    offered, refused = candidates(graph.nodes[0], ("c", "numpy"), {}, describe())
    assert {candidate.tactic for candidate in offered} == {"numpy.meaning"}
    assert [item.reason for item in refused if item.tactic == "c.gemm"] == [
        "only float32 is generated"
    ]
