"""The CUDA runtime on a GPU: graphs, streams, other libraries' arrays, faults, full memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cuda.device import Device, open_device, probe
from engine.errors import DeviceMemoryError
from engine.ir.types import DType, TensorType
from engine.plan.structure import Program
from engine.runtime.cuda_engine import CudaEngine
from tests.cuda_programs import (
    KERNELS,
    N,
    chain,
    with_counters,
    with_fault,
    with_host_step,
    with_state,
)

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent.parent.parent
W = np.array([1, 2, 3, 4], np.float32)


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device(0)


@pytest.fixture(scope="module")
def images(device: Device) -> dict[str, bytes]:
    from engine.cuda.nvrtc import compile_nvrtc

    capability = device.target.capability
    return {kernel.entry: compile_nvrtc(kernel, capability).image for kernel in KERNELS}


@pytest.fixture
def make(device: Device, images: dict[str, bytes]) -> Any:
    def engine_of(program: Program) -> CudaEngine:
        weights = {"w": W} if program.weights else {}
        return CudaEngine(program, weights, images, device=device)

    return engine_of


def vector(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def scaled(x: np.ndarray, factor: float) -> np.ndarray:
    return np.float32(factor) * x + np.resize(W, x.size)


def chained(x: np.ndarray, length: int = 3) -> np.ndarray:
    for _ in range(length):
        x = scaled(x, 2)
    return x


def close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-5)


def test_the_device_is_what_it_is(device: Device) -> None:
    found = probe(0)
    assert found == device.target and found.capability >= (8, 0)
    free, total = device.memory()
    assert 0 < free <= total and abs(total / (1 << 30) - found.memory_gib) < 1


@pytest.mark.parametrize("capture", [True, False])
def test_every_size_runs_direct_captured_and_replayed(make: Any, capture: bool) -> None:
    with make(chain()).create_context() as context:
        context.capture = capture
        for turn in range(4):
            for size in (1, 64, 65, 1000, 0):
                x = vector(size, turn)
                close(context.run({"x": x})["y"], chained(x))


def test_host_steps_states_and_counters(make: Any) -> None:
    with make(with_host_step()).create_context() as context:
        for turn in range(3):
            x = vector(70, turn)
            close(context.run({"x": x})["y"], scaled(-scaled(x, 2), 3))
    with make(with_counters()).create_context() as context:
        for size in (10, 640, 65, 10, 65, 10):
            expected = np.full(size, -(-size // 64), np.float32)
            close(context.run({"x": vector(size)})["y"], expected)
    with make(with_state()).create_context() as context:
        state = np.zeros(50, np.float32)
        for turn in range(4):
            x = vector(50, turn)
            state += x
            found = context.run({"x": x})
            close(found["y"], scaled(state, 2))
        close(found["present"].numpy(), state)


def test_a_long_chain_is_the_same_with_kernels_that_overlap(make: Any) -> None:
    """Every kernel reads what the one before it writes: a missing wait shows."""
    found = {}
    x = vector(1000) * np.float32(1e-3)
    for programmatic in (True, False):
        with make(chain(60)).create_context() as context:
            context.programmatic = programmatic
            runs = [context.run({"x": x})["y"] for _ in range(20)]
            assert all(np.array_equal(run, runs[0]) for run in runs)
            found[programmatic] = runs[0]
    np.testing.assert_array_equal(found[True], found[False])


def test_arrays_of_cupy(make: Any) -> None:
    cupy = pytest.importorskip("cupy")
    with make(chain()).create_context() as context:
        for turn in range(6):
            x = cupy.random.default_rng(turn).standard_normal(1000, dtype=cupy.float32)
            expected = chained(cupy.asnumpy(x))
            found = context.run({"x": x})["y"]
            x.fill(0)  # on CuPy's stream, after the run has read it
            close(cupy.asnumpy(cupy.asarray(found)), expected)
            close(cupy.asnumpy(cupy.from_dlpack(found)), expected)
        y = cupy.zeros(1000, cupy.float32)
        assert context.run({"x": x}, outputs={"y": y})["y"] is y
        close(cupy.asnumpy(y), chained(np.zeros(1000, np.float32)))
    stream = cupy.cuda.Stream(non_blocking=True)
    with make(chain()).create_context(stream=stream) as context:
        x, y = cupy.ones(500, cupy.float32), cupy.zeros(500, cupy.float32)
        cupy.cuda.Device().synchronize()
        context.bind("x", x)
        context.bind("y", y)
        with stream:
            for turn in range(4):
                x.fill(turn)
                assert context.run({})["y"] is y
                close(cupy.asnumpy(y), chained(np.full(500, turn, np.float32)))


def test_arrays_of_torch(make: Any) -> None:
    torch = pytest.importorskip("torch")
    with make(chain()).create_context() as context:
        for turn in range(6):
            x = torch.full((1000,), float(turn), device="cuda")
            found = torch.from_dlpack(context.run({"x": x})["y"])
            x.zero_()
            close(found.cpu().numpy(), chained(np.full(1000, turn, np.float32)))
    stream = torch.cuda.Stream()
    with make(chain()).create_context(stream=stream) as context, torch.cuda.stream(stream):
        for turn in range(6):
            x = torch.full((1000,), float(turn), device="cuda")
            found = torch.from_dlpack(context.run({"x": x})["y"])
            close(found.cpu().numpy(), chained(np.full(1000, turn, np.float32)))


def test_contexts_on_streams_of_their_own_run_at_once(make: Any) -> None:
    engine = make(chain(20))
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            with engine.create_context() as context:
                for turn in range(100):
                    x = vector(1 + (worker * 31 + turn) % 5 * 200, turn)
                    close(context.run({"x": x})["y"], chained(x, 20))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not failures, failures[0]


def test_memory_is_given_back(make: Any, device: Device) -> None:
    def once() -> int:
        context = make(chain(20)).create_context()
        for size in (10, 10, 1000, 1000):
            context.run({"x": vector(size)})
        del context
        return device.memory()[0]

    def kept() -> bool:
        first = once()
        return min(once() for _ in range(20)) < first - (4 << 20)

    # Other programs on the GPU take memory too; what leaks is lost each time.
    assert not all(kept() for _ in range(5))


def test_too_little_memory_is_said_and_survived(make: Any) -> None:
    whole = chain()
    wide = TensorType(DType.FLOAT32, (N, 1 << 30))
    slots = [replace(s, type=wide) if s.place == "arena" else s for s in whole.slots]
    with make(replace(whole, slots=tuple(slots))).create_context() as context:
        x = vector(1)
        close(context.run({"x": x})["y"], chained(x))
        with pytest.raises(
            DeviceMemoryError, match=r"a context at N=1000 \(.* GiB for inter.*free"
        ):
            context.run({"x": vector(1000)})
        close(context.run({"x": x})["y"], chained(x))


def test_a_profile_has_a_time_for_each_layer(make: Any) -> None:
    with make(chain(5)).create_context() as context:
        context.run({"x": vector(100)})
        times = context.profile({"x": vector(100)})
        assert sorted(times) == list(range(5))
        assert all(0 < nanoseconds < 5_000_000 for nanoseconds in times.values())


FAULTY = """
import numpy as np
from engine.cuda.device import open_device
from engine.cuda.nvrtc import compile_nvrtc
from engine.errors import DeviceError
from engine.runtime.cuda_engine import CudaEngine
from tests.cuda_programs import KERNELS, with_fault

