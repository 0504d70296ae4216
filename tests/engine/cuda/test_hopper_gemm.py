"""Hopper's matrix product as machine code: what it uses, and which instructions it has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine.cuda.c_expression import PRELUDE
from engine.cuda.compile import compile_kernels
from engine.cuda.hopper_gemm import HopperTail, HopperTile, hopper_kernel
from engine.cuda.hopper_gemm_tiles import HopperProblem, ranked_hopper_tiles
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.graph import Graph, Node
from engine.ops.expression import Expression, call, cast, constant, evaluate, load
from engine.ops.fused import FusedMatMul
from engine.plan.device import LaunchStep, TensorMap
from engine.tactics.nvrtc_hopper_gemm import NvrtcHopperGemm
from engine.tactics.tactic import Refusal
from engine.target import CudaTarget, describe
from tests import cuda_layer as layers
from tests.cuda_shim import run_kernel
from tests.engine.tactics.test_nvrtc_hopper_gemm import EPILOGUES, FULL, HALF

TARGET = describe("cuda:sm90")
assert isinstance(TARGET, CudaTarget)

SHAPES = {
    "bert up": ("gelu", 4096, 3072, 768),
    "qkv": ("bias", 4096, 2304, 768),
    "down": ("residual", 4096, 768, 3072),
    "1x1": ("residual", 100352, 256, 64),
    "head": ("sum", 512, 50257, 768),
    "vit": ("residual", 6304, 768, 3072),
    "tanh": ("tanh", 4096, 3072, 768),
    "few rows": ("silu", 128, 768, 768),
}


def node_of(name: str, m: int, n: int, k: int) -> tuple[Graph, Node]:
    """A layer of real size without real data."""
    expression, kinds, _ = EPILOGUES[name]
    shapes = {"column": (n,), "full": (m, n)}
    feeds = [layers.feed(np.broadcast_to(np.float16(0), (m, k)))]
    feeds.append(layers.constant(np.zeros((n, k), np.float16)))
    feeds += [layers.feed(np.zeros(shapes[kind], np.float16)) for kind in kinds]
    return layers.layer(FusedMatMul(True, cast(expression, HALF), kinds), feeds)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_offers_differ_fit_and_compile_without_spills(shape: str) -> None:
    graph, node = node_of(*SHAPES[shape])
    found = NvrtcHopperGemm().offers(node, {}, TARGET)
    assert not isinstance(found, Refusal), found
    assert 2 <= len({str(item.choice) for item in found}) == len(found) <= 6
    assert all(item.strided for item in found)
    kernels = []
    for candidate in found:
        builder = layers.emitted(graph, node, candidate)
        (step,), (kernel,) = builder.steps, builder.device_kernels
        assert isinstance(step, LaunchStep)
        maps = [item for item in step.parameters if isinstance(item, TensorMap)]
        assert [item.form for item in maps] == list(range(len(kernel.maps)))
        assert kernel.shared_nbytes <= TARGET.shared_nbytes
        if kernel.threads == 256:
            assert 2 * (kernel.shared_nbytes + 1024) <= TARGET.shared_nbytes + 1024
        kernels.append(kernel)
    for candidate, kernel, result in zip(found, kernels, compile_kernels(kernels, (9, 0))):
        assert isinstance(result, Compiled), f"{candidate.choice}: {result}"
        assert result.waits and result.maps and result.cluster == candidate.choice["cluster"]
        from_here = {256: 128, 384: 168, 512: 128}[kernel.threads]
        assert result.registers == from_here, "registers are moved between warpgroups from here on"


def listing(kernel: DeviceKernel, folder: Path) -> str:
    """The machine code of a kernel for Hopper."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    path = folder / "kernel.cubin"
    path.write_bytes(compile_nvrtc(kernel, (9, 0)).image)
    done = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("tile", "products"),
    [
        (HopperTile(128, 192, True, 4), {"64x192x16": 8}),
        (HopperTile(128, 256, False, 4, cluster=2), {"64x256x16": 4}),
    ],
    ids=["ping-pong", "cluster"],
)
def test_the_machine_code_is_asynchronous(
    tile: HopperTile, products: dict[str, int], tmp_path: Path
) -> None:
    """Products follow each other without a wait, and nothing but them touches the sums."""
    expression, kinds, dtypes = EPILOGUES["bias"]
    tail = HopperTail(cast(expression, HALF), kinds, dtypes, "boxes")
    text = listing(hopper_kernel(HALF, tail, tile, constant=True), tmp_path)
    shapes = re.findall(r"HGMMA\.(\w+)\.F32", text)
    assert {name: shapes.count(name) for name in set(shapes)} == products
    assert text.count("WARPGROUP.DEPBAR") == 2, "products were put one after the other"
    for word in ("UTMALDG.2D", "UTMASTG.2D", "USETMAXREG", "SYNCS", "STSM.16.M88.4", "ACQBULK"):
        assert word in text, word
    assert ("UTMALDG.2D.MULTICAST" in text) == (tile.cluster > 1)
    assert not re.search(r"\b(LDL|STL)\b", text), "registers were spilled"


