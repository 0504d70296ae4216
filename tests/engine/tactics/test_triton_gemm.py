"""Products by Triton: every style computes what its node means, in the interpreter."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.cuda.triton_compiler import compile_triton
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim, symbol
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.lower.placement import Placement
from engine.ops.expression import Expression, call, cast, constant, load
from engine.ops.fused import FusedConv, FusedMatMul, apply_epilogue
from engine.ops.operator import Operator
from engine.plan.device import LaunchStep, TensorMap
from engine.plan.structure import Slot, Symbol
from engine.tactics.tactic import Candidate, Refusal
from engine.tactics.triton_gemm import TritonGemm, emit_product
from engine.target import CudaTarget, describe
from engine.templates.gemm import Tile
from tests.cuda_layer import constant as constant_feed
from tests.cuda_layer import emitted, feed
from tests.cuda_layer import layer as cuda_layer
from tests.triton_layer import interpret_candidate
from tests.triton_shim import run_layer

FLOAT, HALF = DType.FLOAT32, DType.FLOAT16
TARGET = describe("cuda:sm90")
assert isinstance(TARGET, CudaTarget)
TACTIC = TritonGemm()


def wide(position: int, dtype: DType = HALF) -> Expression:
    return cast(load(position, dtype), FLOAT)


def gelu(x: Expression) -> Expression:
    half, root = constant(0.5, FLOAT), constant(0.70710678, FLOAT)
    inner = call("add", constant(1.0, FLOAT), call("erf", call("multiply", x, root)))
    return call("multiply", call("multiply", x, half), inner)


SUM = load(0, FLOAT)
PLAIN = (cast(SUM, HALF), ())
BIAS = (cast(call("add", SUM, wide(1)), HALF), ("column",))
GELU = (cast(gelu(call("add", SUM, wide(1))), HALF), ("column",))
RESIDUAL = (
    cast(call("max", call("add", call("add", SUM, wide(1)), wide(2)), constant(0.0, FLOAT)), HALF),
    ("column", "full"),
)
SCALED = (
    cast(call("multiply", call("add", call("multiply", SUM, wide(1)), wide(2)), wide(3)), HALF),
    ("row", "column", "scalar"),
)


def layer(op: Operator, feeds: Sequence[Any], constants: Sequence[int], rows: Dim | None) -> Graph:
    """A graph of one node; the first axis of A and of operands as high is ``rows`` if given."""
    graph = Graph("layer")
    values = []
    for index, array in enumerate(feeds):
        if index in constants:
            values.append(graph.constant(f"c{index}", array))
            continue
        shape: tuple[Dim, ...] = tuple(array.shape)
        if rows is not None and index != 1 and shape[:1] == feeds[0].shape[:1]:
            shape = (rows, *shape[1:])
        values.append(Value(f"x{index}", TensorType(DType.of(array.dtype), shape)))
        graph.inputs.append(values[-1])
    output = Value("y", TensorType(FLOAT, None))
    node = graph.append(Node(op, values, [output], name="layer"))
    infer_node(graph, node)
    graph.outputs, graph.output_names = [output], ["y"]
    return graph


def random(*shape: int, seed: int = 0, dtype: Any = np.float16) -> Any:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def extras(kinds: Sequence[str], m: int, n: int, dtype: Any = np.float16) -> list[Any]:
    shapes = {"column": (n,), "row": (m, 1), "full": (m, n), "scalar": (1,)}
    return [random(*shapes[kind], seed=i + 5, dtype=dtype) for i, kind in enumerate(kinds)]


def with_tile(tile: Tile, target: CudaTarget = TARGET) -> Candidate:
    return Candidate(
        "triton.gemm",
        tile.to_json(),
        lambda builder, node, layer: emit_product(builder, node, layer, tile, target),
    )


def check(
    op: FusedMatMul | FusedConv,
    feeds: list[Any],
    tile: Tile,
    *,
    constants: Sequence[int] = (1,),
    symbolic: bool = False,
    wanted: Any = None,
) -> None:
    rows = symbol("rows") if symbolic else None
    graph = layer(op, feeds, constants, rows)
    names = {f"x{i}": array for i, array in enumerate(feeds) if i not in constants}
    high = feeds[0].shape[0]
    known = [Symbol("rows", 1, (high,), 2 * high, ("input", "x0", 0))] if symbolic else []
    (found,) = run_layer(graph, with_tile(tile), names, known, {"rows": high})
    if wanted is None:
        a, b = feeds[0].astype(np.float32), feeds[1].astype(np.float32)
        sums = a @ (np.swapaxes(b, -1, -2) if op.transpose_b else b)
        wanted = apply_epilogue(op.epilogue, op.kinds, sums, feeds[2:])
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_allclose(
        found.astype(np.float32), wanted.astype(np.float32), rtol=4e-3, atol=4e-3
    )


STYLES = [
    Tile("pointers", 32, 32, 32, 4, 3),
    Tile("pointers", 16, 64, 32, 4, 3, swapped=True),
    Tile("pointers", 32, 32, 32, 4, 3, split=3, group=2),
    Tile("boxes", 64, 32, 32, 4, 3),
    Tile("boxes", 64, 32, 32, 4, 3, split=2),
    Tile("boxes", 64, 32, 32, 4, 3, ahead=True),
    Tile("pointers", 16, 32, 32, 4, 3, split=2, swapped=True, ahead=True),
    Tile("persistent", 64, 32, 32, 4, 3, programs=2),
    Tile("persistent", 64, 32, 32, 4, 3, programs=3, halves=True, group=1),
]


@pytest.mark.parametrize("tile", STYLES, ids=lambda tile: str(tile.to_json()))
@pytest.mark.parametrize("epilogue", [GELU, RESIDUAL, SCALED], ids=["gelu", "residual", "scaled"])
def test_every_style_computes_every_kind_of_epilogue_with_tails(
    tile: Tile, epilogue: tuple[Expression, tuple[str, ...]]
) -> None:
    m, n, k = 75, 72, 104
    op = FusedMatMul(True, *epilogue)
    feeds = [random(m, k), random(n, k, seed=1), *extras(epilogue[1], m, n)]
    check(op, feeds, tile, symbolic=True)


@pytest.mark.parametrize("tile", STYLES[:8:2], ids=lambda tile: str(tile.to_json()))
def test_a_constant_with_its_rows_along_k_is_transposed_once(tile: Tile) -> None:
    check(FusedMatMul(False, *BIAS), [random(40, 64), random(64, 40, seed=1), random(40)], tile)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tile", [STYLES[0], STYLES[1], STYLES[2], STYLES[3]])
def test_factors_that_are_no_constants(tile: Tile, transposed: bool) -> None:
    shape = (40, 64) if transposed else (64, 40)
    check(FusedMatMul(transposed, *PLAIN), [random(33, 64), random(*shape)], tile, constants=())


@pytest.mark.parametrize("sizes", [(5, 37, 50), (3, 101, 24), (1, 16, 7)])
@pytest.mark.parametrize("tile", [STYLES[0], STYLES[1], STYLES[2], STYLES[3], STYLES[7]])
def test_ragged_sizes_fall_to_masks(tile: Tile, sizes: tuple[int, int, int]) -> None:
    m, n, k = sizes
    check(FusedMatMul(True, *BIAS), [random(m, k), random(n, k, seed=1), random(n)], tile)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3, 20, 24), (2, 3, 24, 17)),
        ((2, 3, 20, 24), (3, 24, 17)),
        ((2, 1, 20, 24), (1, 3, 24, 17)),
        ((3, 20, 24), (1, 24, 17)),
    ],
)
def test_batches_and_their_broadcasts(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    feeds = [random(*left), random(*right, seed=1)]
    sums = feeds[0].astype(np.float32) @ feeds[1].astype(np.float32)
    feeds += [random(*sums.shape, seed=2), random(17, seed=3), random(*sums.shape[:-1], 1, seed=4)]
    total = call("multiply", call("add", call("add", SUM, wide(1)), wide(2)), wide(3))
    op = FusedMatMul(False, cast(total, HALF), ("full", "column", "row"))
    check(op, feeds, STYLES[0], constants=())


def test_float32_and_results_of_another_type() -> None:
    op = FusedMatMul(True, call("add", SUM, wide(1)), ("column",))
    feeds = [random(20, 30, dtype=np.float32), random(40, 30, dtype=np.float32), random(40)]
    check(op, feeds, STYLES[0])
    op = FusedMatMul(True, call("add", SUM, wide(1)), ("full",))
    check(op, [random(70, 64), random(40, 64, seed=1), random(70, 40)], STYLES[3])


@pytest.mark.parametrize("tile", [STYLES[0], STYLES[5], STYLES[8]])
def test_a_convolution_of_one_tap_is_a_product_over_pixels(tile: Tile) -> None:
    x, w = random(2, 5, 7, 32), random(48, 32, 1, 1, seed=1)
    op = FusedConv(epilogue=RESIDUAL[0], kinds=RESIDUAL[1])
    bias, residual = random(48, seed=2), random(2, 5, 7, 48, seed=3)
    sums = x.astype(np.float32) @ w.astype(np.float32)[:, :, 0, 0].T
    wanted = apply_epilogue(op.epilogue, op.kinds, sums, [bias, residual])
    check(op, [x, w, bias, residual], tile, wanted=wanted)


@pytest.mark.parametrize("tile", STYLES, ids=lambda tile: str(tile.to_json()))
@pytest.mark.parametrize("offset", [8, 3])
def test_slices_of_wider_tensors_are_read_and_written_in_place(tile: Tile, offset: int) -> None:
    """At 8 halves tensor maps begin on 16 bytes; at 3 they cannot, and addresses serve."""
    x, w, bias, residual = random(70, 64), random(40, 64, seed=1), random(40), random(70, 40)
    op = FusedMatMul(True, *RESIDUAL)
    feeds = [feed(x), constant_feed(w), constant_feed(bias), feed(residual)]
    graph, node = cuda_layer(op, feeds)
    wide = graph.value("wide", TensorType(HALF, (70, 208)))
    values = (node.inputs[0], node.inputs[3], node.outputs[0])
    placed = {
        id(value): Placement(wide, offset + start, 208)
        for value, start in zip(values, (0, 64, 120))
    }
    found = interpret_candidate(graph, node, with_tile(tile), placed=placed)
    sums = x.astype(np.float32) @ w.astype(np.float32).T
    wanted = apply_epilogue(op.epilogue, op.kinds, sums, [bias, residual])
    np.testing.assert_allclose(
        found.astype(np.float32), wanted.astype(np.float32), rtol=4e-3, atol=4e-3
    )
    builder = ProgramBuilder(graph, placed=placed)
    builder.set_slot(wide, builder.add_slot(Slot(wide.type, "arena")))
    with_tile(tile).emit(builder, node, 0)
    (step,) = builder.steps
    assert isinstance(step, LaunchStep)
    mapped = any(isinstance(item, TensorMap) for item in step.parameters)
    assert mapped == (offset == 8 and tile.style != "pointers")


def offers(op: Operator, feeds: list[Any], target: str, constants: Sequence[int] = (1,)) -> Any:
    return TACTIC.offers(layer(op, feeds, constants, None).nodes[0], {}, describe(target))


def test_offers_differ_and_say_why_when_there_are_none() -> None:
    feeds = [random(128, 768), random(768, 768), random(768)]
    found = offers(FusedMatMul(True, *BIAS), feeds, "cuda:sm90")
    choices = [str(candidate.choice) for candidate in found]
    assert len(set(choices)) == len(choices) >= 12
    assert {c.choice["style"] for c in found} >= {"pointers", "boxes"}
    older = offers(FusedMatMul(True, *BIAS), feeds, "cuda:sm80")
    assert {c.choice["style"] for c in older} == {"pointers"}
    assert isinstance(offers(FusedMatMul(True, *BIAS), feeds, "cpu"), Refusal)
    integers = [np.ones((4, 4), np.int8), np.ones((4, 4), np.int8)]
    refused = offers(FusedMatMul(True), integers, "cuda:sm90")
    assert isinstance(refused, Refusal) and "int8" in refused.reason
    strided = FusedConv(strides=(2, 2), epilogue=PLAIN[0])
    refused = offers(strided, [random(1, 4, 4, 8), random(8, 8, 1, 1)], "cuda:sm90")
    assert isinstance(refused, Refusal) and "stride" in refused.reason


def test_the_vocabulary_of_gpt2_is_read_in_boxes_and_stored_by_address() -> None:
    weight = np.zeros((50257, 8), np.float16)
    graph = layer(FusedMatMul(True, *PLAIN), [random(8, 8), weight], (1,), None)
    builder = ProgramBuilder(graph)
    emit_product(builder, graph.nodes[0], 0, Tile("boxes", 128, 256, 64, 8, 3), TARGET)
    (step,) = builder.steps
    assert isinstance(step, LaunchStep)
    maps = [item for item in step.parameters if isinstance(item, TensorMap)]
    assert [item.sizes for item in maps] == [(8, 8), (50257, 8)]
    assert dict(builder.device_kernels[0].signature)["y"] == "*fp16"


def kernels(
    sizes: tuple[int, int, int], epilogue: Any, target: str, count: int
) -> list[tuple[dict[str, Any], DeviceKernel]]:
    """The kernels of the first candidates for a product, with their choices."""
    m, n, k = sizes
    feeds = [np.zeros((m, k), np.float16), np.zeros((n, k), np.float16)]
    feeds += extras(epilogue[1], m, n)
    graph = layer(FusedMatMul(True, *epilogue), feeds, (1, 2), symbol("rows"))
    found = TACTIC.offers(graph.nodes[0], {"rows": m}, describe(target))
    assert not isinstance(found, Refusal)
    made = []
    for candidate in found[:count]:
        builder = ProgramBuilder(graph, [Symbol("rows", 1, (m,), m, ("input", "x0", 0))])
        candidate.emit(builder, graph.nodes[0], 0)
        made.append((dict(candidate.choice), builder.device_kernels[0]))
    return made


def machine_code(image: bytes, folder: Path) -> str:
    import triton

    (folder / "kernel.cubin").write_bytes(image)
    program = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    command = [str(program), str(folder / "kernel.cubin")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("sizes", "epilogue", "count"),
    [((128, 768, 3072), RESIDUAL, 3), ((4096, 3072, 768), GELU, 3), ((1, 1000, 2048), BIAS, 2)],
)
def test_first_candidates_compile_for_hopper_without_spills(
    sizes: tuple[int, int, int], epilogue: Any, count: int, tmp_path: Path
) -> None:
    for choice, kernel in kernels(sizes, epilogue, "cuda:sm90", count):
        found = compile_triton(kernel, (9, 0))
        assert isinstance(found, Compiled), (choice, found)
        assert found.spilled_nbytes == 0, choice
        assert found.shared_nbytes <= TARGET.shared_nbytes
        assert found.waits
        code = machine_code(found.image, tmp_path)
        if sizes[0] >= 64:
            assert "HGMMA" in code, choice
        if choice["style"] != "pointers":
            assert "UTMALDG" in code, choice
        wait = code.index("ACQBULK")  # nothing that a kernel before may write is read earlier
        reads = [code.find(name) for name in ("UTMALDG", "LDGSTS")]
        assert all(place < 0 or place > wait for place in reads), choice


@pytest.mark.parametrize(("target", "capability"), [("cuda:sm80", (8, 0)), ("cuda:sm100", (10, 0))])
def test_first_candidates_compile_for_other_architectures(
    target: str, capability: tuple[int, int], tmp_path: Path
) -> None:
    device = describe(target)
    assert isinstance(device, CudaTarget)
    for sizes, epilogue in [((197, 768, 768), RESIDUAL), ((1024, 2304, 768), BIAS)]:
        for choice, kernel in kernels(sizes, epilogue, target, 2):
            found = compile_triton(kernel, capability)
            assert isinstance(found, Compiled), (choice, found)
            assert found.spilled_nbytes == 0, choice
            assert found.shared_nbytes <= device.shared_nbytes
            code = machine_code(found.image, tmp_path)
            assert ("ACQBULK" in code) == (capability >= (9, 0)) == found.waits


def test_styles_that_ranking_puts_later_compile_too() -> None:
    m, n, k = 2048, 3072, 768
    feeds = [np.zeros((m, k), np.float16), np.zeros((n, k), np.float16), np.zeros(n, np.float16)]
    graph = layer(FusedMatMul(True, *GELU), feeds, (1, 2), None)
    for tile in [
        Tile("persistent", 128, 256, 64, 8, 3, programs=132, halves=True),
        Tile("pointers", 16, 64, 128, 4, 4, swapped=True),
        Tile("boxes", 64, 64, 128, 4, 3, split=2, ahead=True),
    ]:
        builder = ProgramBuilder(graph)
        emit_product(builder, graph.nodes[0], 0, tile, TARGET)
        found = compile_triton(builder.device_kernels[0], (9, 0))
        assert isinstance(found, Compiled), (tile, found)
        assert found.spilled_nbytes == 0, tile
        assert found.threads == 32 * tile.warps


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT32])
def test_other_types_compile(dtype: DType) -> None:
    feeds = [np.zeros((128, 256), dtype.numpy), np.zeros((256, 256), dtype.numpy)]
    graph = layer(FusedMatMul(False, cast(SUM, dtype)), feeds, (1,), None)
    found = TACTIC.offers(graph.nodes[0], {}, TARGET)
    assert not isinstance(found, Refusal)
    for capability in ((8, 0), (9, 0), (10, 0)):
        builder = ProgramBuilder(graph)
        target = describe(f"cuda:sm{capability[0]}{capability[1]}")
        assert isinstance(target, CudaTarget)
        emit_product(builder, graph.nodes[0], 0, Tile("pointers", 64, 64, 32, 4, 3), target)
        made = compile_triton(builder.device_kernels[0], capability)
        assert isinstance(made, Compiled) and made.spilled_nbytes == 0, made


def distinct(found: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of every way of computing."""
    chosen: dict[tuple[Any, ...], Candidate] = {}
    for candidate in found:
        choice = candidate.choice
        traits = ("style", "split", "swapped", "halves", "ahead")
        chosen.setdefault(tuple(choice.get(trait) for trait in traits), candidate)
    return list(chosen.values())


