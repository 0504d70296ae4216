"""What users would take instead, ready to be launched and timed: PyTorch and ONNX Runtime.

Every peer gets its inputs on the device in float16 (token ids as int64) and leaves its output
there. `Runner.launch` enqueues one run on `Runner.stream`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["PEERS", "Runner", "eager_graph", "milliseconds"]

CONVOLUTIONAL = frozenset({"resnet50", "mobilenet_v2", "efficientnet_b0", "unet"})


@dataclass(slots=True)
class Runner:
    """Something that can be timed: ``launch`` enqueues one run on ``stream``."""

    name: str
    launch: Callable[[], object]
    stream: Any
    output: Callable[[], torch.Tensor]
    setup_s: float


def _laid_out(name: str, value: Any) -> Any:
    """Convolutional networks in the layout that is fastest for PyTorch."""
    if name not in CONVOLUTIONAL:
        return value
    if isinstance(value, torch.Tensor) and value.dim() != 4:
        return value
    return value.to(memory_format=torch.channels_last)


def eager_graph(
    name: str, module: torch.nn.Module, feeds: Mapping[str, torch.Tensor], path: Path
) -> Runner:
    """The module as it is, captured into one CUDA graph."""
    start = time.perf_counter()
    module = _laid_out(name, module)
    inputs = [_laid_out(name, feed) for feed in feeds.values()]
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            module(*inputs)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = module(*inputs)

    def launch() -> None:
        with torch.cuda.stream(stream):
            graph.replay()

    return Runner("torch graph", launch, stream, lambda: result, time.perf_counter() - start)


def compiled(
    name: str, module: torch.nn.Module, feeds: Mapping[str, torch.Tensor], path: Path
) -> Runner:
    """torch.compile with CUDA graphs."""
    start = time.perf_counter()
    torch._dynamo.reset()
    function = torch.compile(
        _laid_out(name, module), dynamic=False, options={"triton.cudagraphs": True}
    )
    inputs = [_laid_out(name, feed) for feed in feeds.values()]
    stream = torch.cuda.Stream()
    latest: list[torch.Tensor] = []

    def launch() -> None:
        with torch.inference_mode(), torch.cuda.stream(stream):
            latest[:] = [function(*inputs)]

    for _ in range(4):
        launch()
    stream.synchronize()
    return Runner("torch.compile", launch, stream, lambda: latest[0], time.perf_counter() - start)


def onnxruntime_cuda(
    name: str, module: torch.nn.Module, feeds: Mapping[str, torch.Tensor], path: Path
) -> Runner:
    """ONNX Runtime's CUDA provider with CUDA graphs, NHWC convolutions and bound buffers."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("this onnxruntime has no CUDA provider")
    start = time.perf_counter()
    stream = torch.cuda.Stream()
    batch = next(iter(feeds.values())).shape[0]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("batch", batch)
    provider = {
        "enable_cuda_graph": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "prefer_nhwc": "1" if name in CONVOLUTIONAL else "0",
        "user_compute_stream": str(stream.cuda_stream),
    }
    session = onnxruntime.InferenceSession(
        str(path), options, providers=[("CUDAExecutionProvider", provider)]
    )
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("onnxruntime's CUDA provider does not start here")
    binding = session.io_binding()
    kinds = {torch.float16: np.float16, torch.int64: np.int64}
    for key, feed in feeds.items():
        shape = tuple(feed.shape)
        binding.bind_input(key, "cuda", 0, kinds[feed.dtype], shape, feed.data_ptr())
    with torch.inference_mode():
        result = torch.empty_like(module(*feeds.values()).contiguous())
    (port,) = session.get_outputs()
    shape = tuple(result.shape)
    binding.bind_output(port.name, "cuda", 0, np.float16, shape, result.data_ptr())
    run_options = onnxruntime.RunOptions()
    run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def launch() -> None:
        session.run_with_iobinding(binding, run_options)

    for _ in range(4):
        launch()
    torch.cuda.synchronize()
    return Runner("onnxruntime", launch, stream, lambda: result, time.perf_counter() - start)


PEERS: Mapping[str, Callable[..., Runner]] = {
    "torch-graph": eager_graph,
    "torch-compile": compiled,
    "onnxruntime": onnxruntime_cuda,
}


def milliseconds(runner: Runner, launches: int) -> float:
    """Milliseconds per run of some launches in a row, between events on the runner's stream."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record(runner.stream)
    for _ in range(launches):
        runner.launch()
    last.record(runner.stream)
    last.synchronize()
    return first.elapsed_time(last) / launches
