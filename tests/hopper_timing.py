"""Candidates of products on a GPU, one after the other, in a process that may be ended at any time.

    python -m tests.hopper_timing CASE FIRST

Prints a line of JSON before and after each candidate of a case, from candidate FIRST on: its
number, its tactic and choice, then its greatest error relative to the greatest result and its time
in microseconds. Whoever started the process knows by the last line which candidate hung.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from engine.cuda.device import Device, open_device
from engine.ir.graph import Graph, Node
from engine.ir.sizes import evaluate
from engine.plan.device import LibraryStep
from engine.tactics.cublaslt_gemm import CublasLtGemm
from engine.tactics.cudnn_convolution import CudnnConvolution
from engine.tactics.nvrtc_hopper_convolution import NvrtcHopperConvolution
from engine.tactics.nvrtc_hopper_gemm import NvrtcHopperGemm
from engine.tactics.tactic import Candidate, Refusal, Tactic
from engine.tactics.triton_convolution import TritonConvolution
from engine.tactics.triton_gemm import TritonGemm
from tests.cuda_device_layer import run_on_device
from tests.cuda_layer import emitted, filled, meaning
from tests.engine.tactics.test_nvrtc_hopper_convolution import convolution
from tests.engine.tactics.test_nvrtc_hopper_gemm import TILES, candidate_of, product

#: Epilogue, M, N, K.
TIMED = {
    "gelu": ("gelu", 4096, 3072, 768),
    "up": ("bias", 4096, 3072, 768),
    "qkv": ("bias", 4096, 2304, 768),
    "down": ("residual", 4096, 768, 3072),
    "1x1": ("residual", 100352, 256, 64),
    "logits": ("sum", 1024, 50257, 768),
    "tanh": ("tanh", 4096, 3072, 768),
    "one wave": ("residual", 6304, 768, 3072),
    "narrow": ("bias", 401408, 16, 32),
}
#: Epilogue, images with their rows and columns, channels in and out, and what is unusual.
WINDOWS: dict[str, tuple[str, tuple[int, int, int], tuple[int, int], dict[str, Any]]] = {
    "conv 56": ("residual", (32, 56, 56), (64, 64), {}),
    "conv 14": ("bias", (32, 14, 14), (256, 256), {}),
    "conv 7": ("bias", (32, 7, 7), (512, 512), {}),
    "conv stride": ("bias", (32, 56, 56), (128, 128), {"strides": (2, 2)}),
}
#: Sizes that fill no box and no tile.
EDGES: dict[str, tuple[str, tuple[int, int, int], tuple[int, int], dict[str, Any]]] = {
    "edge": ("residual", (5, 13, 21), (72, 136), {}),
    "edge stride": ("bias", (5, 13, 21), (72, 136), {"strides": (2, 2)}),
    "edge dilation": ("bias", (3, 17, 9), (40, 72), {"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
}
_PEERS, _TIMES = 3, 20


def layer(case: str) -> tuple[Graph, Node]:
    """The layer of a case; "small ..." is an epilogue at sizes that fill no tile."""
    kind, _, name = case.rpartition(" ")
    if kind == "small":
        return product(name, 1333, 456, 328)
    window = WINDOWS.get(case) or EDGES.get(case)
    if window is not None:
        name, image, channels, how = window
        return convolution(name, image, channels, **how)
    return product(*TIMED[case], transposed=case == "logits")


def listed(
    case: str, node: Node, point: dict[str, int], device: Device
) -> list[tuple[str, Candidate]]:
    """Candidates with names: ours, then the best of others where times are asked for."""
    if case.startswith("small"):
        tiles = TILES if case == "small residual" else TILES[::4]
        return [("nvrtc.hopper_gemm", candidate_of(tile)) for tile in tiles]
    found: list[tuple[str, Candidate]] = []
    tactics: list[tuple[Tactic, int]] = [(NvrtcHopperGemm(), 99), (NvrtcHopperConvolution(), 99)]
    if case not in EDGES:
        tactics += [(TritonGemm(), _PEERS), (CublasLtGemm(), _PEERS)]
        tactics += [(TritonConvolution(), _PEERS), (CudnnConvolution(), _PEERS)]
    for tactic, count in tactics:
        if node.kind not in tactic.kinds:
            continue
        offered = tactic.offers(node, point, device.target)
        if not isinstance(offered, Refusal):
            found += [(tactic.name, item) for item in offered[:count]]
    return found


def _library(
    device: Device, candidate: Candidate, graph: Graph, node: Node, point: dict[str, int]
) -> tuple[np.ndarray, float]:
    """The output of a library's call, and the time of one of many in a graph."""
    builder = emitted(graph, node, candidate)
    (step,) = builder.steps
    assert isinstance(step, LibraryStep)
    arrays = filled(builder, node, point)
    stream = device.create_stream()
    start, end = device.create_event(timed=True), device.create_event(timed=True)
    addresses = [device.allocate(max(array.nbytes, 256)) for array in arrays]
    for address, array in zip(addresses, arrays):
        device.upload(address, array.ctypes.data, array.nbytes, stream)
    sizes = [evaluate(size, point) for size in step.sizes]
    prepared = device.library(step.library).prepare(step.call, sizes, device.target)
    operands = [
        addresses[item.slot] + evaluate(item.offset, point) * arrays[item.slot].itemsize
        for item in step.operands
    ]
    workspace, nbytes = 0, 0
    if step.workspace is not None:
        workspace, nbytes = addresses[step.workspace], arrays[step.workspace].nbytes
    device.begin_capture(stream)
    for _ in range(_TIMES):
        prepared.run(operands, workspace, nbytes, stream)
    captured = device.end_capture(stream)
    times = []
    for _ in range(5):
        device.record(start, stream)
        device.launch_graph(captured, stream)
        device.record(end, stream)
        device.synchronize_event(end)
        times.append(device.elapsed_ns(start, end) / 1e3 / _TIMES)
    y = arrays[builder.slot(node.outputs[0])]
    device.download(y.ctypes.data, addresses[builder.slot(node.outputs[0])], y.nbytes, stream)
    device.synchronize(stream)
    prepared.close()
    for address in addresses:
        device.release(address)
    return y.reshape([evaluate(dim, point) for dim in node.outputs[0].tensor.dims]), min(times)


def main(case: str, first: int) -> None:
    """Run the candidates of a case from a number on."""
    device = open_device()
    device.use()
    graph, node = layer(case)
    first_size = node.inputs[0].content.shape[0]  # type: ignore[union-attr]
    point = {"M": first_size, "N": first_size}
    (expected,) = meaning(node)
    wide = expected.astype(np.float32)
    timed = not case.startswith("small") and case not in EDGES
    for number, (name, candidate) in enumerate(listed(case, node, point, device)):
        if number < first:
            continue
        line: dict[str, Any] = {"number": number, "tactic": name, "choice": dict(candidate.choice)}
        print(json.dumps(line, default=str), flush=True)
        if name.split(".")[0] in ("cublaslt", "cudnn"):
            found, time = _library(device, candidate, graph, node, point)
        else:
            (found,), time = run_on_device(
                graph, node, candidate, point, device, times=_TIMES if timed else 0
            )
        line["error"] = float(np.abs(found.astype(np.float32) - wide).max() / np.abs(wide).max())
        line["finite"] = bool(np.isfinite(found.astype(np.float32)).all())
        line["microseconds"] = time
        print(json.dumps(line, default=str), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
