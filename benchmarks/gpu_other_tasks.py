"""What `benchmarks.gpu_other` runs in processes of its own: one task each, JSON on stdout."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["TASKS", "main"]

SEED = 20_261_122
#: Imported before anything is timed by those who leave imports out.
_MODULES = (
    "engine.loading",
    "engine.cuda.hardware",
    "engine.plan.decoding",
    "engine.runtime.cuda_engine",
)


def load(plan: str | Path) -> Any:
    """The engine of a plan file."""
    import engine

    return engine.load(plan)


def sample(shape: Sequence[int]) -> Any:
    import numpy as np

    return np.random.default_rng(SEED).standard_normal(tuple(shape), np.float32).astype(np.float16)


def on_device(net: Any, array: Any) -> Any:
    """An array of the engine's GPU with the contents of one of the host."""
    from engine.ir.types import DType
    from engine.runtime.cuda_feeds import DeviceArray
    from engine.runtime.cuda_memory import Block, Stream

    stream, block = Stream(net.device), Block(net.device)
    block.grow(max(array.nbytes, 1), "an input of the benchmark", "end other programs")
    net.device.upload(block.address, array.ctypes.data, array.nbytes, stream.handle)
    net.device.synchronize(stream.handle)
    return DeviceArray(block.address, array.shape, DType.of(array.dtype), stream, block)


# Making models and plans --------------------------------------------------------------------------


def task_export(name: str, folder: str) -> dict[str, Any]:
    """A model of the benchmark as ONNX in float16, with an open batch axis."""
    from benchmarks.gpu_models import export

    begin = time.perf_counter()
    path = export(name, Path(folder))
    return {"model": str(path), "seconds": time.perf_counter() - begin}


def task_build(
    model: str,
    plan: str,
    shapes: dict[str, list[Any]],
    *,
    target: str = "cuda",
    level: int = 0,
    tactics: Sequence[str] = (),
    records: Sequence[str] = (),
    keep: str = "",
) -> dict[str, Any]:
    """Build a plan file; ``records`` are files to read, ``keep`` gets those used and made."""
    from engine.building import BuildOptions, assemble_plan, optimise, read_model
    from engine.profile import parse_shapes
    from engine.tune.records import TimingRecord
    from engine.tune.tuning import tune_graph, usable_records

    begin = time.perf_counter()
    lines = [line for path in records for line in Path(path).read_text("utf-8").splitlines()]
    found = [TimingRecord.from_json(json.loads(line)) for line in lines if line]
    known = usable_records(found, target)
    options = BuildOptions(
        target=target,
        level=level,
        tactics=tuple(tactics),
        profile=parse_shapes({name: tuple(sizes) for name, sizes in shapes.items()}),
    )
    graph = optimise(read_model(model, options), options.precision)
    fresh = tune_graph(graph, options, known) if level else []
    tuned = time.perf_counter()
    built = assemble_plan(graph, options, [*known, *fresh])
    built.save(plan)
    seconds = time.perf_counter() - begin
    if keep:
        kept = [json.dumps(item.to_json(), sort_keys=True) for item in [*known, *fresh]]
        Path(keep).write_text("\n".join(kept) + "\n", "utf-8")
    return {
        "seconds": seconds,
        "assemble_s": seconds - (tuned - begin),
        "fresh_records": len(fresh),
        "known_records": len(known),
        "layers": len(built.program.layers),
        "tactics": dict(Counter(layer.tactic for layer in built.program.layers)),
    }


# Loading ------------------------------------------------------------------------------------------


def task_import() -> dict[str, Any]:
    """Everything that running an engine on a GPU imports, the driver's bindings included.

    ``init_s`` is what the driver takes to start, which grows with the GPUs of the machine.
    """
    import importlib

    begin = time.perf_counter()
    importlib.import_module("engine")
    for name in _MODULES:
        importlib.import_module(name)
    from engine.ops.operator import known

    known()
    importlib.import_module("cuda.bindings.driver")
    imported = time.perf_counter()
    from engine.cuda.driver import bindings

    bindings()
    init = time.perf_counter() - imported
    return {"seconds": imported - begin, "init_s": init, "modules": len(sys.modules)}


def task_first_output(plan: str, shape: Sequence[int], library: str = "") -> dict[str, Any]:
    """From a plan file to the first output on the host; imports and the CUDA context apart."""
    imports = task_import()["seconds"]
    from engine.cuda.device import open_device

    if library == "cudnn":
        from engine.cuda.cudnn_graph import frontend

        frontend()
    open_device(0)
    feed = sample(shape)
    before = set(sys.modules)
    begin = time.perf_counter()
    net = load(plan)
    loaded = time.perf_counter()
    (result,) = net({net.input_names[0]: feed}).values()
    ended = time.perf_counter()
    return {
        "seconds": ended - begin,
        "load_s": loaded - begin,
        "run_s": ended - loaded,
        "import_s": imports,
        "late_imports": sorted(set(sys.modules) - before)[:40],
        "finite": bool(abs(result.astype("f4")).max() < math.inf),
        "tactics": dict(Counter(layer.tactic for layer in net.program.layers)),
    }


