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
from engine.tactics.nvrtc_hopper_gemm import NvrtcHopperGemm
from engine.tactics.tactic import Candidate, Refusal, Tactic
from engine.tactics.triton_gemm import TritonGemm
from tests.cuda_device_layer import run_on_device
from tests.cuda_layer import emitted, filled, meaning
from tests.engine.tactics.test_nvrtc_hopper_gemm import TILES, candidate_of, product

#: Epilogue, M, N, K.
TIMED = {
    "gelu": ("gelu", 4096, 3072, 768),
    "up": ("bias", 4096, 3072, 768),
    "qkv": ("bias", 4096, 2304, 768),
    "down": ("residual", 4096, 768, 3072),
    "1x1": ("residual", 100352, 256, 64),
    "head": ("sum", 512, 50257, 768),
}
_PEERS, _TIMES = 3, 20


def layer(case: str) -> tuple[Graph, Node]:
    """The layer of a case; "small ..." is an epilogue at sizes that fill no tile."""
    kind, _, name = case.rpartition(" ")
    if kind == "small":
        return product(name, 1333, 456, 328)
    return product(*TIMED[case], transposed=case == "head")


def listed(case: str, node: Node, m: int, device: Device) -> list[tuple[str, Candidate]]:
    """Candidates with names: ours, then the best of others where times are asked for."""
    if case.startswith("small"):
        return [("nvrtc.hopper_gemm", candidate_of(tile)) for tile in TILES]
    found: list[tuple[str, Candidate]] = []
    tactics: list[tuple[Tactic, int]] = [(NvrtcHopperGemm(), 99)]
    tactics += [(TritonGemm(), _PEERS), (CublasLtGemm(), _PEERS)]
    for tactic, count in tactics:
        offered = tactic.offers(node, {"M": m}, device.target)
        if not isinstance(offered, Refusal):
            found += [(tactic.name, item) for item in offered[:count]]
    return found


def _library(
    device: Device, candidate: Candidate, graph: Graph, node: Node, m: int
) -> tuple[np.ndarray, float]:
    """The output of a library's call, and the time of one of many in a graph."""
    builder = emitted(graph, node, candidate)
    (step,) = builder.steps
    assert isinstance(step, LibraryStep)
    arrays = filled(builder, node, {"M": m})
    stream = device.create_stream()
    start, end = device.create_event(timed=True), device.create_event(timed=True)
    addresses = [device.allocate(max(array.nbytes, 256)) for array in arrays]
    for address, array in zip(addresses, arrays):
        device.upload(address, array.ctypes.data, array.nbytes, stream)
    sizes = [evaluate(size, {"M": m}) for size in step.sizes]
    prepared = device.library(step.library).prepare(step.call, sizes, device.target)
    operands = [
        addresses[item.slot] + evaluate(item.offset, {"M": m}) * arrays[item.slot].itemsize
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
    return y.reshape([evaluate(dim, {"M": m}) for dim in node.outputs[0].tensor.dims]), min(times)


def main(case: str, first: int) -> None:
    """Run the candidates of a case from a number on."""
    device = open_device()
    device.use()
    graph, node = layer(case)
    m = node.inputs[0].content.shape[0]  # type: ignore[union-attr]
    (expected,) = meaning(node)
    wide = expected.astype(np.float32)
    timed = not case.startswith("small")
    for number, (name, candidate) in enumerate(listed(case, node, m, device)):
        if number < first:
            continue
        line: dict[str, Any] = {"number": number, "tactic": name, "choice": dict(candidate.choice)}
        print(json.dumps(line, default=str), flush=True)
        if name == CublasLtGemm.name:
            found, time = _library(device, candidate, graph, node, m)
        else:
            (found,), time = run_on_device(
                graph, node, candidate, {"M": m}, device, times=_TIMES if timed else 0
            )
        line["error"] = float(np.abs(found.astype(np.float32) - wide).max() / np.abs(wide).max())
        line["finite"] = bool(np.isfinite(found.astype(np.float32)).all())
        line["microseconds"] = time
        print(json.dumps(line, default=str), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
