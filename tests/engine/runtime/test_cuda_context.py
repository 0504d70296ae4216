"""Contexts of a GPU without one: kernels run under the host shim, late, on streams that wait."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.cuda.null_device import NullDevice
from engine.errors import DeviceError, DeviceMemoryError, FeedError, PlanCorruptError
from engine.plan.device import Pointer
from engine.plan.structure import Program
from engine.runtime import cuda_context
from engine.runtime.cuda_engine import CudaEngine
from engine.runtime.cuda_feeds import DeviceArray
from tests.cuda_programs import (
    KERNELS,
    chain,
    scale,
    with_counters,
    with_fault,
    with_host_step,
    with_state,
)
from tests.emulated_device import EmulatedDevice, image_of

W = np.array([1, 2, 3, 4], np.float32)
IMAGES = {kernel.entry: image_of(kernel) for kernel in KERNELS}


def engine_of(program: Program, device: Any = None) -> CudaEngine:
    weights = {"w": W} if program.weights else {}
    return CudaEngine(program, weights, IMAGES, device=device or EmulatedDevice())


def vector(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def scaled(x: np.ndarray, factor: float) -> np.ndarray:
    return np.float32(factor) * x + np.resize(W, x.size)


def chained(x: np.ndarray, length: int = 3) -> np.ndarray:
    for _ in range(length):
        x = scaled(x, 2)
    return x


def test_the_first_run_launches_the_second_captures_and_later_ones_launch_one_graph() -> None:
    device = EmulatedDevice()
    with engine_of(chain(), device).create_context() as context:
        for turn, happened in enumerate(
            (
                {"launch": 3, "capture": 0, "graph launch": 0},
                {"captured launch": 3, "launch": 3, "capture": 1, "graph launch": 1},
                {"captured launch": 0, "prepare": 0, "capture": 0, "graph launch": 1},
            )
        ):
            with device.counting() as counted:
                x = vector(100, turn)
                np.testing.assert_allclose(context.run({"x": x})["y"], chained(x), rtol=1e-6)
            assert {name: counted[name] for name in happened} == happened
        assert counted["upload"] == counted["download"] == counted["synchronize"] == 1
        assert counted["allocate"] == counted["load"] == 0


def test_without_capture_every_run_launches_kernel_by_kernel() -> None:
    device = EmulatedDevice()
    with engine_of(chain(), device).create_context() as context:
        context.capture = False
        for _ in range(3):
            context.run({"x": vector(10)})
    assert (device.counts["launch"], device.counts["capture"]) == (9, 0)


def test_kernels_overlap_with_the_launch_before_them_on_devices_that_can() -> None:
    device = EmulatedDevice()
    with engine_of(chain(), device).create_context() as context:
        context.run({"x": vector(10)})
        assert [launch.early for launch in device.launches] == [False, True, True]
        context.programmatic = False
        context.run({"x": vector(10)})
        assert not any(launch.early for launch in device.launches[3:])
        context.programmatic = True
        context.run({"x": vector(10)})
        before = len(device.launches)
        context.profile({"x": vector(10)})
        assert not any(launch.early for launch in device.launches[before:])


def test_every_size_runs_and_the_graph_of_each_is_kept() -> None:
    device = EmulatedDevice()
    with engine_of(chain(), device).create_context() as context:
        for turn in range(3):
            for size in (1, 64, 65, 1000, 0):
                x = vector(size, turn)
                np.testing.assert_allclose(context.run({"x": x})["y"], chained(x), rtol=1e-6)
        assert device.counts["capture"] == 4  # nothing is launched for no elements
        with pytest.raises(FeedError, match="outside the profile 0 to 1000"):
            context.run({"x": vector(1001)})


def test_memory_for_the_greatest_shapes_is_taken_once() -> None:
    device = EmulatedDevice()
    with engine_of(chain(), device).create_context() as context:
        context.run({"x": vector(1)})
        with device.counting() as counted:
            context.run({"x": vector(1000)})
        assert counted["allocate"] == 0


def test_memory_that_grows_moves_every_shape() -> None:
    device = EmulatedDevice(memory_nbytes=1 << 20)
    with engine_of(chain(greatest=10**8), device).create_context() as context:
        for size in (3, 300, 3, 3, 3000, 3, 300, 3000):
            x = vector(size, size)
            for _ in range(2):
                np.testing.assert_allclose(context.run({"x": x})["y"], chained(x), rtol=1e-6)


def test_more_shapes_than_are_kept_lose_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_context, "KEPT_SHAPES", 3)
    device = EmulatedDevice()
    with engine_of(chain(), device).create_context() as context:
        for size in (1, 1, 2, 2, 3, 3, 4, 4, 1, 1):
            context.run({"x": vector(size)})
        assert device.held["graphs"] == 3
        monkeypatch.setattr(cuda_context, "KEPT_LAUNCHES", 4)
        for _ in range(2):
            context.run({"x": vector(5)})
        assert device.held["graphs"] == 1


def test_a_host_step_splits_the_graph() -> None:
    device = EmulatedDevice()
    with engine_of(with_host_step(), device).create_context() as context:
        for turn in range(4):
            x = vector(70, turn)
            expected = scaled(-scaled(x, 2), 3)
            np.testing.assert_allclose(context.run({"x": x})["y"], expected, rtol=1e-5)
    assert (device.counts["capture"], device.counts["graph launch"]) == (2, 6)


def test_counters_are_zero_when_a_step_begins() -> None:
    device = EmulatedDevice()
    with engine_of(with_counters(), device).create_context() as context:
        for size in (10, 640, 65, 10, 65):
            found = context.run({"x": vector(size)})["y"]
            np.testing.assert_array_equal(found, np.full(size, -(-size // 64), np.float32))
    assert device.counts["clear"] == 1


def test_a_state_stays_in_its_memory_from_run_to_run() -> None:
    with engine_of(with_state()).create_context() as context:
        state = np.zeros(50, np.float32)
        for turn in range(4):
            x = vector(50, turn)
            state += x
            found = context.run({"x": x})
            np.testing.assert_allclose(found["y"], scaled(state, 2), rtol=1e-5)
            assert isinstance(found["present"], DeviceArray)
            assert found["present"].address == context.state("past").address
            np.testing.assert_allclose(context.state("present").numpy(), state, rtol=1e-6)
        context.reset()
        found = context.run({"x": x})
        np.testing.assert_allclose(found["y"], scaled(x, 2), rtol=1e-5)


def test_a_state_that_is_fed_begins_there() -> None:
    with engine_of(with_state()).create_context() as context:
        past, x = vector(8, 1), vector(8, 2)
        found = context.run({"x": x, "past": past})
        assert isinstance(found["present"], np.ndarray)
        np.testing.assert_allclose(found["present"], past + x)
        np.testing.assert_allclose(context.run({"x": x})["y"], scaled(past + x + x, 2), rtol=1e-5)


def test_a_state_of_another_shape_is_new_and_the_old_one_can_still_be_read() -> None:
    with engine_of(with_state()).create_context() as context:
        x = vector(300)
        old = context.run({"x": x[:7]})["present"]
        np.testing.assert_allclose(context.run({"x": x})["y"], scaled(x, 2), rtol=1e-5)
        np.testing.assert_allclose(old.numpy(), x[:7])
        with pytest.raises(FeedError, match=r"'y' is no state; .*'past'"):
            context.state("y")


def test_contexts_have_states_and_streams_of_their_own() -> None:
    engine = engine_of(with_state())
    with engine.create_context() as one, engine.create_context() as other:
        assert one.stream.handle != other.stream.handle
        x = vector(5)
        one.run({"x": x})
        np.testing.assert_allclose(other.run({"x": x})["y"], scaled(x, 2), rtol=1e-5)
        np.testing.assert_allclose(one.run({"x": x})["y"], scaled(2 * x, 2), rtol=1e-5)


def test_an_engine_lends_its_own_contexts() -> None:
    device = EmulatedDevice()
    engine = engine_of(chain(), device)
    for _ in range(3):
        x = vector(4)
        np.testing.assert_allclose(engine({"x": x})["y"], chained(x), rtol=1e-6)
    assert device.held["streams"] == 2  # one context's: its own, and one to capture on


def test_a_callers_stream_is_used_and_never_captured() -> None:
    device = EmulatedDevice()
    given = device.create_stream()
    with engine_of(chain(), device).create_context(stream=given) as context:
        assert context.stream.handle == given
        for turn in range(3):
            x = vector(4, turn)
            np.testing.assert_allclose(context.run({"x": x})["y"], chained(x), rtol=1e-6)
        assert device.held["streams"] == 2
    with pytest.raises(FeedError, match="str is no CUDA stream"):
        engine_of(chain(), device).create_context(stream="default")


def test_a_closed_context_begins_anew() -> None:
    context = engine_of(with_state()).create_context()
    x = vector(6)
    first = context.run({"x": x})
    context.close()
    np.testing.assert_array_equal(context.run({"x": x})["y"], first["y"])


@pytest.mark.parametrize("make", [chain, with_state, with_host_step, with_counters])
def test_everything_is_given_back(make: Any) -> None:
    device = NullDevice()
    context = engine_of(make(), device).create_context()
    for size in (5, 5, 7, 7, 5):
        kept = context.run({"x": vector(size)})
    assert device.held["allocations"] > 0
    del context, kept
    gc.collect()
    assert not any(device.held.values())
    assert device.nbytes["held"] == 0


@pytest.mark.parametrize("make", [chain, with_state, with_host_step, with_counters])
def test_everything_is_given_back_in_a_cycle(make: Any) -> None:
    """A collector may end a context's stream before the context itself."""
    device = NullDevice()
    context: Any = engine_of(make(), device).create_context()
    kept = [context.run({"x": vector(size)}) for size in (5, 5, 7, 7, 5)]
    context.itself, context.stream.context = context, context
    with device.counting() as counted:
        del context, kept
        gc.collect()
    assert counted["refused"] == 0, "something was used that was gone"
    assert not any(device.held.values())
    assert device.nbytes["held"] == 0