# Running ------------------------------------------------------------------------------------------


def _seconds(context: Any, feeds: dict[str, Any], repeats: int) -> float:
    """Seconds a run, when runs are enqueued one behind the other."""
    begin = time.perf_counter()
    for _ in range(repeats):
        context.run(feeds)
    context.synchronize()
    return (time.perf_counter() - begin) / repeats


def _steady(context: Any, feeds: dict[str, Any], rounds: int = 5, repeats: int = 20) -> float:
    _seconds(context, feeds, 3)  # launches, then captures
    return statistics.median(_seconds(context, feeds, repeats) for _ in range(rounds))


def task_unseen(
    plan: str, shape: Sequence[int], batches: Sequence[int], usual: int, timed: Sequence[int]
) -> dict[str, Any]:
    """First runs of shapes that a context has not seen, over launching them directly again."""
    net = load(plan)
    (name,) = net.input_names
    context = net.create_context()
    feeds = {size: {name: on_device(net, sample((size, *shape)))} for size in batches}
    for _ in range(3):
        context.run({name: on_device(net, sample((usual, *shape)))})
    context.synchronize()
    extra = {}
    for size in batches:
        first = _seconds(context, feeds[size], 1)
        context.capture = False
        again = statistics.median(_seconds(context, feeds[size], 1) for _ in range(3))
        context.capture = True
        extra[size] = 1e3 * (first - again)
    return {
        "extra_ms": extra,
        "run_ms": {size: 1e3 * _steady(context, feeds[size]) for size in timed},
    }


def task_steady(plan: str, shape: Sequence[int]) -> dict[str, Any]:
    """Milliseconds a run of a plan in a context that has seen the shape."""
    net = load(plan)
    (name,) = net.input_names
    feeds = {name: on_device(net, sample(shape))}
    return {"run_ms": 1e3 * _steady(net.create_context(), feeds)}


def task_two(plan: str, shape: Sequence[int], runs: int = 300) -> dict[str, Any]:
    """Throughput of two contexts on streams of their own over that of one."""
    import numpy as np

    net = load(plan)
    (name,), (port,) = net.input_names, net.outputs
    (found,) = net({name: sample(shape)}).values()
    contexts = []
    for _ in range(2):
        context = net.create_context()
        context.bind(name, on_device(net, sample(shape)))
        context.bind(port.name, on_device(net, np.zeros_like(found)))
        _seconds(context, {}, 3)
        contexts.append(context)
    ones, twos = [], []
    for _ in range(5):
        ones.append(1 / _seconds(contexts[0], {}, runs))
        begin = time.perf_counter()
        for _ in range(runs):
            for context in contexts:
                context.run({})
        for context in contexts:
            context.synchronize()
        twos.append(2 * runs / (time.perf_counter() - begin))
    one, two = statistics.median(ones), statistics.median(twos)
    return {"one_per_s": one, "two_per_s": two, "ratio": two / one}


def task_arena(plan: str) -> dict[str, Any]:
    """Bytes of the arena at the greatest shapes, and the bytes alive at once; needs no GPU."""
    from engine.plan.plan import open_plan
    from engine.runtime.cuda_layout import lay_out
    from engine.runtime.steps import flat_steps, greatest_sizes

    program = open_plan(plan, verify=False).program
    sizes = greatest_sizes(program)
    if sizes is None:
        raise ValueError(f"{Path(plan).name} has a size without bound")
    arena = lay_out(program, list(flat_steps(program.steps, sizes)), sizes).arena
    ratio = arena.nbytes / arena.lower_bound if arena.lower_bound else 1.0
    return {"nbytes": arena.nbytes, "lower_bound": arena.lower_bound, "ratio": ratio}


def unseen_batches(least: int, greatest: int, usual: int, count: int) -> list[int]:
    """Random batches of a profile, none twice and none that was tuned for."""
    known = {least, usual, greatest}
    others = [size for size in range(least, greatest + 1) if size not in known]
    return random.Random(SEED).sample(others, min(count, len(others)))


TASKS = {
    name.removeprefix("task_"): task
    for name, task in list(globals().items())
    if name.startswith("task_")
}


def main(words: Sequence[str]) -> int:
    name, options = words
    print(json.dumps(TASKS[name](**json.loads(options))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
