"""Timing an engine on a GPU: how long a run takes, and how many runs it does in a second.

A run is timed by the host's clock, from the call to the moment when its results are there. Runs
that follow each other without a pause are timed by the device's clock.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.bench_timing import Call, Length, Span, Summary, run_for, summary_of, together

if TYPE_CHECKING:
    from engine.runtime.cuda_context import CudaContext
    from engine.runtime.cuda_engine import CudaEngine

__all__ = ["GpuTimes", "Ready", "ready_context", "time_streams"]

#: A run that launches kernels, one that captures a graph, and one that launches it.
LEAST_WARMUP = 3
#: Seconds of runs between two looks at the clock while runs follow each other without a pause.
CHUNK_SECONDS = 0.02
LONGEST_CHUNK = 500


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """What was measured, times in seconds.

    ``latency``: single runs, by the host's clock. ``back_to_back``: the median time of a run among
    runs without a pause, by the device's clock, and ``per_second`` their rate over all streams;
    with transfers, where each run is waited for, both follow from the latencies.
    """

    latency: Summary
    back_to_back: float
    per_second: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A context and what is left to feed it: everything else is bound to memory on the device."""

    context: CudaContext
    feeds: Mapping[str, Any]

    def run(self) -> None:
        """Enqueue one run; wait for it when its results go to the host."""
        self.context.run(self.feeds)

    def run_to_the_end(self) -> None:
        """Run once and wait."""
        self.context.run(self.feeds)
        self.context.synchronize()


@contextlib.contextmanager
def ready_context(
    engine: CudaEngine, feeds: Mapping[str, Any], *, graph: bool, transfers: bool
) -> Iterator[Ready]:
    """A context on a stream of its own.

    With ``transfers`` inputs come from NumPy and outputs go there in each run; otherwise both stay
    in buffers on the device. Raises DeviceMemoryError when they do not fit.
    """
    with engine.create_context() as context:
        context.capture = graph
        if transfers:
            yield Ready(context, feeds)
        else:
            yield Ready(context, _bind(engine, context, feeds))


def _bind(engine: CudaEngine, context: CudaContext, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put inputs and outputs into buffers on the device; what Python holds is left to be fed."""
    import numpy as np

    from engine.ir.sizes import evaluate, symbols
    from engine.ir.types import TensorType
    from engine.plan.slots import is_fixed
    from engine.runtime.feeds import bind_symbols, check_feeds

    program = engine.program
    checked = check_feeds(program, feeds)
    sizes = bind_symbols(program, checked)
    left = dict(feeds)
    for index, value in zip(program.inputs, checked, strict=True):
        slot = program.slots[index]
        if is_fixed(slot) and isinstance(value, np.ndarray):
            context.bind(slot.name, _on_device(context, slot.name, value, value.shape))
            left.pop(slot.name, None)
    for index in program.outputs:
        slot = program.slots[index]
        if slot.alias is not None or not is_fixed(slot) or slot.name in engine.input_names:
            continue
        assert isinstance(slot.type, TensorType)
        if all(symbols(dim) <= set(sizes) for dim in slot.type.dims):
            shape = tuple(evaluate(dim, sizes) for dim in slot.type.dims)
            made = _on_device(context, slot.name, slot.type.dtype, shape)
            context.bind(slot.name, made)
    context.synchronize()
    return left


def _on_device(context: CudaContext, name: str, source: Any, shape: tuple[int, ...]) -> Any:
    """A new array on the device: a copy of a NumPy array, or undefined elements of a dtype."""
    import numpy as np

    from engine.ir.types import DType
    from engine.runtime.cuda_feeds import DeviceArray
    from engine.runtime.cuda_memory import Block

    given = isinstance(source, np.ndarray)
    dtype = DType.of(source.dtype) if given else source
    nbytes = math.prod(shape) * dtype.numpy.itemsize
    memory = Block(context.device)
    memory.grow(max(nbytes, 1), f"the buffer of {name!r}", "measure fewer streams at once")
    if given:
        array = np.ascontiguousarray(source)
        context.device.upload(memory.address, array.ctypes.data, nbytes, context.stream.handle)
        context.synchronize()
    return DeviceArray(memory.address, shape, dtype, context.stream, memory)


def time_streams(
    engine: CudaEngine,
    feeds: Mapping[str, Any],
    length: Length,
    streams: int,
    *,
    graph: bool,
    transfers: bool,
) -> GpuTimes:
    """Time an engine in so many contexts at once, each on a stream and in a thread of its own.

    ``length`` is spent twice, on single runs and on runs without a pause. ``graph``: launch whole
    runs as CUDA graphs. ``transfers``: inputs and outputs in memory of the host.
    """

    def work(wait_for_others: Call) -> tuple[Span, list[float], Span]:
        with ready_context(engine, feeds, graph=graph, transfers=transfers) as ready:
            for _ in range(max(length.warmup, LEAST_WARMUP)):
                ready.run_to_the_end()
            wait_for_others()
            single = run_for(ready.run_to_the_end, length)
            if transfers:
                return single, [], single
            wait_for_others()
            chunks, span = _without_pause(ready, length, statistics.median(single.times))
            wait_for_others()  # contexts end together: giving memory back stops the device
            return single, chunks, span

    found = together(streams, work)
    latency = summary_of([single for single, _, _ in found])
    if transfers:
        return GpuTimes(latency, latency.median, latency.per_second)
    wall = max(s.ended for _, _, s in found) - min(s.began for _, _, s in found)
    runs = sum(len(span.times) for _, _, span in found)
    chunks = [item for _, items, _ in found for item in items]
    return GpuTimes(latency, statistics.median(chunks), runs / wall)


def _without_pause(ready: Ready, length: Length, seconds: float) -> tuple[list[float], Span]:
    """Times of a run in each chunk of runs without a pause, and a span with an entry per run.

    The next chunk is enqueued before the one at hand is waited for, so that the device never waits.
    """
    context, device = ready.context, ready.context.device
    count = max(1, min(LONGEST_CHUNK, math.ceil(CHUNK_SECONDS / max(seconds, 1e-6))))
    if length.iterations is not None:
        count = min(count, length.iterations)
    events = [device.create_event(timed=True) for _ in range(3)]
    times: list[float] = []
    began = time.perf_counter()
    try:
        device.record(events[0], context.stream.handle)
        enqueued = 0
        while True:
            for _ in range(count):
                ready.run()
            enqueued += 1
            device.record(events[enqueued % 3], context.stream.handle)
            if enqueued > 1:
                times.append(_chunk(device, events, enqueued - 1) / count)
            most = None if length.iterations is None else math.ceil(length.iterations / count)
            late = time.perf_counter() >= began + length.seconds
            if enqueued >= most if most is not None else late:
                break
        times.append(_chunk(device, events, enqueued) / count)
        ended = time.perf_counter()
    finally:
        for event in events:
            device.destroy_event(event)
    return times, Span([0.0] * (enqueued * count), began, ended)


def _chunk(device: Any, events: list[int], number: int) -> float:
    """Seconds of a chunk on the device; waits for its end."""
    device.synchronize_event(events[number % 3])
    return float(device.elapsed_ns(events[(number - 1) % 3], events[number % 3])) / 1e9
