"""What `benchmarks.start_up` runs in processes of its own: one task each, JSON on stdout."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def task_import(names: str) -> dict[str, Any]:
    """The time that `import engine` takes in a fresh interpreter, with some of its names used."""
    used = "".join(f"engine.{name}; " for name in names.split(",") if name)
    code = (
        f"import time; t = time.perf_counter(); import engine; {used}print(time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {"seconds": float(done.stdout)}


def task_command(*words: str) -> dict[str, Any]:
    """One verb as a process of its own, timed from its start to its end."""
    code = "from workers.cli import main; main()"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--json"], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-1000:])
    return {**json.loads(done.stdout), "process_seconds": seconds}


def task_first_output(plan: str) -> dict[str, Any]:
    """From a plan file to the first output, once everything is imported."""
    import engine
    from benchmarks import models
    from engine.kernels import runner  # noqa: F401  what load imports on its way

    # Operators and kernels are found by importing their folders: part of the imports, too.
    from engine.kernels.kernel import KERNELS
    from engine.ops.operator import known
    from engine.plan import decoding  # noqa: F401
    from engine.runtime import context  # noqa: F401

    assert len(KERNELS) and known()
    feeds = models.inputs("resnet50")
    began = time.perf_counter()
    net = engine.load(plan)
    net(feeds)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "compiled": net.kernels.addresses is not None}


def task_make_great(folder: str, layers: str, width: str) -> dict[str, Any]:
    """A chain of matrix products and Relus whose weights lie in one file of 3 GB."""
    import numpy as np
    from onnx import TensorProto, helper

    count, n = int(layers), int(width)
    block = np.random.default_rng(0).standard_normal((n, n), np.float32) / np.float32(np.sqrt(n))
    nodes, weights = [], []
    with (Path(folder) / "great.bin").open("wb") as file:
        for index in range(count):
            tensor = TensorProto(name=f"w{index}", dims=(n, n), data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            place = (("location", "great.bin"), ("offset", file.tell()), ("length", block.nbytes))
            for key, value in place:
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            np.roll(block, index, axis=0).tofile(file)
            nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"y{index}"]))
            nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n])
        for name in ("x0", f"x{count}")
    ]
    graph = helper.make_graph(nodes, "great", ends[:1], ends[1:], initializer=weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(folder) / "great.onnx"
    path.write_bytes(proto.SerializeToString())
    return {"model": str(path), "nbytes": count * block.nbytes}


def task_build_great(model: str, plan: str) -> dict[str, Any]:
    """Build and save; the most memory that the process ever held, mapped files included."""
    import engine

    began = time.perf_counter()
    engine.build(model, level=1).save(plan)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak, "seconds": time.perf_counter() - began}


def task_load_great(plan: str) -> dict[str, Any]:
    """Load with verification; memory of the process's own that came with it, and a run."""
    import numpy as np

    import engine

    engine.load  # noqa: B018  imports what loading needs
    feeds = {"x0": np.ones((1, 4096), np.float32)}
    before = own_memory()
    began = time.perf_counter()
    net = engine.load(plan, compile="wait")
    seconds = time.perf_counter() - began
    result = net(feeds)
    after = own_memory()
    assert all(np.isfinite(array).all() for array in result.values())
    return {"seconds": seconds, "own": after - before}


def own_memory() -> int:
    """Bytes in memory that are no mapped file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell how much memory is a process's own")


def task_record(model: str, records: str) -> dict[str, Any]:
    """Tune a model and keep its timing records."""
    from engine.building import BuildOptions, optimise, read_model
    from engine.tune.tuning import tune_graph

    options = BuildOptions(level=2)
    graph = optimise(read_model(model, options), options.precision)
    found = tune_graph(graph, options, [])
    Path(records).write_text(json.dumps([record.to_json() for record in found]))
    return {"records": len(found)}


def task_build(model: str, records: str) -> dict[str, Any]:
    """Build from records alone, and the digest of the file."""
    import engine
    from engine.tune.records import TimingRecord

    known = [TimingRecord.from_json(item) for item in json.loads(Path(records).read_bytes())]
    place = Path("built.engine")
    engine.build(model, level=2, records=known).save(place)
    return {"digest": hashlib.sha256(place.read_bytes()).hexdigest()}


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    print(json.dumps(globals()[f"task_{name}"](*words)))
