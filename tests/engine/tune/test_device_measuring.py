"""Contests on a device: wrong and faulting entrants are told from right ones, right ones timed."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cuda.compare import RESULT_NBYTES, compare_kernel, read_difference
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.errors import DeviceError, DeviceMemoryError
from engine.ir.types import DType, TensorType
from engine.plan.device import DeviceFunction, LaunchStep, Pointer, Scalar
from engine.plan.structure import Layer, Program, Slot, Weight
from engine.tune import device_tuning
from engine.tune.contest import Contest, Entrant, Outcome
from engine.tune.device_measuring import DeviceMeasurer
from engine.tune.measuring_process import MeasuringProcess
from tests.cuda_shim import run_kernel
from tests.emulated_device import EmulatedDevice, image_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the shim needs g++")

SCALE = """
extern "C" __global__ void scale(const float *x, const float *w, float *y, int count) {
  int i = blockIdx.x * 64 + threadIdx.x;
  if (i < count) y[i] = x[i] * w[i % 8]EXTRA;
}
"""
COUNT = 200


def compiled(kernels: Sequence[DeviceKernel]) -> list[Compiled]:
    return [Compiled(image_of(k), k.entry, k.threads, k.shared_nbytes) for k in kernels]


def entrant(extra: str = "", *, count: int = COUNT) -> Entrant:
    """y = x * w, with something wrong in it perhaps."""
    kernel = DeviceKernel("nvrtc", "scale", SCALE.replace("EXTRA", extra), 64)
    kind = TensorType(DType.FLOAT32, (COUNT,))
    weight = TensorType(DType.FLOAT32, (8,))
    parameters = (Pointer(0), Pointer(2), Pointer(1, 0, writes=True), Scalar("i32", count))
    program = Program(
        symbols=(),
        slots=(Slot(kind, "input", "x"), Slot(kind, "output", "y"), Slot(weight, "weight", "w0")),
        inputs=(0,),
        outputs=(1,),
        kernels=(),
        steps=(LaunchStep(0, (4, 1, 1), parameters, 0),),
        layers=(Layer("layer", "Scale"),),
        weights=(Weight("w0", DType.FLOAT32, (8,), "w0"),),
        functions=(DeviceFunction("image0", "scale", 64),),
    )
    weights = {"w0": np.linspace(0.5, 2, 8).astype(np.float32)}
    return Entrant(program, weights, {"image0": image_of(kernel)})


def contest(*entrants: Entrant) -> Contest:
    return Contest(entrant(), entrants, samples=5, tolerance=1e-3)


@functools.cache
def measurer() -> DeviceMeasurer:
    return DeviceMeasurer(EmulatedDevice(), compiled)


def test_right_entrants_are_timed_and_wrong_ones_have_a_reason() -> None:
    touched: list[int] = []
    found = measurer().measure(
        contest(
            entrant(),
            entrant(" + 0.5f"),
            entrant(count=150),
            entrant(" * (1 + 1e-6f)"),
        ),
        touched.append,
    )
    assert [bool(item.samples) for item in found] == [True, False, False, True]
    assert "off by 0.5" in found[1].reason
    assert "50 elements of 200" in found[2].reason, "what is not written stays NaN"
    assert touched[:4] == [0, 1, 2, 3]


def test_writing_behind_the_end_is_found_even_where_the_result_is_right() -> None:
    beyond = "; if (i == 0) y[count] = 1"
    (found,) = measurer().measure(contest(entrant(beyond)))
    assert "behind the end" in found.reason and not found.samples


def test_an_entrant_for_which_memory_was_short_is_not_held_to_have_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = DeviceMeasurer._ready

    def short(self: DeviceMeasurer, place: int, *rest: Any) -> Any:
        if place == 1:
            raise DeviceMemoryError("needed are 9 GiB")
        return ready(self, place, *rest)

    monkeypatch.setattr(DeviceMeasurer, "_ready", short)
    first, second = measurer().measure(contest(entrant(), entrant()))
    assert first.samples and first.lasting
    assert not second.samples and "9 GiB" in second.reason and not second.lasting


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.INT32])
def test_the_difference_of_two_tensors_is_computed_on_the_device(dtype: DType) -> None:
    random = np.random.default_rng(3)
    wanted = (random.standard_normal(1000) * 8).astype(dtype.numpy)
    found = wanted.copy()
    found[17] = found[17] + dtype.numpy.type(3)
    if dtype.is_float:
        wanted[5], found[5] = np.nan, np.nan
        found[40] = np.inf
    raw = {2: np.uint16}.get(dtype.nbytes, dtype.numpy)
    result = np.zeros(RESULT_NBYTES, np.uint8)
    arguments = [found.view(raw), wanted.view(raw), ("i64", 1000), result]
    run_kernel(compare_kernel(dtype), (2, 1, 1), arguments)
    off = read_difference(result.tobytes(), 1000)
    if not dtype.is_float:
        assert off.wrong == 1
        return
    exact = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    assert off.wrong == 1
    assert off.greatest == pytest.approx(np.nanmax(exact[np.isfinite(exact)]), rel=1e-6)
    assert off.spread == pytest.approx(np.nanstd(wanted.astype(np.float64)), rel=1e-2)


class Stubborn:
    """A measurer for tests: entrants are told apart by the number of their blocks."""

    def measure(self, wanted: Contest, touching: object) -> list[Outcome]:
        outcomes = []
        for place, item in enumerate(wanted.entrants):
            touching(place)  # type: ignore[operator]
            (step,) = item.program.steps
            assert isinstance(step, LaunchStep)
            kind = step.parameters[3]
            assert isinstance(kind, Scalar)
            if kind.value == 13:
                import os

                os._exit(7)
            if kind.value == 14:
                import time

                time.sleep(60)
            if kind.value == 15:
                raise DeviceError("an illegal address")
            outcomes.append(Outcome((100.0, 110.0, 120.0)))
        return outcomes


def stubborn(index: int) -> Stubborn:
    return Stubborn()


def test_a_crash_a_hang_and_a_fault_cost_only_who_caused_them() -> None:
    module = sys.modules[__name__].__name__
    patience = {"entrant": 5.0}
    with MeasuringProcess(0, factory=f"{module}:stubborn", patience=patience) as process:
        found = process.measure(
            contest(entrant(), entrant(count=13), entrant(count=14), entrant(count=15), entrant())
        )
        again = process.measure(contest(entrant()))
    assert [bool(item.samples) for item in (*found, *again)] == [True, *[False] * 3, True, True]
    assert "ended with code 7" in found[1].reason
    assert "hung" in found[2].reason
    assert found[3].reason == "an illegal address"


def test_without_a_device_measuring_says_so() -> None:
    with MeasuringProcess(99) as process, pytest.raises(DeviceError):
        process.measure(contest(entrant()))


def test_every_file_that_writes_kernels_counts_for_the_toolchain() -> None:
    root = Path(device_tuning.__file__).parent.parent
    counted = {p for pattern in device_tuning._GENERATORS for p in root.glob(pattern)}
    assert all(any(root.glob(pattern)) for pattern in device_tuning._GENERATORS)
    for name in ("cuda/region.py", "templates/gemm.py", "tactics/cudnn_convolution.py"):
        assert root / name in counted
    writers = {
        path
        for path in root.rglob("*.py")
        if "DeviceKernel(" in path.read_text(encoding="utf-8")
        and "class DeviceKernel" not in path.read_text(encoding="utf-8")
    }
    assert writers <= counted, sorted(writers - counted)
