"""The layer over the driver, with a driver made of answers: errors become sentences of ours."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cuda import driver, hardware
from engine.cuda.device import Launch, device_count, probe
from engine.cuda.tensor_map import EncodedBox
from engine.errors import DeviceError, DeviceMemoryError, KernelError, MissingExtraError
from engine.ir.types import DType

real = pytest.importorskip("cuda.bindings.driver")

ATTRIBUTES = {
    "COMPUTE_CAPABILITY_MAJOR": 9,
    "COMPUTE_CAPABILITY_MINOR": 0,
    "MULTIPROCESSOR_COUNT": 132,
    "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 232448,
    "L2_CACHE_SIZE": 60 << 20,
}


class Answers:
    """The real bindings' types and enumerations; functions answer what a test says."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "cuDriverGetVersion": (0, 13000),
            "cuInit": (0,),
            "cuDeviceGetCount": (0, 1),
            "cuDeviceGet": (0, 0),
            "cuDeviceGetName": (0, b"NVIDIA H200\0\0"),
            "cuDeviceTotalMem": (0, 150_000_000_000),
            "cuDeviceGetAttribute": self._attribute,
            "cuDevicePrimaryCtxRetain": (0, 77),
            "cuCtxSetCurrent": (0,),
            "cuGetErrorName": lambda error: (0, str(error.name).encode()),
            "cuGetErrorString": lambda error: (0, b"what the driver says"),
            **answers,
        }
        self.calls: list[tuple[Any, ...]] = []

    @staticmethod
    def _attribute(which: Any, handle: int) -> tuple[int, int]:
        return 0, ATTRIBUTES[which.name.removeprefix("CU_DEVICE_ATTRIBUTE_")]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu") or name.startswith("cuuint"):
            return getattr(real, name)

        def answer(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            found = self.answers[name]
            if isinstance(found, Exception):
                raise found
            return found(*arguments) if callable(found) else found

        return answer


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(**answers: Any) -> Answers:
        made = Answers(**answers)
        package = SimpleNamespace(driver=made)
        monkeypatch.setitem(sys.modules, "cuda.bindings", package)
        driver.bindings.cache_clear()
        hardware.describe_device.cache_clear()
        return made

    yield use
    driver.bindings.cache_clear()
    hardware.describe_device.cache_clear()


def test_a_gpu_is_described_by_what_the_driver_says(answering: Any) -> None:
    answering()
    found = probe(0)
    assert (found.name, found.architecture, found.memory_gib) == ("h200", "sm_90", 140)
    assert (found.multiprocessors, found.shared_nbytes) == (132, 227 << 10)
    assert device_count() == 1
    with pytest.raises(DeviceError, match="no GPU with the number 1: 1 were found"):
        probe(1)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"cuDriverGetVersion": RuntimeError("libcuda.so.1 is not there")}, "no NVIDIA driver"),
        ({"cuDriverGetVersion": (0, 12040)}, r"too old: it serves CUDA 12\.4, needed is 13\.0"),
        ({"cuInit": (real.CUresult.CUDA_ERROR_NO_DEVICE,)}, "no GPU can be used: there is none"),
        ({"cuDeviceGetCount": (0, 0)}, "none was found"),
        ({"cuDeviceGetName": (real.CUresult.CUDA_ERROR_UNKNOWN, b"")}, "could not ask the GPU"),
    ],
)
def test_a_machine_without_a_usable_gpu_says_why(
    answering: Any, answers: dict[str, Any], message: str
) -> None:
    answering(**answers)
    with pytest.raises(DeviceError, match=message):
        probe(0)


def test_an_old_gpu_is_refused(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTRIBUTES, "COMPUTE_CAPABILITY_MAJOR", 7)
    answering()
    with pytest.raises(DeviceError, match=r"compute capability 7\.0; needed is 8\.0"):
        probe(0)


