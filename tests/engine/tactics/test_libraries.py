"""Tactics over vendors' libraries: what they emit computes what the node means, on models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.cuda import cudnn_graph
from engine.cuda.cublaslt import Descriptors, MatmulCall, MatmulSizes, PreparedMatmul
from engine.cuda.cublaslt_search import FoundAlgorithm
from engine.cuda.cudnn_calls import EngineChoice, read_call
from engine.cuda.cudnn_graph import CudnnGraphs
from engine.errors import KernelError, PlanCorruptError
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import symbol
from engine.ir.types import Array, DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.elementwise_activation import gelu, hard_swish, relu, swish
from engine.ops.expression import Expression, call, cast, constant, load
from engine.ops.fused import FusedConv, FusedMatMul
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.plan.device import LibraryStep
from engine.plan.recipes import apply
from engine.plan.structure import Slot
from engine.tactics import Candidate, Refusal, cublaslt_gemm, cudnn_attention, cudnn_convolution
from engine.tactics.cublaslt_gemm import CublasLtGemm
from engine.tactics.cudnn_attention import CudnnAttention
from engine.tactics.cudnn_convolution import CudnnConvolution
from engine.target import CpuTarget, CudaTarget, describe
from tests.engine.cuda.library_models import ColumnMajorModel, frontend_model

F16, F32 = DType.FLOAT16, DType.FLOAT32
TARGET = describe("cuda:sm90")
assert isinstance(TARGET, CudaTarget)
ALGORITHM = FoundAlgorithm("0123456789abcdef" * 8, 512, 130002, tile=20)
ENGINE = EngineChoice(7, {"STAGES": 3, "TILE_SIZE": 5}, 1024, 91900)
RNG = np.random.default_rng(11)


class _Activation:
    alpha = 1.0
    approximate = "tanh"


def read(position: int, dtype: DType = F16) -> Expression:
    return cast(load(position, dtype), F32)


SUM = load(0, F32)
BIASED = call("add", SUM, read(1))
BOTH = call("add", BIASED, read(2))
EPILOGUES: dict[str, tuple[Expression, tuple[str, ...]]] = {
    "sum": (SUM, ()),
    "bias": (BIASED, ("column",)),
    "relu": (relu(None, BIASED), ("column",)),
    "bias, residual, relu": (relu(None, BOTH), ("column", "full")),
    "residual, bias, relu": (relu(None, BOTH), ("full", "column")),
    "gelu by tanh": (gelu(_Activation(), BIASED), ("column",)),
}
CONVOLUTIONS = {
    **EPILOGUES,
    "silu": (swish(_Activation(), BIASED), ("column",)),
    "silu, then residual": (
        call("add", swish(_Activation(), BIASED), read(2)),
        ("column", "full"),
    ),
    "clip": (
        call("min", call("max", BIASED, constant(0.0, F32)), constant(1.0, F32)),
        ("column",),
    ),
    "sigmoid": (call("sigmoid", BIASED), ("column",)),
}


def value(name: str, *shape: Any, dtype: DType = F16, weight: bool = False) -> Value:
    made = Value(name, TensorType(dtype, shape))
    if weight:
        array = RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:] or (1,)))
        made.constant = array.astype(dtype.numpy)
    return made


def extra(kinds: Sequence[str], shape: tuple[int, ...]) -> list[Value]:
    return [
        value("bias", shape[-1], weight=True) if kind == "column" else value("full", *shape)
        for kind in kinds
    ]


def matmul(
    name: str, a: tuple[int, ...], b: tuple[int, ...], transpose_b: bool, weight: bool = False
) -> Node:
    epilogue, kinds = EPILOGUES[name]
    op = FusedMatMul(transpose_b, cast(epilogue, F16), kinds)
    left, right = value("a", *a), value("b", *b, weight=weight)
    shape = (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-2] if transpose_b else b[-1])
    return Node(op, [left, right, *extra(kinds, shape)], [value("y", *shape)])


def convolution(
    name: str,
    channels: tuple[int, int] = (16, 8),
    taps: int = 3,
    group: int = 1,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, ...] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    image: tuple[int, int, int] = (2, 6, 7),
) -> Node:
    epilogue, kinds = CONVOLUTIONS[name]
    op = FusedConv(strides, pads, dilations, group, "NHWC", cast(epilogue, F16), kinds)
    x = value("x", *image, channels[0])
    filters = value("w", channels[1], channels[0] // group, taps, taps, weight=True)
    shape = tuple(map(int, op.output_shape(x.tensor.dims, filters.tensor.dims)))  # type: ignore[arg-type]
    return Node(op, [x, filters, *extra(kinds, shape)], [value("y", *shape)])


def attention(
    mask: str = "none", causal: bool = False, group: int = 1, head: int = 8, rows: int = 5
) -> Node:
    """Two batches of 4 heads, as many queries as keys, in one packed tensor."""
    row = (4 + 2 * (4 // group)) * head
    batch = rows * row
    key, last = 4 * head, (4 + 4 // group) * head
    op = FusedAttention(
        head_size=head,
        scale=0.5,
        sizes=(2, 4, rows, rows),
        query=HeadAccess(0, batch, head, row),
        key=HeadAccess(key, batch, head, row),
        value=HeadAccess(last, batch, head, row),
        out=HeadAccess(0, rows * 4 * head, head, 4 * head),
        shape=(2, rows, 4 * head),
        operands=((2, rows, row), (2, rows, row), (2, rows, row), (2, 1, rows, rows)),
        mask=mask,
        mask_access=HeadAccess(0, rows * rows, 0, rows if mask == "full" else 0),
        causal=causal,
        group=group,
    )
    if mask == "none":
        op = dataclasses.replace(op, operands=op.operands[:3])
    packed = value("qkv", 2, rows, row)
    masks = [] if mask == "none" else [value("mask", 2, 1, rows, rows)]
    return Node(op, [packed, packed, packed, *masks], [value("y", 2, rows, 4 * head)])


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device would answer, for every layer."""
    monkeypatch.setattr(cublaslt_gemm, "heuristics", lambda call, sizes, target: [ALGORITHM])
    for module in (cudnn_convolution, cudnn_attention):
        monkeypatch.setattr(module, "engines", lambda call, sizes, target, most=6: [ENGINE])