def measured(graph: Graph, node: Node, wanted: Any, limit: float, name: str) -> None:
    """Check every way of computing a layer on the first GPU, and print what each takes."""
    from engine.cuda.compile import compile_kernels
    from engine.cuda.hardware import CudaDevice
    from tests.cuda_device_layer import run_on_device

    device = CudaDevice(0)
    found = TACTIC.offers(node, {}, device.target)
    assert not isinstance(found, Refusal)
    tried = [*found[:8], *(item for item in distinct(found) if item not in found[:8])]
    made = [emitted(graph, node, item).device_kernels[0] for item in tried]
    results = compile_kernels(made, device.target.capability)
    times, wrong = [], []
    for candidate, result in zip(tried, results):
        choice = str(dict(candidate.choice))
        if isinstance(result, Failure):
            if "spill" not in result.reason:
                wrong.append(f"{choice}: {result.reason}")
            continue
        (output,), microseconds = run_on_device(
            graph, node, candidate, {}, device, build=lambda _, one=result: [one], times=20
        )
        error = np.abs(output.astype(np.float64) - wanted).max() / np.abs(wanted).max()
        if not error < limit:
            wrong.append(f"{choice}: off by {error}")
        times.append((microseconds, choice))
    for microseconds, choice in sorted(times):
        print(f"{name}: {microseconds:8.2f} us  {choice}")
    assert times and not wrong, "\n".join(wrong)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sizes", "epilogue"),
    [
        ((128, 768, 3072), RESIDUAL),
        ((128, 2304, 768), BIAS),
        ((197, 768, 768), RESIDUAL),
        ((4096, 3072, 768), GELU),
        ((4096, 768, 3072), RESIDUAL),
        ((16384, 2304, 768), BIAS),
        ((2050, 1536, 768), RESIDUAL),
        ((1, 1000, 2048), BIAS),
        ((40, 257, 768), SCALED),
        ((1024, 50257, 768), PLAIN),
        ((75, 33, 50), SCALED),
        ((25088, 256, 64), RESIDUAL),
    ],
)
def test_on_the_device(sizes: tuple[int, int, int], epilogue: Any) -> None:
    """The first candidates and every way of computing agree with sums in float32."""
    m, n, k = sizes
    op = FusedMatMul(True, *epilogue)
    arrays = [random(m, k), random(n, k, seed=1), *extras(epilogue[1], m, n)]
    weights = (1, 2) if epilogue[1][:1] == ("column",) else (1,)
    inputs = [constant_feed(a) if i in weights else feed(a) for i, a in enumerate(arrays)]
    graph, node = cuda_layer(op, inputs)
    sums = arrays[0].astype(np.float32) @ arrays[1].astype(np.float32).T
    wanted = apply_epilogue(op.epilogue, op.kinds, sums, arrays[2:]).astype(np.float64)
    measured(graph, node, wanted, 2e-3, f"{m}x{n}x{k}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT32])
def test_other_types_on_the_device(dtype: DType) -> None:
    arrays = [random(130, 264, dtype=dtype.numpy), random(264, 72, seed=1, dtype=dtype.numpy)]
    graph, node = cuda_layer(FusedMatMul(False, cast(SUM, dtype)), [feed(a) for a in arrays])
    wanted = arrays[0].astype(np.float64) @ arrays[1].astype(np.float64)
    measured(graph, node, wanted, 1e-5 if dtype is DType.FLOAT32 else 1e-2, dtype.value)


@pytest.mark.gpu
def test_batches_on_the_device() -> None:
    arrays = [random(2, 12, 130, 64), random(2, 12, 64, 130, seed=1)]
    graph, node = cuda_layer(FusedMatMul(False, *PLAIN), [feed(a) for a in arrays])
    wanted = arrays[0].astype(np.float64) @ arrays[1].astype(np.float64)
    measured(graph, node, wanted, 2e-3, "batches")
