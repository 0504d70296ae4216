"""Plain contractions and attention on a GPU: against their meaning, by the host shim."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.kernel import Compiled
from engine.ir.graph import Graph, Node
from engine.ir.sizes import Dim, evaluate, symbol
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.ops.expression import Expression, call, cast, constant, load
from engine.ops.fused import FusedConv, FusedMatMul
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.tactics.matmul_view import _step
from engine.tactics.nvrtc_plain import NvrtcPlain
from engine.tactics.tactic import Candidate, Refusal
from engine.target import describe
from tests import cuda_layer as layers

TARGET = describe("cuda:sm90")
RNG = np.random.default_rng(7)
HALF, BRAIN, FULL = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32
TOLERANCE = {HALF: 2e-3, BRAIN: 1.6e-2, FULL: 2e-5}


def random(*shape: int, dtype: DType = HALF) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32).astype(dtype.numpy)


def widened(position: int, dtype: DType) -> Expression:
    found = load(position, dtype)
    return found if dtype is FULL else cast(found, FULL)


def everything(dtype: DType) -> tuple[Expression, tuple[str, ...]]:
    """relu(sum * scalar + column + row) + full, which uses operands of every kind."""
    scaled = call("multiply", load(0, FULL), widened(1, dtype))
    moved = call("add", call("add", scaled, widened(2, dtype)), widened(3, dtype))
    total = call("add", call("max", moved, constant(0.0, FULL)), widened(4, dtype))
    return (total if dtype is FULL else cast(total, dtype)), ("scalar", "column", "row", "full")


def only_sum(dtype: DType) -> Expression:
    return load(0, FULL) if dtype is FULL else cast(load(0, FULL), dtype)


def offered(node: Node, **point: int) -> list[Candidate]:
    found = NvrtcPlain().offers(node, point, TARGET)
    assert not isinstance(found, Refusal), found
    choices = [str(sorted(item.choice.items())) for item in found]
    assert len(set(choices)) == len(choices)
    return list(found)


def check(graph: Graph, node: Node, *, dtype: DType, only: int | None = None, **point: int) -> None:
    (expected,) = layers.meaning(node)
    for candidate in offered(node, **point)[:only]:
        (found,) = layers.run_candidate(graph, node, candidate, point)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(
            found.astype(np.float32),
            expected.astype(np.float32),
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype] * 4,
            err_msg=str(candidate.choice),
        )


@pytest.mark.parametrize("dtype", [HALF, BRAIN, FULL])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (70, 67, 37), (33, 130, 64)])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_with_every_kind_of_operand(
    dtype: DType, m: int, n: int, k: int, transposed: bool
) -> None:
    expression, kinds = everything(dtype)
    b = random(n, k, dtype=dtype) if transposed else random(k, n, dtype=dtype)
    extra = [random(1, dtype=dtype), random(n, dtype=dtype), random(m, dtype=dtype)]
    graph, node = layers.layer(
        FusedMatMul(transposed, expression, kinds),
        [
            layers.feed(random(m, k, dtype=dtype), (symbol("M"), k)),
            layers.constant(b),
            layers.constant(extra[0]),
            layers.constant(extra[1]),
            layers.feed(extra[2], (symbol("M"),)),
            layers.feed(random(m, n, dtype=dtype), (symbol("M"), n)),
        ],
    )
    check(graph, node, dtype=dtype, only=None if transposed else 1, M=m)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 5, 7), (2, 3, 7, 9)),
        ((2, 1, 5, 7), (3, 7, 9)),
        ((5, 7), (4, 7, 9)),
        ((4, 3, 5, 7), (4, 1, 7, 9)),
        ((2, 3, 5, 7), (7, 9)),
    ],
)
def test_batches_broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    dims: list[Dim] = list(a)
    point = {}
    if a[0] not in (1, *b[:1]) or len(a) > 3:
        dims[0], point = symbol("B"), {"B": a[0]}
    whole = list(b)
    other: list[Dim] = list(whole)
    if len(b) == 4 and b[0] == a[0]:
        other[0] = symbol("B")
    graph, node = layers.layer(
        FusedMatMul(False, only_sum(FULL)),
        [layers.feed(random(*a, dtype=FULL), dims), layers.feed(random(*b, dtype=FULL), other)],
    )
    check(graph, node, dtype=FULL, only=1, **point)


def test_a_batch_whose_broadcast_shows_only_when_the_model_runs() -> None:
    """The sizes of both operands have names of their own; one of them turns out to be 1."""
    step = _step(symbol("A"), symbol("B"), 35)
    assert evaluate(step, {"A": 1, "B": 4}) == 0
    assert evaluate(step, {"A": 4, "B": 4}) == 35


def test_operands_and_results_that_are_slices_of_wider_tensors() -> None:
    expression, kinds = everything(HALF)
    graph, node = layers.layer(
        FusedMatMul(False, expression, kinds),
        [
            layers.feed(random(6, 20), (symbol("M"), 20)),
            layers.constant(random(20, 36)),
            layers.constant(random(1)),
            layers.constant(random(36)),
            layers.feed(random(6), (symbol("M"),)),
            layers.feed(random(6, 36), (symbol("M"), 36)),
        ],
    )
    wide = graph.value("wide", TensorType(HALF, (symbol("M"), 200)))
    places = [(node.inputs[0], 8), (node.inputs[5], 60), (node.outputs[0], 120)]
    placed = {id(value): Placement(wide, offset, 200) for value, offset in places}
    (candidate, *_) = offered(node, M=6)
    assert candidate.strided
    (found,) = layers.run_candidate(graph, node, candidate, {"M": 6}, placed=placed)
    (expected,) = layers.meaning(node)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-2)


CONVOLUTIONS: list[dict[str, Any]] = [
    {"x": (2, 9, 7, 5), "w": (6, 5, 3, 3), "pads": (1, 1, 1, 1)},
    {"x": (1, 11, 8, 20), "w": (34, 20, 1, 1), "strides": (2, 2)},
    {"x": (2, 10, 9, 6), "w": (6, 1, 3, 3), "pads": (1, 2, 0, 1), "group": 6, "strides": (2, 1)},
    {"x": (1, 12, 9, 8), "w": (36, 4, 3, 2), "dilations": (2, 3), "group": 2},
    {"x": (2, 3, 17, 13), "w": (20, 3, 7, 5), "pads": (3, 2, 3, 2), "input_layout": "NCHW"},
    {"x": (1, 6, 7, 8), "w": (9, 2, 3, 3), "group": 3, "input_layout": "NCHW"},
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=range(len(CONVOLUTIONS)))
@pytest.mark.parametrize("fixed", [True, False])
def test_convolutions(case: dict[str, Any], fixed: bool) -> None:
    details = dict(case)
    x, w = details.pop("x"), details.pop("w")
    dtype = HALF if fixed else FULL
    expression, kinds = everything(dtype)
    operator = FusedConv(**details, epilogue=expression, kinds=kinds)
    images, height, width, _ = out = operator.output_shape(x, w)
    weights = random(*w, dtype=dtype)
    graph, node = layers.layer(
        operator,
        [
            layers.feed(random(*x, dtype=dtype), (symbol("N"), *x[1:])),
            layers.constant(weights) if fixed else layers.feed(weights),
            layers.constant(random(1, dtype=dtype)),
            layers.constant(random(w[0], dtype=dtype)),
            layers.feed(random(images, height, width, dtype=dtype), (symbol("N"), height, width)),
            layers.feed(random(*out, dtype=dtype), (symbol("N"), *out[1:])),
        ],
    )
    check(graph, node, dtype=dtype, only=None if x[-1] == 5 else 2, N=x[0])


def attention(head_size: int, *, mask: str = "none", dtype: DType = FULL, **details: Any) -> Any:
    """Queries, keys and values of 21 tokens in one packed tensor, as models have them."""
    batch, heads, rows = 2, 4, 21
    shared = heads // details.get("group", 1)
    width = (heads + 2 * shared) * head_size
    own, token = heads * head_size, symbol("S")
    packed = layers.feed(random(batch, rows, width, dtype=dtype), (batch, token, width))
    inputs = [packed, packed, packed]
    masks = {"key": (batch, 1, 1, rows), "full": (1, heads, rows, rows)}
    if mask != "none":
        shape = masks[mask]
        dims = tuple(token if dim == rows else dim for dim in shape)
        hidden = np.where(RNG.random(shape) < 0.3, -65504.0, RNG.standard_normal(shape))
        inputs.append(layers.feed(hidden.astype(dtype.numpy), dims))
    if details.get("position", "none") != "none":
        inputs.append(layers.feed(np.array([3, -2][: 1 + (details["position"] == "batch")])))
    access = HeadAccess(0, token, 0, 0) if mask == "key" else HeadAccess(0, 0, token * token, token)
    operator = FusedAttention(
        head_size=head_size,
        scale=head_size**-0.5,
        sizes=(batch, heads, token, token),
        query=HeadAccess(0, token * width, head_size, width),
        key=HeadAccess(own, token * width, head_size, width),
        value=HeadAccess(own + shared * head_size, token * width, head_size, width),
        out=HeadAccess(0, token * own, head_size, own),
        shape=(batch, token, own),
        operands=tuple(item.dims for item in inputs),
        mask=mask,
        mask_access=access,
        dtype=dtype,
        **details,
    )
    return layers.layer(operator, inputs), rows


@pytest.mark.parametrize(
    ("head_size", "details"),
    [
        (64, {"dtype": HALF}),
        (16, {"mask": "key", "dtype": BRAIN}),
        (24, {"mask": "full", "group": 2}),
        (33, {"causal": True, "group": 4, "past": 5}),
        (300, {"mask": "key", "causal": True, "dtype": HALF}),
        (32, {"position": "one", "past": 6}),
        (32, {"position": "batch", "causal": True, "guarded": True}),
        (32, {"position": "batch", "causal": True, "guarded": False}),
    ],
)
def test_attention(head_size: int, details: dict[str, Any]) -> None:
    """With a position of -2 the first two queries of a causal sample see no key."""
    (graph, node), rows = attention(head_size, **details)
    check(graph, node, dtype=node.outputs[0].tensor.dtype, S=rows)


def test_what_is_not_served_says_why() -> None:
    _, node = layers.layer(
        FusedMatMul(False, only_sum(FULL)),
        [layers.feed(random(3, 4, dtype=FULL)), layers.constant(random(4, 5, dtype=FULL))],
    )
    refused = NvrtcPlain().offers(node, {}, describe("cpu"))
    assert isinstance(refused, Refusal)
    assert "no CUDA device" in refused.reason
    wrong = FusedMatMul(False, only_sum(FULL))
    _, node = layers.layer(
        wrong,
        [
            layers.feed(np.ones((3, 4), np.int8)),
            layers.constant(np.ones((4, 5), ml_dtypes.float8_e4m3fn)),
        ],
    )
    refused = NvrtcPlain().offers(node, {}, TARGET)
    assert isinstance(refused, Refusal)
    assert "int8" in refused.reason


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_every_form_compiles_without_spills(capability: tuple[int, int]) -> None:
    expression, kinds = everything(HALF)
    product = layers.layer(
        FusedMatMul(True, expression, kinds),
        [
            layers.feed(random(4, 16)),
            *(layers.constant(random(*s)) for s in ((8, 16), (1,), (8,), (4,), (4, 8))),
        ],
    )
    image = layers.layer(
        FusedConv(pads=(1, 1, 1, 1), epilogue=only_sum(HALF)),
        [layers.feed(random(1, 5, 5, 16)), layers.constant(random(32, 16, 3, 3))],
    )
    nodes = [product, image]
    nodes += [attention(d, mask="full", causal=True)[0] for d in (64, 256, 512)]
    kernels = [
        layers.emitted(graph, node, candidate).device_kernels[0]
        for graph, node in nodes
        for candidate in offered(node, S=21)
    ]
    for kernel, result in zip(kernels, compile_kernels(kernels, capability)):
        assert isinstance(result, Compiled), f"{kernel.entry}: {result}"
        assert result.waits == (capability >= (9, 0))