def offered(tactic: Any, node: Node) -> list[Candidate]:
    answer = tactic.offers(node, {}, TARGET)
    assert not isinstance(answer, Refusal), answer.reason
    return list(answer)


def emit(candidate: Candidate, node: Node) -> tuple[ProgramBuilder, LibraryStep]:
    builder = ProgramBuilder(Graph())
    for item in {id(v): v for v in (*node.inputs, *node.outputs) if v is not None}.values():
        if item.constant is None:
            builder.set_slot(item, builder.add_slot(Slot(item.type, "arena")))
    candidate.emit(builder, node, builder.layer(node, candidate.tactic, candidate.choice))
    (step,) = builder.steps
    assert isinstance(step, LibraryStep)
    json.dumps(step.call)
    return builder, step


def arrays(builder: ProgramBuilder, node: Node) -> tuple[dict[int, Array], list[Array]]:
    """Buffers by slot, filled; and the node's inputs."""
    buffers: dict[int, Array] = {}
    for index, slot in enumerate(builder.slots):
        if slot.place == "weight":
            packed = builder.packed[slot.name]
            constants = [source.constant for source in packed.sources]
            buffers[index] = apply(packed.recipe, [c for c in constants if c is not None])
    inputs = []
    for item in node.inputs:
        assert item is not None
        if item.constant is None and builder.slot(item) not in buffers:
            shape = [int(dim) for dim in item.tensor.dims]  # type: ignore[arg-type]
            made = RNG.standard_normal(shape).astype(item.tensor.dtype.numpy)
            buffers[builder.slot(item)] = made
        inputs.append(item.constant if item.constant is not None else buffers[builder.slot(item)])
    y = node.outputs[0]
    shape = [int(dim) for dim in y.tensor.dims]  # type: ignore[arg-type]
    buffers[builder.slot(y)] = np.full(shape, np.nan, y.tensor.dtype.numpy)
    return buffers, inputs


def compare(node: Node, inputs: list[Array], result: Array, tolerance: float = 3e-3) -> None:
    """Against the meaning over exact copies in float32, so that only the last rounding counts."""
    op = node.op
    if isinstance(op, FusedAttention):
        expected = op.meaning(*(item.astype(np.float32) for item in inputs))
    else:
        wide = [item.astype(np.float32) for item in inputs[:2]]
        expected = op.meaning(*wide, *inputs[2:])
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def run_cublaslt(node: Node) -> None:
    (candidate,) = offered(CublasLtGemm(), node)
    assert CublasLtGemm().restore(node, candidate.choice, TARGET) is not None
    builder, step = emit(candidate, node)
    buffers, inputs = arrays(builder, node)
    assert [item.writes for item in step.operands] == [False] * (len(step.operands) - 1) + [True]
    model = ColumnMajorModel(buffers)
    wanted = MatmulCall.from_json(step.call)
    sizes = MatmulSizes.from_list([int(size) for size in step.sizes])  # type: ignore[arg-type]
    descriptors = Descriptors(model, wanted, sizes)  # type: ignore[arg-type]
    prepared = PreparedMatmul(model, 1, descriptors)  # type: ignore[arg-type]
    prepared.run([item.slot for item in step.operands], 0, 512, 0)
    assert model.ran == ALGORITHM.algorithm
    compare(node, inputs, buffers[step.operands[-1].slot])
    held = [buffers[item.slot].nbytes for item in step.operands]
    assert list(prepared.operand_nbytes) == held