def test_without_the_bindings_the_extra_is_named(
    answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'enginefarm\[cuda\]'"):
        probe(0)
    assert device_count() == 0


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("OUT_OF_MEMORY", DeviceMemoryError, "too little free memory to try it"),
        ("ILLEGAL_ADDRESS", DeviceError, "memory that is not there .*cannot use the GPU any more"),
        ("NO_BINARY_FOR_GPU", KernelError, "does not take the machine code"),
        ("INVALID_VALUE", DeviceError, "could not try it: CUDA_ERROR_INVALID_VALUE: what the"),
    ],
)
def test_answers_become_errors_of_ours(answering: Any, code: str, kind: type, message: str) -> None:
    answering(cuTry=(getattr(real.CUresult, f"CUDA_ERROR_{code}"), None))
    with pytest.raises(kind, match=message):
        driver.call("cuTry", doing="try it")


def test_results_come_without_the_error(answering: Any) -> None:
    answering(cuNone=(0,), cuOne=(0, 5), cuTwo=(0, 1, 2))
    assert driver.call("cuNone", doing="") is None
    assert driver.call("cuOne", doing="") == 5
    assert driver.call("cuTwo", doing="") == (1, 2)


def _launched(answers: Answers) -> tuple[Any, list[bytes]]:
    name, config, _, address, extra = answers.calls[-1]
    assert (name, extra) == ("cuLaunchKernelEx", 0)
    return config, [
        ctypes.string_at(pointer, size)
        for pointer, size in zip((ctypes.c_void_p * 4).from_address(address), (8, 4, 4, 128))
    ]


def test_a_launch_hands_over_its_grid_attributes_and_parameters(answering: Any) -> None:
    answers = answering(cuLaunchKernelEx=(0,))
    device = hardware.CudaDevice(0)
    box = bytes(range(128))
    launch = Launch(
        function=123,
        grid=(6, 2, 1),
        threads=256,
        shared_nbytes=1000,
        cluster=2,
        early=True,
        arguments=(("pointer", 1 << 40), ("i32", -3), ("f32", 1.5), ("map", box)),
    )
    enqueue = device.prepare(launch)
    for stream in (5, 5, 9):
        enqueue(stream)
        config, (pointer, integer, number, descriptor) = _launched(answers)
        assert int(config.hStream) == stream
        assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (6, 2, 1)
        assert (config.blockDimX, config.sharedMemBytes, config.numAttrs) == (256, 1000, 2)
        kinds = [attribute.id.name for attribute in config.attrs]
        assert "CLUSTER_DIMENSION" in kinds[0] and "PROGRAMMATIC_STREAM" in kinds[1]
        assert config.attrs[0].value.clusterDim.x == 2
        assert config.attrs[1].value.programmaticStreamSerializationAllowed == 1
        assert int.from_bytes(pointer, "little") == 1 << 40
        assert int.from_bytes(integer, "little", signed=True) == -3
        assert ctypes.c_float.from_buffer_copy(number).value == 1.5
        assert descriptor == box


def test_a_refused_launch_is_an_error(answering: Any) -> None:
    answering(cuLaunchKernelEx=(real.CUresult.CUDA_ERROR_INVALID_VALUE,))
    enqueue = hardware.CudaDevice(0).prepare(Launch(1, (1, 1, 1), 32, 0, 1, False, ()))
    with pytest.raises(DeviceError, match="could not launch a kernel"):
        enqueue(0)


def test_a_tensor_map_is_asked_for_in_the_drivers_terms(answering: Any) -> None:
    made = real.CUtensorMap()
    answers = answering(cuTensorMapEncodeTiled=(0, made))
    box = EncodedBox(DType.FLOAT16, 4096, (64, 58), (128,), (64, 16), (1, 2), 128)
    assert len(hardware.CudaDevice(0).encode(box)) == 128
    arguments = answers.calls[-1][1:]
    assert arguments[0].name.endswith("FLOAT16") and arguments[1:3] == (2, 4096)
    assert [[int(item) for item in part] for part in arguments[3:7]] == [
        [64, 58],
        [128],
        [64, 16],
        [1, 2],
    ]
    names = [item.name for item in arguments[7:]]
    assert [name.rsplit("_", 1)[-1] for name in names] == ["NONE", "128B", "128B", "NONE"]


