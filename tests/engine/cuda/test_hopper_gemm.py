"""Hopper's matrix product as machine code: what it uses, and which instructions it has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.hopper_gemm import HopperTail, HopperTile, hopper_kernel
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.graph import Graph, Node
from engine.ops.expression import cast
from engine.ops.fused import FusedMatMul
from engine.plan.device import LaunchStep, TensorMap
from engine.tactics.nvrtc_hopper_gemm import NvrtcHopperGemm
from engine.tactics.tactic import Refusal
from engine.target import CudaTarget, describe
from tests import cuda_layer as layers
from tests.engine.tactics.test_nvrtc_hopper_gemm import EPILOGUES, HALF

TARGET = describe("cuda:sm90")
assert isinstance(TARGET, CudaTarget)

SHAPES = {
    "bert up": ("gelu", 4096, 3072, 768),
    "qkv": ("bias", 4096, 2304, 768),
    "down": ("residual", 4096, 768, 3072),
    "1x1": ("residual", 100352, 256, 64),
    "head": ("sum", 512, 50257, 768),
    "vit": ("bias", 6304, 768, 768),
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
    assert len({str(item.choice) for item in found}) == len(found) >= 4
    assert all(item.strided for item in found)
    kernels = []
    for candidate in found:
        builder = layers.emitted(graph, node, candidate)
        (step,), (kernel,) = builder.steps, builder.device_kernels
        assert isinstance(step, LaunchStep)
        maps = [item for item in step.parameters if isinstance(item, TensorMap)]
        assert [item.form for item in maps] == list(range(len(kernel.maps)))
        assert kernel.shared_nbytes <= TARGET.shared_nbytes
        kernels.append(kernel)
    for candidate, result in zip(found, compile_kernels(kernels, (9, 0))):
        assert isinstance(result, Compiled), f"{candidate.choice}: {result}"
        assert result.waits and result.maps and result.cluster == candidate.choice["cluster"]
        assert result.registers == 168, "registers are moved between warpgroups from 168 on"


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