def test_blocks_of_a_cluster_release_stages_without_a_fence_of_the_device(tmp_path: Path) -> None:
    """Such a fence takes longer than the products of a stage."""
    expression, kinds, dtypes = EPILOGUES["bias"]
    tail = HopperTail(cast(expression, HALF), kinds, dtypes, "boxes")
    tile = HopperTile(128, 128, True, 5, cluster=2)
    text = listing(hopper_kernel(HALF, tail, tile, constant=True), tmp_path)
    assert text.count("MEMBAR.ALL.GPU") == 2, "only where all blocks of a cluster wait"


def test_rows_are_stored_in_batches(tmp_path: Path) -> None:
    """The words of eight rows are on their way before the first is stored."""
    tail = HopperTail(cast(load(0, FULL), HALF), (), (), "rows")
    tile = HopperTile(128, 128, True, 5, buffers=1)
    text = listing(hopper_kernel(HALF, tail, tile, constant=True), tmp_path)
    found = re.findall(r"\b(LDS|STG\.E\S*|STSM)\b", text)
    batches = max(len(run) for run in re.findall(r"(?:L)+", "".join(name[0] for name in found)))
    assert batches >= 8, found


def one(function: str) -> Expression:
    return call(function, load(0, FULL))


VALUES = {
    "gelu": (EPILOGUES["gelu"][0], 7e-7),
    "tanh gelu": (EPILOGUES["tanh"][0], 4e-7),
    "silu": (EPILOGUES["silu"][0], 4e-7),
    "erf": (one("erf"), 6e-7),
    "tanh": (one("tanh"), 3e-7),
    "sigmoid": (one("sigmoid"), 3e-7),
    "scaled": (
        call(
            "multiply",
            constant(0.5, FULL),
            call("multiply", load(0, FULL), call("add", constant(1.0, FULL), call("erf", call(
                "divide", load(0, FULL), constant(1.7, FULL))))),
        ),
        7e-7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_short_forms_of_functions_are_near(name: str) -> None:
    """Far below what the rounding to 16 bits loses: beside large values, relative to them."""
    expression, bound = VALUES[name]
    operands = ("column",) if name in ("gelu", "tanh gelu", "silu") else ()
    tail = HopperTail(cast(expression, HALF), operands, (HALF,) * len(operands), "boxes")
    text = tail.function()
    assert "erff" not in text and "tanhf" not in text and "expf" not in text
    second = ", 0.0f" if operands else ""
    source = (
        f'{PRELUDE}{text}\nextern "C" __global__ void __launch_bounds__(256) '
        "f(const float *x, float *y, int count) {\n"
        "  for (int i = threadIdx.x; i < count; i += 256) "
        f"y[i] = ef_tail(x[i]{second});\n}}\n"
    )
    grid = np.linspace(-9.0, 9.0, 20001, dtype=np.float32)
    far = np.float32([-3e38, -7e4, -88.0, -30.0, -0.0, 0.0, 1e-6, -1e-6, 30.0, 88.0, 7e4, np.nan])
    x = np.concatenate([grid, far])
    y = np.zeros_like(x)
    run_kernel(DeviceKernel("nvrtc", "f", source, 256), (1,), [x, y, np.int32(x.size)])
    loads = [x] + [np.zeros_like(x, np.float16)] * len(operands)
    with np.errstate(all="ignore"):
        expected = evaluate(expression, loads)
    assert np.isnan(y[-1]), "what is no number stays none"
    error = np.abs(y - expected)[:-1] / np.maximum(1.0, np.abs(expected[:-1]))
    assert error.max() < bound, (x[error.argmax()], error.max())


def test_infinite_results_stay_infinite() -> None:
    text = HopperTail(cast(EPILOGUES["gelu"][0], HALF), ("column",), (HALF,), "boxes").function()
    source = (
        f'{PRELUDE}{text}\nextern "C" __global__ void __launch_bounds__(32) f(float *y) '
        "{ if (threadIdx.x == 0) y[0] = ef_tail(INFINITY, 0.0f); }\n"
    )
    y = np.zeros(1, np.float32)
    run_kernel(DeviceKernel("nvrtc", "f", source, 32), (1,), [y])
    assert y[0] == np.inf


@pytest.mark.parametrize(
    ("shape", "among"),
    [
        (("bias", 4096, 2304, 768), (128, 192, True)),
        (("bias", 16384, 2304, 768), (128, 192, True)),
        (("residual", 4096, 768, 3072), (128, 192, False)),
        (("residual", 16384, 768, 768), (128, 128, True)),
        (("residual", 1024, 768, 3072), (64, 128, True)),
        (("residual", 1576, 768, 3072), (64, 192, True)),
        (("residual", 6304, 768, 3072), (192, 192, False)),
    ],
    ids=str,
)
def test_what_was_fastest_on_an_h200_is_among_the_first(
    shape: tuple[str, int, int, int], among: tuple[int, int, bool]
) -> None:
    name, m, n, k = shape
    expression, kinds, dtypes = EPILOGUES[name]
    tail = HopperTail(cast(expression, HALF), kinds, dtypes, "boxes", kinds.count("full") * 2)
    found = ranked_hopper_tiles(HopperProblem(m, n, k, tail), TARGET)[:4]
    assert among in [(tile.rows, tile.columns, tile.pingpong) for tile in found]