def test_only_much_shared_memory_needs_permission(answering: Any) -> None:
    answers = answering(cuModuleGetFunction=(0, 4), cuFuncSetAttribute=(0,))
    device = hardware.CudaDevice(0)
    device.function(1, "kernel", 48 << 10, 1)
    assert [call[0] for call in answers.calls if call[0] == "cuFuncSetAttribute"] == []
    device.function(1, "kernel", 200 << 10, 16)
    set_to = [call[2:] for call in answers.calls if call[0] == "cuFuncSetAttribute"]
    assert [value for _, value in set_to] == [200 << 10, 1]


def test_a_broken_capture_is_forgotten_and_a_whole_one_instantiated(answering: Any) -> None:
    invalid = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    answers = answering(cuStreamEndCapture=(0, 11), cuGraphInstantiate=(0, 12), cuGraphDestroy=(0,))
    device = hardware.CudaDevice(0)
    assert device.end_capture(3) == 12
    assert answers.calls[-1] == ("cuGraphDestroy", 11)
    answers.answers["cuStreamEndCapture"] = (invalid, 0)
    device.abandon_capture(3)
    with pytest.raises(DeviceError, match="could not capture a graph"):
        device.end_capture(3)


@pytest.mark.parametrize("ending", ["end_capture", "abandon_capture"])
def test_nobody_waits_for_everything_while_another_thread_captures(
    answering: Any, ending: str
) -> None:
    answers = answering(
        cuStreamBeginCapture=(0,),
        cuStreamEndCapture=(0, 11),
        cuGraphInstantiate=(0, 12),
        cuGraphDestroy=(0,),
        cuCtxSynchronize=(0,),
    )
    device = hardware.CudaDevice(0)
    device.begin_capture(3)
    other = threading.Thread(target=device.synchronize_all)
    other.start()
    other.join(0.2)
    names = [name for name, *_ in answers.calls]
    assert "cuCtxSynchronize" not in names
    getattr(device, ending)(3)
    other.join(10)
    assert [name for name, *_ in answers.calls].count("cuCtxSynchronize") == 1
    answers.answers["cuStreamBeginCapture"] = (real.CUresult.CUDA_ERROR_INVALID_VALUE,)
    with pytest.raises(DeviceError, match="could not begin to capture"):
        device.begin_capture(3)
    again = threading.Thread(target=device.synchronize_all)
    again.start()
    again.join(10)
    assert not again.is_alive()


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100-1g.10gb"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx4070ti"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA Graphics Device", "gpu"),
    ],
)
def test_classes_of_gpus_have_short_names(name: str, short: str) -> None:
    assert hardware.short_name(name) == short


def test_every_function_and_name_used_exists_in_the_bindings() -> None:
    text = "".join(
        Path(module.__file__).read_text(encoding="utf-8") for module in (driver, hardware)
    )
    names = set(re.findall(r'"(cu[A-Z]\w+)"', text)) | set(re.findall(r"driver\.(\w+)\(", text))
    assert len(names) > 30
    assert not [name for name in names if not hasattr(real, name)]
    for kind, member in re.findall(r"driver\.(CU\w+)\.(CU_\w+)", text):
        assert hasattr(getattr(real, kind), member)
    for member in re.findall(r"kinds\.(CU_\w+)", text):
        homes = (real.CUfunction_attribute, real.CUlaunchAttributeID, real.CUevent_flags)
        assert any(hasattr(home, member) for home in homes), member
    for name in ATTRIBUTES:
        assert hasattr(real.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")


def test_running_loads_no_compiler_and_no_library() -> None:
    code = (
        "import sys, engine.loading, engine.runtime.cuda_engine, engine.cuda.hardware\n"
        "import cuda.bindings.driver\n"
        "print(*{name.split('.')[0] for name in sys.modules}, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "cuda.bindings.driver" in loaded
    heavy = {"triton", "torch", "cupy", "cudnn", "onnx", "cuda.bindings.nvrtc", "nvmath"}
    assert not loaded & heavy