device = open_device(0)
images = {k.entry: compile_nvrtc(k, device.target.capability).image for k in KERNELS}
engine = CudaEngine(with_fault(), {"w": np.ones(4, np.float32)}, images, device=device)
context = engine.create_context()
context.synchronous = SYNCHRONOUS
try:
    context.run({"x": np.ones(100, np.float32)})
except DeviceError as error:
    print(f"caught {error}")
context.close()
print(np.ones(3).sum())
"""


@pytest.mark.parametrize(
    ("synchronous", "message"),
    [(False, "layers layer 0, layer 1, layer 2"), (True, "layer 'layer 1'")],
)
def test_a_fault_names_layers_and_leaves_the_process_alive(synchronous: bool, message: str) -> None:
    assert with_fault().functions
    done = subprocess.run(
        [sys.executable, "-c", FAULTY.replace("SYNCHRONOUS", str(synchronous))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "memory that is not there" in done.stdout and message in done.stdout
    assert done.stdout.rstrip().endswith("3.0")


@pytest.mark.parametrize("programmatic", [True, False])
def test_times_of_a_chain_of_small_kernels(
    make: Any, device: Device, programmatic: bool, record_property: Any
) -> None:
    """Prints what a boundary between kernels costs, and the host's part of a run."""
    with make(chain(200)).create_context() as context:
        context.programmatic = programmatic
        x = vector(1000)
        for _ in range(5):
            context.run({"x": x})
        begin, end = device.create_event(timed=True), device.create_event(timed=True)
        stream = context.stream.handle
        device.record(begin, stream)
        binding = next(iter(context._bound.values()))
        for _ in range(20):
            binding.run(stream, {}, capture_on=context._capturing())
        device.record(end, stream)
        device.synchronize(stream)
        boundary = device.elapsed_ns(begin, end) / 20 / 200
        began = time.perf_counter()
        for _ in range(100):
            context.run({"x": x})
        whole = (time.perf_counter() - began) / 100 * 1e6
        print(f"programmatic={programmatic}: {boundary:.0f} ns a kernel, {whole:.1f} us a run")
        record_property("ns_per_kernel", boundary)
        assert boundary < 20_000
