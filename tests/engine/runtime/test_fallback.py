"""Without a compiler, or before it is done, NumPy twins serve; BLAS keeps its threads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.runtime import blas
from engine.runtime.kernels import KernelSet
from tests.engine.small_models import assert_close, built, model

ROOT = Path(__file__).parents[3]
BODY = """(float[N, 40] x) => (float[] y) {
    a = MatMul (x, w)
    g = Gelu (a)
    y = Softmax (g)
}"""
WEIGHTS = {"w": np.random.default_rng(1).standard_normal((40, 24)).astype(np.float32)}
X = np.random.default_rng(2).standard_normal((5, 40)).astype(np.float32)

SCRIPT = """
import sys, warnings, numpy as np, engine
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    net = engine.load(sys.argv[1])
    found = net({"x": np.load(sys.argv[2])})
print(net.wait_until_compiled())
for warning in caught:
    print(warning.category.__name__, warning.message)
np.save(sys.argv[3], found["y"])
"""


def test_without_a_compiler_one_warning_says_so_and_results_are_right(tmp_path: Path) -> None:
    engine.build(model(BODY, weights=WEIGHTS), level=0).save(tmp_path / "m.engine")
    np.save(tmp_path / "x.npy", X)
    names = [str(tmp_path / name) for name in ("m.engine", "x.npy", "y.npy")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        cwd=ROOT,
        env={**os.environ, "ENGINEFARM_CC": "/nonexistent/cc"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "False"
    (warning,) = lines[1:]
    assert warning.startswith("RuntimeWarning no C compiler") and "/nonexistent/cc" in warning
    wanted = built(model(BODY, weights=WEIGHTS))({"x": X})["y"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, rtol=1e-4, atol=1e-6)


def test_twins_serve_until_the_kernels_are_there(private_cache: Path) -> None:
    plan = engine.build(model(BODY, weights=WEIGHTS), level=0)
    net = engine.load(plan, compile="background")
    first = net({"x": X})
    assert net.wait_until_compiled()
    second = net({"x": X})
    assert_close(second, first)
    assert net._idle[-1]._bound.popitem()[1].compiled


class Finished(Future[Any]):
    """A future that tells every thread at once that it is done."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self.barrier = barrier

    def done(self) -> bool:
        # Where only one thread may ask at a time, it waits for the others in vain.
        with contextlib.suppress(threading.BrokenBarrierError):
            self.barrier.wait(timeout=0.2)
        return super().done()


def test_threads_that_find_the_kernels_at_once_all_get_them() -> None:
    kernels = KernelSet([], "never")
    kernels._addresses, kernels._names = None, ["f"]
    future = Finished(threading.Barrier(4))
    future.set_result({"f": 7})
    kernels._future = future
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(kernels.addresses)
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(item in ([7], None) for item in found) and [7] in found
    assert kernels.addresses == [7]


def test_a_failed_compilation_warns_once_and_twins_go_on() -> None:
    kernels = KernelSet([], "never")
    kernels._addresses = None
    future: Future[Any] = Future()
    future.set_exception(RuntimeError("cc is on holiday"))
    kernels._future = future
    with pytest.warns(RuntimeWarning, match="cc is on holiday") as caught:
        assert kernels.addresses is None
    assert kernels.addresses is None and not kernels.wait() and len(caught) == 1


def test_blas_has_its_threads_back_after_a_step_also_when_it_fails() -> None:
    controls = blas._controls()
    if controls is None:
        pytest.skip("NumPy's BLAS here is no OpenBLAS")
    read, write = controls
    before = read()
    write(2)
    try:
        with blas.single_threaded():
            assert read() == 1
            with blas.single_threaded():
                assert read() == 1
            assert read() == 1
        assert read() == 2
        with pytest.raises(ZeroDivisionError), blas.single_threaded():
            _ = 1 // 0
        assert read() == 2
    finally:
        write(before)


def test_blas_has_its_threads_back_after_threads_that_overlap() -> None:
    controls = blas._controls()
    if controls is None:
        pytest.skip("NumPy's BLAS here is no OpenBLAS")
    read, write = controls
    before = read()
    write(2)
    entered, leave = threading.Event(), threading.Event()

    def long() -> None:
        with blas.single_threaded():
            entered.set()
            leave.wait(timeout=10)

    try:
        thread = threading.Thread(target=long)
        thread.start()
        entered.wait(timeout=10)
        with blas.single_threaded():
            leave.set()
            thread.join()
            assert read() == 1, "another thread's step gave BLAS its threads back too early"
        assert read() == 2
    finally:
        write(before)