def test_too_little_memory_says_how_much_for_what_and_what_helps() -> None:
    small = NullDevice(memory_nbytes=1000)
    with pytest.raises(DeviceMemoryError) as caught:
        engine_of(chain(greatest=10**8), small).create_context().run({"x": vector(1000)})
    text = str(caught.value)
    for part in ("a context at N=1000", "16.00 KiB", "1000 bytes", "weights hold", "smaller"):
        assert part in text
    with pytest.raises(DeviceMemoryError, match=r"the 1 weights of the engine"):
        engine_of(chain(), NullDevice(memory_nbytes=100))


def test_greatest_shapes_that_do_not_fit_are_not_reserved() -> None:
    device = NullDevice(memory_nbytes=1 << 20)
    with engine_of(chain(greatest=10**8), device).create_context() as context:
        context.run({"x": vector(100)})
        with pytest.raises(DeviceMemoryError):
            context.run({"x": vector(10**6)})
        context.run({"x": vector(100)})


def test_a_fault_names_the_layers_and_the_context_closes() -> None:
    device = NullDevice()
    context = engine_of(with_fault(), device).create_context()
    context.run({"x": vector(9)})
    device.fault = "the GPU reported an access to memory that is not there"
    with pytest.raises(DeviceError, match=r"layers layer 0, layer 1, layer 2; .*synchronous"):
        context.run({"x": vector(9)})
    context.synchronous = True
    with pytest.raises(DeviceError, match=r"layer 'layer 0' .*not there"):
        context.run({"x": vector(9)})
    context.close()