@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("transpose_b", [False, True])
def test_cublaslt_computes_a_product(name: str, transpose_b: bool) -> None:
    run_cublaslt(matmul(name, (5, 6), (7, 6) if transpose_b else (6, 7), transpose_b, weight=True))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 5, 6), (6, 7)),
        ((2, 3, 5, 6), (1, 1, 6, 7)),
        ((2, 3, 5, 6), (2, 3, 6, 7)),
        ((5, 6), (3, 6, 7)),
        ((1, 5, 6), (3, 6, 7)),
    ],
)
def test_cublaslt_computes_batches(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    run_cublaslt(matmul("bias, residual, relu", a, b, False))


@pytest.mark.parametrize("name", EPILOGUES)
def test_cublaslt_computes_a_1x1_convolution(name: str) -> None:
    run_cublaslt(convolution(name, taps=1, pads=(0, 0, 0, 0)))


#: The stream that the handle is left on.
REST = 5


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    model = frontend_model(found)
    monkeypatch.setattr(cudnn_graph, "frontend", lambda: model)
    return found


def run_cudnn(tactic: Any, node: Node, count: int, streams: list[int]) -> None:
    found = offered(tactic, node)
    assert len(found) == count
    library = CudnnGraphs(REST)
    for candidate in found:
        stored = json.loads(json.dumps(candidate.choice))
        restored = tactic.restore(node, stored, TARGET)
        assert restored is not None and restored.choice == candidate.choice
        builder, step = emit(restored, node)
        buffers, inputs = arrays(builder, node)
        sizes = [int(size) for size in step.sizes]  # type: ignore[arg-type]
        written = json.loads(json.dumps(step.call))
        prepared = library.prepare(written, sizes, TARGET)  # type: ignore[arg-type]
        assert prepared.workspace_nbytes == 512
        left = [
            buffers[item.slot].nbytes - int(item.offset) * buffers[item.slot].itemsize  # type: ignore[arg-type]
            for item in step.operands
        ]
        reached = list(prepared.operand_nbytes)
        assert all(need <= rest for need, rest in zip(reached, left, strict=True))
        # The last head of the values ends where the packed tensor does.
        assert reached[-1] == left[-1] and reached[2] == left[2]
        addresses = [
            buffers[item.slot].ctypes.data + int(item.offset) * buffers[item.slot].itemsize  # type: ignore[arg-type]
            for item in step.operands
        ]
        prepared.run(addresses, 0, 1024, 77)
        assert streams[-2:] == [77, REST]
        compare(node, inputs, buffers[step.operands[-1].slot])
        prepared.close()
        with pytest.raises(KernelError, match="closed"):
            prepared.run(addresses, 0, 1024, 77)
    library.close()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_cudnn_computes_a_convolution(name: str, streams: list[int]) -> None:
    orders = 2 if sorted(CONVOLUTIONS[name][1]) == ["column", "full"] and "then" not in name else 1
    node = convolution(name)
    run_cudnn(CudnnConvolution(), node, orders, streams)


@pytest.mark.parametrize(
    "shape",
    [
        {"channels": (16, 16), "group": 2},
        {"channels": (8, 8), "group": 8},
        {"strides": (2, 1), "pads": (0, 1, 2, 1)},
        {"dilations": (2, 1), "pads": (2, 0, 1, 1)},
        {"taps": 1, "pads": (0, 0, 0, 0)},
    ],
)
def test_cudnn_computes_convolutions_of_all_shapes(
    shape: dict[str, Any], streams: list[int]
) -> None:
    run_cudnn(CudnnConvolution(), convolution("relu", **shape), 1, streams)


@pytest.mark.parametrize(
    ("mask", "causal", "group"),
    [("none", False, 1), ("none", True, 1), ("full", False, 1), ("none", False, 2)],
)
def test_cudnn_computes_attention(mask: str, causal: bool, group: int, streams: list[int]) -> None:
    run_cudnn(CudnnAttention(), attention(mask, causal, group), 1, streams)


def refused(tactic: Any, node: Node, target: Any = TARGET) -> str:
    answer = tactic.offers(node, {}, target)
    assert isinstance(answer, Refusal)
    assert tactic.restore(node, ALGORITHM.to_json(), target) is None
    assert tactic.restore(node, {"order": [], **ENGINE.to_json()}, target) is None
    return answer.reason


def changed(node: Node, **fields: Any) -> Node:
    op = dataclasses.replace(node.op, **fields)  # type: ignore[type-var]
    return Node(op, node.inputs, node.outputs)


def test_what_the_libraries_cannot_do_is_refused_with_its_reason() -> None:
    exact = _Activation()
    exact.approximate = "none"
    product = matmul("bias", (5, 6), (6, 7), False)
    gemm, conv, heads = CublasLtGemm(), CudnnConvolution(), CudnnAttention()
    cpu = CpuTarget("cpu", "avx2", 2)
    erf_form = cast(gelu(exact, BIASED), F16)
    assert "NVIDIA" in refused(gemm, product, cpu)
    assert "no epilogue" in refused(gemm, changed(product, epilogue=erf_form))
    assert "no epilogue" in refused(gemm, changed(product, epilogue=hard_swish(None, BIASED)))
    assert "one bias" in refused(gemm, changed(product, kinds=("row",)))
    assert "1x1" in refused(gemm, convolution("bias"))
    assert "broadcast" in refused(gemm, matmul("sum", (2, 3, 5, 6), (2, 1, 6, 7), False))
    symbolic = Node(
        product.op,
        [value("a", symbol("n"), 6), *product.inputs[1:]],
        [value("y", symbol("n"), 7)],
    )
    assert "symbolic" in refused(gemm, symbolic)
    wide = Node(product.op, product.inputs, [value("y", 5, 7, dtype=F32)])
    assert "result's float32" in refused(gemm, wide)
    assert "NVIDIA" in refused(conv, convolution("bias"), cpu)
    assert "multiples of 8" in refused(conv, convolution("bias", channels=(3, 8)))
    assert "multiples of 8" in refused(conv, convolution("bias", channels=(16, 16), group=4))
    assert "NHWC" in refused(conv, changed(convolution("bias"), input_layout="NCHW"))
    assert "no word" in refused(
        conv, changed(convolution("bias"), epilogue=hard_swish(None, BIASED))
    )
    assert "NVIDIA" in refused(heads, attention(), cpu)
    assert "per key" in refused(heads, attention("key"))
    assert "heads of 4" in refused(heads, attention(head=4))


def test_without_a_device_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from engine.cuda import libraries

    other = describe("cuda:sm80")
    monkeypatch.setattr(libraries, "describe", lambda name: other)
    for tactic, node in (
        (CublasLtGemm(), matmul("bias", (5, 6), (6, 7), False)),
        (CudnnConvolution(), convolution("bias")),
        (CudnnAttention(), attention()),
    ):
        answer = tactic.offers(node, {}, TARGET)  # type: ignore[attr-defined]
        assert isinstance(answer, Refusal) and "cuda.sm80.a100" in answer.reason


def test_an_engine_that_the_library_lacks_is_named(streams: list[int]) -> None:
    node = convolution("bias")
    (candidate,) = offered(CudnnConvolution(), node)
    _, step = emit(candidate, node)
    sizes, call = list(step.sizes), dict(step.call)
    library = CudnnGraphs()

    def prepare(**choice: Any) -> None:
        changed = {**call, "choice": {**ENGINE.to_json(), **choice}}
        library.prepare(changed, sizes, TARGET)  # type: ignore[arg-type]

    prepare()
    for choice, words in (
        ({"engine": 13}, "engine 13 .*is not supported.*build the plan again"),
        ({"knobs": {"WHEELS": 4}}, "no knob 'WHEELS'"),
        ({"workspace_nbytes": 100}, "512 bytes of workspace"),
        ({"version": 90000}, "90000.*91900.*nvidia-cudnn-cu13"),
    ):
        with pytest.raises(KernelError, match=words):
            prepare(**choice)


@pytest.mark.parametrize("node", [convolution("silu, then residual"), attention("full")])
def test_a_damaged_call_of_cudnn_is_refused(node: Node) -> None:
    tactic: Any = CudnnConvolution() if isinstance(node.op, FusedConv) else CudnnAttention()
    _, step = emit(offered(tactic, node)[0], node)
    sizes = [int(size) for size in step.sizes]  # type: ignore[arg-type]
    read_call(step.call, sizes)
    damaged = [{key: item for key, item in step.call.items() if key != name} for name in step.call]
    damaged += [{**step.call, name: {"a": [None]}} for name in step.call]
    damaged.append({**step.call, "more": 1})
    for fields in damaged:
        with pytest.raises(PlanCorruptError, match="cudnn"):
            read_call(fields, sizes)
    with pytest.raises(PlanCorruptError, match="other sizes"):
        read_call(step.call, [sizes[0] + 1, *sizes[1:]])
