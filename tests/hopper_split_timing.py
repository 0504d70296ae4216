"""Split products on a GPU, one candidate after the other, in a process that may be ended.

    python -m tests.hopper_split_timing FIRST [CASE ...]

Works on all cases, or on those named, from candidate FIRST on. Prints a line of JSON before and
after each candidate: its number, case, tactic and choice, then its greatest error relative to the
greatest result and its time in microseconds. Whoever started the process knows by the last line
which candidate hung. Times are means over many launches in one graph; each launch has weights of
its own as far as 80 MB go, so that few of them come from the level-two cache.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from engine.cuda.compile import compile_kernels
from engine.cuda.device import Device, open_device
from engine.ir.graph import Graph, Node
from engine.lower.builder import ProgramBuilder
from engine.tactics.nvrtc_gemv import NvrtcGemv
from engine.tactics.nvrtc_hopper_convolution import NvrtcHopperConvolution
from engine.tactics.nvrtc_hopper_gemm import NvrtcHopperGemm
from engine.tactics.nvrtc_hopper_split import NvrtcHopperSplit
from engine.tactics.tactic import Candidate, Refusal, Tactic
from engine.tactics.triton_convolution import TritonConvolution
from engine.tactics.triton_gemm import TritonGemm
from tests.cuda_device_layer import _actions, _Memory, compiled_for, run_on_device
from tests.cuda_layer import emitted, filled, meaning
from tests.engine.tactics.test_nvrtc_hopper_convolution import convolution
from tests.engine.tactics.test_nvrtc_hopper_gemm import product
from tests.engine.tactics.test_nvrtc_hopper_split import TILES, boxed, candidate_of, rows, swapped

__all__ = ["EDGES", "TIMED"]

#: Epilogue, M, N, K.
PRODUCTS = {
    "bert qkv": ("bias", 128, 2304, 768),
    "bert out": ("residual", 128, 768, 768),
    "bert up": ("gelu", 128, 3072, 768),
    "bert down": ("residual", 128, 768, 3072),
    "vit qkv": ("bias", 197, 2304, 768),
    "vit out": ("residual", 197, 768, 768),
    "vit up": ("gelu", 197, 3072, 768),
    "vit down": ("residual", 197, 768, 3072),
    **{
        f"decode{m} {name}": (epilogue, m, n, k)
        for m in (8, 32)
        for name, epilogue, n, k in (
            ("qkv", "bias", 2304, 768),
            ("out", "residual", 768, 768),
            ("up", "gelu", 3072, 768),
            ("down", "residual", 768, 3072),
            ("head", "sum", 50257, 768),
        )
    },
    "1x1 56 down": ("bias", 3136, 64, 256),
    "1x1 28 down": ("bias", 784, 128, 512),
    "1x1 28 up": ("residual", 784, 512, 128),
    "1x1 14 down": ("bias", 196, 256, 1024),
    "1x1 14 up": ("residual", 196, 1024, 256),
    "1x1 7 down": ("bias", 49, 512, 2048),
    "1x1 7 up": ("residual", 49, 2048, 512),
}
#: Images with their rows and columns, channels in and out, strides.
WINDOWS = {
    "3x3 56": ((1, 56, 56), (64, 64), (1, 1)),
    "3x3 28": ((1, 28, 28), (128, 128), (1, 1)),
    "3x3 28 stride": ((1, 28, 28), (256, 256), (2, 2)),
    "3x3 14": ((1, 14, 14), (256, 256), (1, 1)),
    "3x3 7": ((1, 7, 7), (512, 512), (1, 1)),
}
TIMED = [*PRODUCTS, *WINDOWS]
#: Sizes that fill no tile, all ways of cutting.
EDGES = ["edge residual", "edge mixed", "edge gelu", "edge window", "edge stride", "edge dilation"]
_WINDOWED = [
    boxed(rows(24, 64, 2), (1, 7, 9)),
    boxed(rows(16, 64, 3, 2), (1, 5, 9)),
    boxed(swapped(64, 40, 4), (1, 4, 9)),
    boxed(swapped(64, 16, 1, 2), (1, 3, 5)),
    boxed(swapped(128, 64, 2, 4), (1, 8, 8)),
]
_TIMES, _COPIED_NBYTES, _PEERS = 50, 80 << 20, 2


def layer(case: str) -> tuple[Graph, Node]:
    """The layer of a case."""
    if case in PRODUCTS:
        return product(*PRODUCTS[case])
    if case in WINDOWS:
        image, channels, strides = WINDOWS[case]
        return convolution("bias", image, channels, strides=strides)
    kind = case.removeprefix("edge ")
    if kind == "window":
        return convolution("residual", (2, 13, 21), (40, 136))
    if kind == "stride":
        return convolution("bias", (2, 13, 21), (40, 136), strides=(2, 2))
    if kind == "dilation":
        how = {"dilations": (2, 3), "pads": (2, 3, 2, 3)}
        return convolution("bias", (2, 17, 9), (40, 136), **how)  # type: ignore[arg-type]
    return product(kind, 75, 136, 8 * 64 + 8)


def listed(
    case: str, node: Node, point: dict[str, int], device: Device
) -> list[tuple[str, Candidate]]:
    """Candidates with names: ours, then the first of others where times are asked for."""
    own = NvrtcHopperSplit()
    if case.startswith("edge"):
        tiles = TILES if node.kind == "FusedMatMul" else _WINDOWED
        return [(own.name, candidate_of(tile)) for tile in tiles]
    found: list[tuple[str, Candidate]] = []
    tactics: list[tuple[Tactic, int]] = [(own, 99), (TritonGemm(), 3), (TritonConvolution(), 3)]
    tactics += [(NvrtcHopperGemm(), _PEERS), (NvrtcHopperConvolution(), _PEERS)]
    tactics += [(NvrtcGemv(), _PEERS)]
    for tactic, count in tactics:
        if node.kind not in tactic.kinds:
            continue
        offered = tactic.offers(node, point, device.target)
        if not isinstance(offered, Refusal):
            found += [(tactic.name, item) for item in offered[:count]]
    return found


def rotated(device: Device, builder: ProgramBuilder, node: Node, point: dict[str, int]) -> float:
    """The time of a launch among many in a graph, which take turns at copies of the memory."""
    results = compiled_for(device)(builder.device_kernels)
    modules = [device.load_module(item.image, item.entry) for item in results]
    arrays = filled(builder, node, point)
    count = min(_TIMES, max(2, _COPIED_NBYTES // sum(array.nbytes for array in arrays)))
    memories = [_Memory(device, arrays) for _ in range(count)]
    stream = device.create_stream()
    start, end = device.create_event(timed=True), device.create_event(timed=True)
    # Every kernel is loaded by a first launch outside of the graph.
    for action in _actions(device, builder, memories[0], results, modules, point, early=False):
        action(stream)
    device.synchronize(stream)
    device.begin_capture(stream)
    for turn in range(_TIMES):
        memory = memories[turn % count]
        for action in _actions(device, builder, memory, results, modules, point, early=turn > 0):
            action(stream)
    captured = device.end_capture(stream)
    best = float("inf")
    for _ in range(6):
        device.record(start, stream)
        device.launch_graph(captured, stream)
        device.record(end, stream)
        device.synchronize_event(end)
        best = min(best, device.elapsed_ns(start, end) / 1e3 / _TIMES)
    device.destroy_graph(captured)
    device.destroy_event(start)
    device.destroy_event(end)
    device.destroy_stream(stream)
    for module in modules:
        device.unload_module(module)
    for memory in memories:
        memory.release()
    return best


def main(first: int, cases: list[str]) -> None:
    """Run the candidates of the cases from a number on, which counts through all cases."""
    device = open_device()
    device.use()
    number = 0
    for case in cases or [*EDGES, *TIMED]:
        graph, node = layer(case)
        size = node.inputs[0].content.shape[0]  # type: ignore[union-attr]
        point = {"M": size, "N": size}
        candidates = listed(case, node, point, device)
        if number + len(candidates) <= first:
            number += len(candidates)
            continue
        kernels = [k for _, item in candidates for k in emitted(graph, node, item).device_kernels]
        compile_kernels(kernels, device.target.capability)
        (expected,) = meaning(node)
        wide = expected.astype(np.float32)
        for name, candidate in candidates:
            number += 1
            if number <= first:
                continue
            line: dict[str, Any] = {
                "number": number,
                "case": case,
                "tactic": name,
                "choice": dict(candidate.choice),
            }
            print(json.dumps(line, default=str), flush=True)
            (found,), _ = run_on_device(graph, node, candidate, point, device)
            error = np.abs(found.astype(np.float32) - wide).max() / np.abs(wide).max()
            line["error"] = float(error)
            line["finite"] = bool(np.isfinite(found.astype(np.float32)).all())
            line["microseconds"] = 0.0
            if case in TIMED:
                line["microseconds"] = rotated(device, emitted(graph, node, candidate), node, point)
            print(json.dumps(line, default=str), flush=True)
    print(json.dumps({"done": number}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
