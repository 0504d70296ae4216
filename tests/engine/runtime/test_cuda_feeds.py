"""Arrays on a GPU in and out: DLPack, the array interface, order between streams."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engine.errors import FeedError
from engine.ir.types import DType
from engine.runtime import dlpack
from engine.runtime.cuda_engine import CudaEngine
from engine.runtime.cuda_feeds import DeviceArray, device_view, on_device
from engine.runtime.cuda_memory import LEGACY, Stream
from tests.cuda_programs import KERNELS, chain, with_state
from tests.emulated_device import EmulatedDevice, image_of

W = np.array([1, 2, 3, 4], np.float32)
IMAGES = {kernel.entry: image_of(kernel) for kernel in KERNELS}


def engine_of(device: EmulatedDevice, make: Any = chain) -> CudaEngine:
    return CudaEngine(make(), {"w": W}, IMAGES, device=device)


def chained(x: np.ndarray) -> np.ndarray:
    for _ in range(3):
        x = np.float32(2) * x + np.resize(W, x.size)
    return x


def vector(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


class Foreign:
    """An array of another library: written late, on a stream of the library's own."""

    def __init__(self, device: EmulatedDevice, value: np.ndarray, stream: int = LEGACY) -> None:
        self.device, self.stream = device, stream
        self.shape, self.dtype = value.shape, value.dtype
        self.address = device.allocate(value.nbytes)
        self.write(value)

    def write(self, value: np.ndarray) -> None:
        self.device.upload(self.address, value.ctypes.data, value.nbytes, self.stream)

    def read(self) -> np.ndarray:
        found = np.empty(self.shape, self.dtype)
        self.device.download(found.ctypes.data, self.address, found.nbytes, self.stream)
        self.device.synchronize(self.stream)
        return found


class ByInterface(Foreign):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": self.stream,
        }


class ByDlpack(Foreign):
    index = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.index

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        assert stream not in (None, 0)
        event = self.device.create_event()
        self.device.record(event, self.stream)
        self.device.wait(stream, event)
        dtype = DType.of(self.dtype)
        return dlpack.make_capsule(self.address, self.index, dtype, self.shape, self)


@pytest.mark.parametrize("kind", [ByInterface, ByDlpack])
def test_arrays_on_the_device_stay_there(kind: Any) -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        for turn in range(4):
            x = vector(90, turn)
            with device.counting() as counted:
                found = context.run({"x": kind(device, x)})["y"]
            assert isinstance(found, DeviceArray)
            assert counted["synchronize"] == counted["download"] == 0
            np.testing.assert_allclose(found.numpy(), chained(x), rtol=1e-6)


@pytest.mark.parametrize("kind", [ByInterface, ByDlpack])
def test_an_input_may_be_overwritten_on_the_default_stream_after_the_run(kind: Any) -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        first, second = vector(64, 1), vector(64, 2)
        array = kind(device, first)
        one = context.run({"x": array})["y"]
        array.write(second)
        device.synchronize(LEGACY)  # the write happens now, after the copy of the run
        two = context.run({"x": array})["y"]
        np.testing.assert_allclose(one.numpy(), chained(first), rtol=1e-6)
        np.testing.assert_allclose(two.numpy(), chained(second), rtol=1e-6)


def test_results_are_memory_of_their_own_and_serve_again_when_dropped() -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        x = [vector(33, seed) for seed in range(4)]
        found = [context.run({"x": ByInterface(device, item)})["y"] for item in x]
        assert len({item.address for item in found}) == 4
        for given, item in zip(x, found):
            np.testing.assert_allclose(item.numpy(), chained(given), rtol=1e-6)
        del item
        dropped = found.pop().address
        again = context.run({"x": ByInterface(device, x[0])})["y"]
        assert again.address == dropped


def test_memory_of_a_result_is_not_written_while_its_taker_reads_it() -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        x, target = vector(33, 1), ByInterface(device, np.zeros(33, np.float32))
        found = context.run({"x": ByInterface(device, x)})["y"]
        capsule = found.__dlpack__(stream=LEGACY)
        device.copy(target.address, found.address, found.nbytes, LEGACY)
        del capsule, found
        gc.collect()
        later = ByInterface(device, vector(33, 2), stream=context.stream.handle)
        other = context.run({"x": later})["y"]
        context.synchronize()
        del other
        np.testing.assert_allclose(target.read(), chained(x), rtol=1e-6)


