"""Tactics over vendors' libraries on a GPU: every candidate is correct, alone and in a graph."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cuda.device import Device, open_device
from engine.ir.graph import Node
from engine.ir.types import Array
from engine.tactics.cublaslt_gemm import CublasLtGemm
from engine.tactics.cudnn_attention import CudnnAttention
from engine.tactics.cudnn_convolution import CudnnConvolution
from tests.engine.tactics.test_libraries import (
    CONVOLUTIONS,
    EPILOGUES,
    arrays,
    attention,
    compare,
    convolution,
    emit,
    matmul,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> Device:
    found = open_device()
    found.use()
    return found


def run(device: Device, tactic: Any, node: Node) -> None:
    """Each candidate, enqueued once and then replayed from a graph over poisoned results."""
    candidates = tactic.offers(node, {}, device.target)
    assert isinstance(candidates, list), candidates.reason
    for candidate in candidates:
        stored = json.loads(json.dumps(candidate.choice))
        restored = tactic.restore(node, stored, device.target)
        assert restored is not None and restored.choice == candidate.choice
        _run(device, restored, node)


def _run(device: Device, candidate: Any, node: Node) -> None:
    builder, step = emit(candidate, node)
    buffers, inputs = arrays(builder, node)
    stream = device.create_stream()
    addresses = {slot: device.allocate(array.nbytes) for slot, array in buffers.items()}
    for slot, array in buffers.items():
        device.upload(addresses[slot], array.ctypes.data, array.nbytes, stream)
    nbytes = candidate.choice["workspace_nbytes"]
    workspace = device.allocate(nbytes) if nbytes else 0
    sizes = [int(size) for size in step.sizes]
    prepared = device.library(step.library).prepare(step.call, sizes, device.target)
    operands = [
        addresses[item.slot] + int(item.offset) * buffers[item.slot].itemsize
        for item in step.operands
    ]
    written = step.operands[-1].slot
    poison = buffers[written].copy()

    def result() -> Array:
        found = np.empty_like(poison)
        device.download(found.ctypes.data, addresses[written], found.nbytes, stream)
        device.synchronize(stream)
        return found

    try:
        prepared.run(operands, workspace, nbytes, stream)
        compare(node, inputs, result(), 1e-2)
        device.upload(addresses[written], poison.ctypes.data, poison.nbytes, stream)
        device.begin_capture(stream)
        prepared.run(operands, workspace, nbytes, stream)
        graph = device.end_capture(stream)
        device.launch_graph(graph, stream)
        compare(node, inputs, result(), 1e-2)
        device.synchronize(stream)
        device.destroy_graph(graph)
    finally:
        prepared.close()
        for address in (*addresses.values(), *([workspace] if workspace else [])):
            device.release(address)
        device.destroy_stream(stream)


@pytest.mark.parametrize("name", EPILOGUES)
def test_cublaslt_computes_products(device: Device, name: str) -> None:
    for transpose_b in (False, True):
        b = (768, 256) if transpose_b else (256, 768)
        run(device, CublasLtGemm(), matmul(name, (384, 256), b, transpose_b, weight=True))


def test_cublaslt_computes_batches(device: Device) -> None:
    run(device, CublasLtGemm(), matmul("sum", (2, 3, 128, 64), (2, 3, 64, 128), False))
    run(device, CublasLtGemm(), matmul("bias, residual, relu", (1, 64, 64), (3, 64, 64), False))


def test_cublaslt_computes_1x1_convolutions(device: Device) -> None:
    node = convolution(
        "bias, residual, relu", (64, 256), taps=1, pads=(0, 0, 0, 0), image=(2, 14, 14)
    )
    run(device, CublasLtGemm(), node)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_cudnn_computes_convolutions(device: Device, name: str) -> None:
    run(device, CudnnConvolution(), convolution(name, (64, 64), image=(2, 14, 14)))


@pytest.mark.parametrize(
    "shape",
    [
        {"channels": (64, 64), "group": 4},
        {"channels": (64, 64), "group": 64},
        {"channels": (64, 128), "strides": (2, 2)},
        {"channels": (64, 64), "dilations": (2, 2), "pads": (2, 2, 2, 2)},
        {"channels": (64, 64), "strides": (2, 2), "pads": (0, 0, 1, 1)},
    ],
)
def test_cudnn_computes_convolutions_of_all_shapes(device: Device, shape: dict[str, Any]) -> None:
    run(device, CudnnConvolution(), convolution("relu", image=(2, 14, 14), **shape))


@pytest.mark.parametrize("rows", [128, 197])
@pytest.mark.parametrize(
    ("mask", "causal", "group"),
    [("none", False, 1), ("none", True, 1), ("full", False, 1), ("none", False, 2)],
)
def test_cudnn_computes_attention(
    device: Device, mask: str, causal: bool, group: int, rows: int
) -> None:
    if mask == "full" and rows % 8:
        pytest.skip("rows of such a mask do not begin on 16 bytes")
    run(device, CudnnAttention(), attention(mask, causal, group, head=64, rows=rows))


_MADE_UP = """
from engine.cuda.cublaslt import CublasLt, MatmulCall, MatmulSizes
from engine.cuda.device import open_device
from engine.errors import KernelError
device = open_device()
device.use()
library = CublasLt()
call = MatmulCall("float16", "float16", True, 1.0, False, False, "none", "f" * 128, 0, 0)
call = {**call.to_json(), "version": library.version}
sizes = MatmulSizes(64, 64, 64, 1, 64, 64, 64, 64, 0, 0, 4096, 4096)
try:
    library.prepare(call, sizes.to_list(), device.target)
except KernelError as error:
    print(error)
"""


def test_a_made_up_algorithm_is_refused() -> None:
    """In a process of its own: nobody promises that the library survives it."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _MADE_UP], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "does not run the plan's algorithm" in done.stdout