def test_a_profile_has_a_time_for_each_layer() -> None:
    device = EmulatedDevice()
    with engine_of(with_host_step(), device).create_context() as context:
        for capture in (True, False):
            context.capture = capture
            times = context.profile({"x": vector(9)})
            assert sorted(times) == [0, 1, 2] and min(times.values()) > 0
        assert device.held["graphs"] == 0
    assert device.held["events"] <= 4


@pytest.mark.parametrize(
    ("offset", "message"), [(-1, "from byte -4"), (101, "0 elements from byte 404")]
)
def test_no_pointer_leaves_its_tensor(offset: int, message: str) -> None:
    whole = chain()
    first = scale(0, 1, 2, 2.0, 0)
    wrong = replace(first, parameters=(Pointer(0, offset), *first.parameters[1:]))
    bad = replace(whole, steps=(wrong, *whole.steps[1:]))
    with engine_of(bad).create_context() as context, pytest.raises(PlanCorruptError, match=message):
        context.run({"x": vector(100)})


def test_inputs_of_a_wrong_kind_are_refused() -> None:
    with engine_of(chain()).create_context() as context:
        for feeds, message in (
            ({}, "'x' .* is missing"),
            ({"x": vector(3), "z": 1}, "no input 'z'"),
            ({"x": vector(3).astype(np.float64)}, "float64, expected float32"),
            ({"x": vector(4).reshape(2, 2)}, "2 axes"),
        ):
            with pytest.raises(FeedError, match=message):
                context.run(feeds)
        with pytest.raises(FeedError, match="no output 'q'"):
            context.run({"x": vector(3)}, outputs={"q": vector(3)})


def test_outputs_go_into_arrays_of_the_host() -> None:
    with engine_of(chain()).create_context() as context:
        x, y = vector(9), np.zeros(9, np.float32)
        assert context.run({"x": x}, outputs={"y": y})["y"] is y
        np.testing.assert_allclose(y, chained(x), rtol=1e-6)
        for wrong in (np.zeros(8, np.float32), np.zeros(9), np.zeros(18, np.float32)[::2]):
            with pytest.raises(FeedError, match="output 'y'"):
                context.run({"x": x}, outputs={"y": wrong})