def test_bound_buffers_are_read_and_written_without_copies() -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        x = ByInterface(device, vector(40, 1), stream=context.stream.handle)
        y = ByDlpack(device, np.zeros(40, np.float32), stream=context.stream.handle)
        context.bind("x", x)
        context.bind("y", y)
        for turn in range(4):
            given = vector(40, turn)
            x.write(given)
            with device.counting() as counted:
                assert context.run({})["y"] is y
            assert counted["copy"] == counted["upload"] == 0
            np.testing.assert_allclose(y.read(), chained(given), rtol=1e-6)
        assert device.counts["capture"] == 1
        context.unbind("y")
        np.testing.assert_allclose(context.run({})["y"].numpy(), chained(given), rtol=1e-6)
        fed = vector(40, 9)
        np.testing.assert_allclose(context.run({"x": fed})["y"], chained(fed), rtol=1e-6)


def test_two_sets_of_buffers_keep_a_graph_each() -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        stream = context.stream.handle
        sets = [ByInterface(device, vector(20, seed), stream) for seed in range(2)]
        for _ in range(3):
            for seed, x in enumerate(sets):
                context.bind("x", x)
                found = context.run({})["y"]
                np.testing.assert_allclose(found.numpy(), chained(vector(20, seed)), rtol=1e-6)
        assert device.counts["capture"] == 2


def test_a_bound_state_is_updated_where_it_lies() -> None:
    device = EmulatedDevice()
    with engine_of(device, with_state).create_context() as context:
        past = ByInterface(device, vector(12, 3), stream=context.stream.handle)
        context.bind("past", past)
        state = vector(12, 3)
        for turn in range(3):
            x = vector(12, turn)
            state = state + x
            assert context.run({"x": x})["present"] is past
            np.testing.assert_allclose(past.read(), state, rtol=1e-6)
        assert context.state("past") is past
        with pytest.raises(FeedError, match="updates the input 'past' in place"):
            context.bind("present", past)


def test_outputs_go_into_arrays_on_the_device() -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        x, y = vector(17), ByDlpack(device, np.zeros(17, np.float32))
        assert context.run({"x": x}, outputs={"y": y})["y"] is y
        np.testing.assert_allclose(y.read(), chained(x), rtol=1e-6)
        for wrong in (np.zeros(16, np.float32), np.zeros(17)):
            with pytest.raises(FeedError, match="output 'y'"):
                context.run({"x": x}, outputs={"y": ByDlpack(device, wrong)})


