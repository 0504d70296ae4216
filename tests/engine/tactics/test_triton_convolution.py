"""Triton convolutions: every way of reading the input means what the operator means."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cuda.kernel import Compiled
from engine.cuda.triton_compiler import compile_triton
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.lower.placement import Placement
from engine.ops.expression import Expression, call, cast, constant, load
from engine.ops.fused import FusedConv
from engine.plan.device import LaunchStep, TensorMap
from engine.plan.structure import Symbol
from engine.tactics.tactic import Candidate, Refusal, Tactic
from engine.tactics.triton_convolution import TritonConvolution
from engine.tactics.triton_stem import TritonStem
from engine.tactics.triton_window import strides_fit
from engine.target import CudaTarget, describe
from engine.templates.convolution import Window
from engine.templates.convolution_tiles import Extent, boxes, shared_nbytes
from tests.cuda_layer import Feed, _data, feed, layer
from tests.cuda_layer import constant as weight
from tests.triton_layer import emit, interpret_candidate

pytest.importorskip("triton")

HALF, FLOAT = DType.FLOAT16, DType.FLOAT32
Case = dict[str, Any]


def target(name: str = "cuda:sm90") -> CudaTarget:
    found = describe(name)
    assert isinstance(found, CudaTarget)
    return found


def epilogue(full: bool, dtype: DType) -> tuple[Expression, tuple[str, ...]]:
    """Bias, perhaps a residual, ReLU: wide inside, rounded once."""
    value = call("add", load(0, FLOAT), cast(load(1, dtype), FLOAT))
    if full:
        value = call("add", value, cast(load(2, dtype), FLOAT))
    value = call("max", value, constant(0.0, FLOAT))
    return cast(value, dtype), ("column", "full")[: 1 + full]


def convolution(
    shape: tuple[int, ...],
    outputs: int,
    taps: tuple[int, int] = (3, 3),
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, ...] | None = None,
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
    layout: str = "NHWC",
    full: bool = True,
    dtype: DType = HALF,
    batch: Any = None,
) -> tuple[Graph, Node]:
    """A layer over NHWC sizes ``shape`` with data; ``batch`` makes the first size a symbol."""
    generator = np.random.default_rng(3)
    expression, kinds = epilogue(full, dtype)
    padded = (taps[0] // 2, taps[1] // 2) * 2 if pads is None else pads
    op = FusedConv(strides, padded, dilations, group, layout, expression, kinds)
    depth = shape[3] // group * taps[0] * taps[1]

    def data(*sizes: int, scale: float = 1.0) -> Any:
        return (generator.standard_normal(sizes) * scale).astype(dtype.numpy)

    x = data(*shape)
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if layout == "NCHW" else x
    filters = data(outputs, shape[3] // group, *taps, scale=depth**-0.5)
    result = op.output_shape(x.shape, filters.shape)
    inputs: list[Feed | None] = [
        feed(x, (batch, *x.shape[1:]) if batch is not None else None),
        weight(filters),
        weight(data(outputs)),
    ]
    if full:
        sizes = (batch, *result[1:]) if batch is not None else None
        inputs.append(feed(data(*(int(d) for d in result)), sizes))  # type: ignore[call-overload]
    return layer(op, inputs)


def wanted(node: Node) -> Any:
    """The meaning with float32 sums."""
    arrays = [_data(value).copy() for value in node.inputs if value is not None]
    arrays[:2] = [array.astype(np.float32) for array in arrays[:2]]
    return node.op.meaning(*arrays).astype(np.float32)


def offered(tactic: Tactic, node: Node, name: str = "cuda:sm90", **point: int) -> list[Candidate]:
    answer = tactic.offers(node, point, target(name))
    assert not isinstance(answer, Refusal), answer
    assert 2 <= len(answer) <= 20
    return list(answer)


def kinds(candidates: list[Candidate]) -> list[Candidate]:
    """The first candidate of each way of computing."""
    found: dict[tuple[Any, ...], Candidate] = {}
    for item in candidates:
        choice = item.choice
        key = (choice["method"], choice["splits"] > 1, choice["persistent"], choice["swapped"])
        found.setdefault(key, item)
    return list(found.values())


def check(tactic: Tactic, graph: Graph, node: Node, name: str = "cuda:sm90") -> set[str]:
    """Every way of computing agrees with the meaning; returns the methods."""
    expected = wanted(node)
    limit = 0.004 if node.outputs[0].tensor.dtype is HALF else 0.04
    chosen = kinds(offered(tactic, node, name))
    for item in chosen:
        found = interpret_candidate(graph, node, item).astype(np.float32)
        assert np.abs(found - expected).max() <= limit, dict(item.choice)
    return {str(item.choice["method"]) for item in chosen}


CASES: dict[str, Case] = {
    "tails": {"shape": (2, 7, 9, 24), "outputs": 40},
    "stride": {"shape": (1, 8, 12, 32), "outputs": 64, "strides": (2, 2)},
    "stride of columns": {"shape": (1, 6, 12, 16), "outputs": 64, "strides": (1, 2)},
    "odd sizes by a stride": {"shape": (1, 9, 7, 32), "outputs": 64, "strides": (2, 2)},
    "1x1 by a stride": {"shape": (1, 9, 7, 40), "outputs": 64, "taps": (1, 1), "strides": (2, 2)},
    "dilation": {
        "shape": (1, 9, 10, 16),
        "outputs": 32,
        "dilations": (2, 1),
        "pads": (1, 0, 2, 3),
    },
    "groups": {"shape": (1, 6, 6, 64), "outputs": 128, "group": 2},
    "no residual": {"shape": (1, 5, 5, 32), "outputs": 64, "full": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", ["cuda:sm80", "cuda:sm90"])
def test_every_method_means_what_the_operator_means(case: Case, name: str) -> None:
    graph, node = convolution(**case)
    methods = check(TritonConvolution(), graph, node, name)
    # A stride over odd sizes would show what lies outside of the image through a tensor map.
    odd = case["shape"] == (1, 9, 7, 32)
    assert methods == ({"gather"} if odd or name == "cuda:sm80" else {"boxes", "gather"})


@pytest.mark.parametrize(
    "case",
    [
        {"shape": (1, 17, 15, 3), "outputs": 32, "taps": (7, 7), "strides": (2, 2)},
        {
            "shape": (2, 16, 16, 3),
            "outputs": 48,
            "taps": (8, 8),
            "strides": (8, 8),
            "pads": (0,) * 4,
        },
        {"shape": (1, 9, 12, 5), "outputs": 24, "strides": (2, 2), "pads": (0, 0, 1, 1)},
        {"shape": (1, 9, 12, 3), "outputs": 64},
    ],
    ids=["7x7", "patches", "uneven pads", "3x3"],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["cuda:sm80", "cuda:sm90"])
def test_first_convolutions(case: Case, layout: str, name: str) -> None:
    graph, node = convolution(**case, layout=layout)
    assert check(TritonConvolution(), graph, node, name) == {"flat"}
    expected = {"gather"} if name == "cuda:sm80" else {"boxes", "gather"}
    assert check(TritonStem(), graph, node, name) <= expected


def test_persistent_blocks_take_several_tiles() -> None:
    graph, node = convolution((2, 24, 16, 16), 32)
    small = replace(target(), multiprocessors=1)
    answer = TritonConvolution().offers(node, {}, small)
    assert not isinstance(answer, Refusal)
    item = next(item for item in answer if item.choice["persistent"])
    (step,) = emit(graph, node, item).steps
    assert isinstance(step, LaunchStep)
    assert step.grid[0] in range(1, 2 * 24 * 16 // math.prod(item.choice["box"]))
    found = interpret_candidate(graph, node, item).astype(np.float32)
    assert np.abs(found - wanted(node)).max() <= 0.004


@pytest.mark.parametrize(("offset", "method"), [(8, TensorMap), (4, None)])
def test_input_residual_and_result_may_be_slices(offset: int, method: type | None) -> None:
    """A slice that tensor maps cannot address is gathered."""
    graph, node = convolution((1, 6, 5, 16), 32)
    wide = graph.value("wide", TensorType(HALF, (1, 6, 5, 104)))
    values = (node.inputs[0], node.inputs[3], node.outputs[0])
    placed = {
        id(value): Placement(wide, offset + start, 104) for value, start in zip(values, (0, 16, 48))
    }
    for item in kinds(offered(TritonConvolution(), node)):
        assert item.strided
        (step,) = emit(graph, node, item, placed=placed).steps
        assert isinstance(step, LaunchStep)
        mapped = any(isinstance(parameter, TensorMap) for parameter in step.parameters)
        assert mapped == (method is TensorMap and item.choice["method"] == "boxes")
        found = interpret_candidate(graph, node, item, placed=placed).astype(np.float32)
        assert np.abs(found - wanted(node)).max() <= 0.004


def test_a_result_that_no_map_addresses_is_stored_by_pointers() -> None:
    graph, node = convolution((1, 6, 5, 16), 32)
    wide = graph.value("wide", TensorType(HALF, (1, 6, 5, 60)))
    placed = {id(node.outputs[0]): Placement(wide, 4, 60)}
    for item in kinds(offered(TritonConvolution(), node)):
        found = interpret_candidate(graph, node, item, placed=placed).astype(np.float32)
        assert np.abs(found - wanted(node)).max() <= 0.004


def test_operands_per_pixel_and_alone() -> None:
    """The epilogue may read one value per pixel, and one in all; the result may be float32."""
    generator = np.random.default_rng(5)
    value = call("add", load(0, FLOAT), cast(load(1, HALF), FLOAT))
    value = call("multiply", value, load(2, FLOAT))
    op = FusedConv((1, 1), (1, 1, 1, 1), epilogue=value, kinds=("row", "scalar"))

    def data(*sizes: int) -> Any:
        return generator.standard_normal(sizes).astype(np.float16)

    inputs: list[Feed | None] = [
        feed(data(2, 5, 7, 32)),
        weight(data(64, 32, 3, 3)),
        feed(data(2, 5, 7, 1)),
        feed(np.array([0.125], np.float32)),
    ]
    graph, node = layer(op, inputs)
    for item in kinds(offered(TritonConvolution(), node)):
        found = interpret_candidate(graph, node, item)
        assert found.dtype == np.float32
        assert np.abs(found - wanted(node)).max() <= 1e-4


def test_one_kernel_serves_every_batch() -> None:
    batch = symbol("batch")
    symbols = (Symbol("batch", 1, (3,), 4, ("input", "x0", 0)),)
    graph, node = convolution((3, 7, 7, 64), 64, batch=batch)
    for item in kinds(offered(TritonConvolution(), node, batch=1)):
        found = interpret_candidate(graph, node, item, {"batch": 3}, symbols=symbols)
        assert np.abs(found.astype(np.float32) - wanted(node)).max() <= 0.004
        builder = emit(graph, node, item, symbols=symbols)
        counters = [slot for slot in builder.slots if slot.place == "zeros"]
        assert len(counters) == (item.choice["splits"] > 1)


def test_a_batch_without_bound_is_not_split() -> None:
    graph, node = convolution((3, 7, 7, 64), 64, batch=symbol("batch"))
    item = next(i for i in offered(TritonConvolution(), node, batch=1) if i.choice["splits"] > 1)
    builder = emit(graph, node, item, symbols=(Symbol("batch", 1, (), None, ("data",)),))
    assert not [slot for slot in builder.slots if slot.place == "zeros"]


@pytest.mark.parametrize(
    ("case", "name", "reason"),
    [
        ({"shape": (1, 5, 5, 32), "outputs": 32}, "cpu", "no NVIDIA GPU"),
        ({"shape": (1, 5, 5, 32), "outputs": 32, "dtype": FLOAT}, "cuda:sm90", "float32"),
        ({"shape": (1, 5, 5, 32), "outputs": 32, "taps": (1, 1)}, "cuda:sm90", "matrix product"),
        ({"shape": (1, 5, 5, 32), "outputs": 32, "group": 32}, "cuda:sm90", "groups"),
    ],
)
def test_refusals_say_why(case: Case, name: str, reason: str) -> None:
    _, node = convolution(**case)
    answer = TritonConvolution().offers(node, {}, describe(name))
    assert isinstance(answer, Refusal)
    assert reason in answer.reason
    stem = TritonStem().offers(node, {}, describe(name))
    assert isinstance(stem, Refusal)


@pytest.mark.parametrize(
    ("images", "size", "channels"), [(1, 7, 512), (32, 14, 256), (128, 56, 64)]
)
@pytest.mark.parametrize("name", ["cuda:sm80", "cuda:sm90", "cuda:sm100"])
def test_what_is_offered_fits(images: int, size: int, channels: int, name: str) -> None:
    """The first candidate keeps the device busy, none passes its shared memory."""
    from engine.templates.convolution_tiles import tiles

    window = Window(channels, channels, 1, (3, 3), (1, 1), (1, 1), (1, 1), True)
    extent, device = Extent(images, size, size), target(name)
    found = tiles(window, extent, ["boxes", "gather"], device, may_split=True)
    assert len({str(tile) for tile in found}) == len(found) >= 8
    for tile in found:
        assert shared_nbytes(tile, 0) <= device.shared_nbytes
    first = found[0]
    blocks = -(-extent.pixels // first.rows) * -(-channels // first.columns) * first.splits
    assert blocks >= device.multiprocessors // 2


@pytest.mark.parametrize("rows", [16, 64, 128, 256])
def test_boxes_waste_little_where_maps_are_multiples(rows: int) -> None:
    images, high, wide = boxes(Extent(32, 56, 56), rows)[0]
    assert images * high * wide == rows
    assert 32 % images == 56 % high == 56 % wide == 0


def test_strides_fit_where_no_tap_leaves_the_image() -> None:
    three = Window(64, 64, 1, (3, 3), (2, 2), (1, 1), (1, 1), True)
    one = Window(64, 64, 1, (1, 1), (2, 2), (1, 1), (0, 0), False)
    size = symbol("n")
    assert strides_fit(three, 56, 28) and strides_fit(three, 2 * size, 8)
    assert not strides_fit(three, 7, 8) and not strides_fit(three, size, 8)
    assert strides_fit(one, 7, size)


PATCHES: Case = {
    "shape": (1, 64, 64, 3),
    "outputs": 128,
    "taps": (16, 16),
    "strides": (16, 16),
    "pads": (0,) * 4,
    "layout": "NCHW",
    "full": False,
}
COMPILED: dict[str, tuple[Callable[[], Tactic], Case]] = {
    "3x3": (TritonConvolution, {"shape": (32, 14, 14, 256), "outputs": 256}),
    "split": (TritonConvolution, {"shape": (1, 7, 7, 512), "outputs": 512, "full": False}),
    "stride": (
        TritonConvolution,
        {"shape": (8, 28, 28, 128), "outputs": 128, "strides": (2, 2), "full": False},
    ),
    "stem": (
        TritonStem,
        {
            "shape": (2, 64, 64, 3),
            "outputs": 64,
            "taps": (7, 7),
            "strides": (2, 2),
            "layout": "NCHW",
            "full": False,
        },
    ),
    "bfloat16": (
        TritonConvolution,
        {"shape": (4, 14, 14, 64), "outputs": 64, "dtype": DType.BFLOAT16},
    ),
    "flat": (TritonConvolution, PATCHES),
    "patches": (TritonStem, PATCHES),
}


@pytest.mark.parametrize("name", ["cuda:sm80", "cuda:sm90", "cuda:sm100"])
@pytest.mark.parametrize("kind", COMPILED)
def test_kernels_compile_without_spilling(kind: str, name: str, tmp_path: Path) -> None:
    make, case = COMPILED[kind]
    graph, node = convolution(**case)
    candidates = offered(make(), node, name)
    first = {item.choice["method"]: item for item in reversed(candidates)}
    for item in first.values() if kind == "3x3" else candidates[:1]:
        for kernel in emit(graph, node, item).device_kernels:
            result = compile_triton(kernel, target(name).capability)
            assert isinstance(result, Compiled), result
            assert result.spilled_nbytes == 0
            assert result.shared_nbytes <= target(name).shared_nbytes
            if kernel.entry == "convolution":
                assert result.shared_nbytes <= shared_nbytes_of(item)
            machine_code(result, tmp_path, kernel.entry, name)


def shared_nbytes_of(item: Candidate) -> int:
    from engine.templates.convolution import Tile

    fields = {key: value for key, value in item.choice.items() if key != "block"}
    return shared_nbytes(Tile(**{**fields, "box": tuple(fields["box"])}), 1)


def machine_code(result: Compiled, folder: Path, entry: str, name: str) -> None:
    """Matrix units are used, and nothing is read before the kernels in front are done."""
    import triton

    path = folder / "kernel.cubin"
    path.write_bytes(result.image)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    done = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True)
    text = done.stdout
    unit = {"cuda:sm80": r"\bHMMA", "cuda:sm90": r"\bHGMMA", "cuda:sm100": r"\bUTCHMMA"}[name]
    assert entry != "convolution" or re.search(unit, text), "no matrix unit is used"
    reads = [match.start() for match in re.finditer(r"\b(UTMALDG|LDGSTS|LDG)\b", text)]
    waits = text.find("ACQBULK")
    assert (waits < 0) == (name == "cuda:sm80")
    assert reads and waits < min(reads)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*CASES, *COMPILED])
def test_on_the_device(kind: str) -> None:
    """Every way of computing agrees with the meaning."""
    make, case = COMPILED.get(kind, (TritonConvolution, CASES.get(kind, {})))
    graph, node = convolution(**case)
    answer = make().offers(node, {}, describe("cuda"))
    assert not isinstance(answer, Refusal), answer
    assert not measured(graph, node, kinds(list(answer)), times=0)[1]


#: Images, map, input and output channels, taps, stride.
LAYERS = {
    "b1 7x7": (1, 7, 512, 512, 3, 1),
    "b1 56x56": (1, 56, 64, 64, 3, 1),
    "b8 14x14": (8, 14, 256, 256, 3, 1),
    "b32 56x56": (32, 56, 64, 64, 3, 1),
    "b32 28x28": (32, 28, 128, 128, 3, 1),
    "b32 14x14": (32, 14, 256, 256, 3, 1),
    "b32 7x7": (32, 7, 512, 512, 3, 1),
    "b32 by 2": (32, 56, 128, 128, 3, 2),
    "b32 1x1 by 2": (32, 56, 256, 512, 1, 2),
    "b32 stem": (32, 224, 3, 64, 7, 2),
    "U-Net": (1, 256, 64, 64, 3, 1),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_networks_on_the_device(name: str) -> None:
    """Every candidate that compiles is right; prints their times, the best first."""
    images, size, channels, outputs, taps, stride = LAYERS[name]
    layout = "NCHW" if channels == 3 else "NHWC"
    graph, node = convolution(
        (images, size, size, channels),
        outputs,
        (taps, taps),
        strides=(stride, stride),
        layout=layout,
        full=False,
    )
    tactics: tuple[Tactic, ...] = (TritonConvolution(), TritonStem())
    answers = [tactic.offers(node, {}, describe("cuda")) for tactic in tactics]
    found = [item for answer in answers if not isinstance(answer, Refusal) for item in answer]
    times, wrong = measured(graph, node, found, times=20)
    for microseconds, text in sorted(times):
        print(f"{name}: {microseconds:8.2f} us  {text}")
    assert times
    assert not wrong


def measured(
    graph: Graph, node: Node, candidates: list[Candidate], *, times: int
) -> tuple[list[tuple[float, str]], list[str]]:
    """The times of candidates, and those whose results are wrong; all are compiled at once.

    One that does not compile takes for ever, and says why.
    """
    from engine.cuda.compile import compile_kernels
    from engine.cuda.hardware import CudaDevice
    from tests.cuda_device_layer import run_on_device

    device = CudaDevice(0)
    expected = wanted(node)
    # Two roundings of nearly equal sums may differ by one step of the result's type.
    step = 2.0**-10 if node.outputs[0].tensor.dtype is HALF else 2.0**-7
    limit = 4 * step + 2 * step * np.abs(expected)
    kernels = {
        kernel.digest: kernel
        for item in candidates
        for kernel in emit(graph, node, item).device_kernels
    }
    answers = compile_kernels(list(kernels.values()), device.target.capability)
    results = dict(zip(kernels, answers))
    found, wrong = [], []
    for item in candidates:
        needed = [results[kernel.digest] for kernel in emit(graph, node, item).device_kernels]
        built = [result for result in needed if isinstance(result, Compiled)]
        text = f"{item.tactic} {dict(item.choice)}"
        if len(built) < len(needed):
            failed = [str(item) for item in needed if not isinstance(item, Compiled)]
            found.append((math.inf, f"{text}: {failed}"))
            continue
        (output,), microseconds = run_on_device(
            graph, node, item, {}, device, build=lambda _, built=built: built, times=times
        )
        error = np.abs(output.astype(np.float32) - expected)
        if not (error <= limit).all():
            wrong.append(f"{text}: off by {error.max()}")
        found.append((microseconds, text))
    return found, wrong