def test_pinned_memory_is_not_overwritten_before_it_was_read() -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        given = [vector(25, seed) for seed in range(5)]
        targets = [ByInterface(device, np.zeros(25, np.float32)) for _ in given]
        for x, y in zip(given, targets):
            context.run({"x": x}, outputs={"y": y})
        for x, y in zip(given, targets):
            np.testing.assert_allclose(y.read(), chained(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (8,)}, "not C-contiguous"),
        ({"typestr": "<f8"}, "float64, expected float32"),
        ({"shape": (3, 3)}, "2 axes"),
        ({"typestr": "nonsense"}, "broken __cuda_array_interface__"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    device = EmulatedDevice()
    told = ByInterface(device, vector(9)).__cuda_array_interface__ | change
    array = SimpleNamespace(__cuda_array_interface__=told)
    with engine_of(device).create_context() as context:
        with pytest.raises(FeedError, match=message):
            context.run({"x": array})
        with pytest.raises(FeedError, match=message):
            context.bind("x", array)


def test_buffers_that_cannot_be_bound_are_refused() -> None:
    device = EmulatedDevice()
    with engine_of(device).create_context() as context:
        whole = ByInterface(device, vector(100))
        told = whole.__cuda_array_interface__
        shifted = SimpleNamespace(
            __cuda_array_interface__=told | {"data": (whole.address + 4, False), "shape": (9,)}
        )
        for name, array, message in (
            ("q", whole, "no input or output 'q'"),
            ("x", vector(9), "ndarray, expected an array on the GPU"),
            ("x", shifted, "multiple of 256"),
        ):
            with pytest.raises(FeedError, match=message):
                context.bind(name, array)
        context.bind("x", whole)
        context.bind("y", whole)
        with pytest.raises(FeedError, match="bound to 'y' and 'x' overlap"):
            context.run({})
        context.bind("y", ByInterface(device, vector(99)))
        with pytest.raises(FeedError, match=r"'y' is float32\[100\].*\[99\]"):
            context.run({})


def test_an_array_on_another_gpu_is_refused() -> None:
    device = EmulatedDevice()
    array = ByDlpack(device, vector(9))
    array.index = 1
    context = engine_of(device).create_context()
    with pytest.raises(FeedError, match="lies on GPU 1, the engine runs on GPU 0"):
        context.run({"x": array})


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "int64", "uint8", "bool", "float8e4m3fn"]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 4), (2, 3, 4)])
def test_capsules_say_what_was_put_into_them(dtype: str, shape: tuple[int, ...]) -> None:
    owner = np.zeros(1)
    before = len(dlpack._handed)
    capsule = dlpack.make_capsule(4096, 3, DType(dtype), shape, owner)
    found = dlpack.read_capsule(capsule, "it")
    assert (found.address, found.device) == (4096, (dlpack.CUDA, 3))
    assert (found.dtype, found.shape) == (DType(dtype), shape)
    if 0 not in shape:
        wanted = np.zeros(shape, np.uint8).strides
        assert found.strides == wanted
    del capsule
    assert len(dlpack._handed) == before


def test_a_capsule_that_was_taken_lives_until_its_taker_frees_it() -> None:
    """NumPy takes a capsule of host memory, as another library takes one of a GPU's."""
    memory = np.arange(6, dtype=np.float32)
    before = len(dlpack._handed)
    capsule = dlpack.make_capsule(memory.ctypes.data, 0, DType.FLOAT32, (2, 3), memory)
    managed = dlpack._Managed.from_address(dlpack._pointer_of(capsule, b"dltensor"))
    managed.tensor.device.kind = 1

    class OnHost:
        def __init__(self, capsule: Any) -> None:
            self.capsule = capsule

        def __dlpack__(self, **_: Any) -> Any:
            return self.capsule

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    taken = np.from_dlpack(OnHost(capsule))
    del capsule
    gc.collect()
    np.testing.assert_array_equal(taken, memory.reshape(2, 3))
    assert len(dlpack._handed) == before + 1
    del taken
    gc.collect()
    assert len(dlpack._handed) == before


def test_what_lies_on_a_device_is_told_by_its_protocols() -> None:
    device = EmulatedDevice()
    assert on_device(ByDlpack(device, vector(1))) and on_device(ByInterface(device, vector(1)))
    assert not any(map(on_device, (vector(1), [1.0], 3, "text", None, np.float32(1))))


def test_an_engines_array_goes_into_another_engine() -> None:
    device = EmulatedDevice()
    engine = engine_of(device)
    with engine.create_context() as one, engine.create_context() as other:
        x = vector(70)
        middle = one.run({"x": ByDlpack(device, x)})["y"]
        assert middle.shape == (70,) and middle.dtype == np.float32 and middle.ndim == 1
        last = other.run({"x": middle})["y"]
        np.testing.assert_allclose(np.asarray(last), chained(chained(x)), rtol=1e-5)


def test_element_types_without_a_name_in_the_interface_go_by_dlpack() -> None:
    device = EmulatedDevice()
    stream = Stream(device)
    array = DeviceArray(device.allocate(8), (4,), DType.BFLOAT16, stream)
    assert not hasattr(array, "__cuda_array_interface__")
    view = device_view(array, "it", 0, stream)
    assert view.dtype == np.dtype(ml_dtypes.bfloat16) and view.nbytes == 8
    with pytest.raises(BufferError):
        array.__dlpack__(copy=True)
