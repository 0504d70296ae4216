"""Generated CUDA C on a real GPU, behind the interface of the host shim.

With ENGINEFARM_TEST_KERNELS=gpu in the environment `tests.cuda_shim.run_kernel` comes here, so that
every test of a kernel under the shim is also a test of the machine code. Arrays lie between guard
bytes; every kernel runs twice and must write the same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.cuda.device import Argument, Device, Launch, open_device
from engine.cuda.kernel import DeviceKernel
from engine.cuda.nvrtc import compile_nvrtc

__all__ = ["run_on_gpu"]

GUARD = 4096
POISON = 0xFF


@functools.cache
def _device() -> Device:
    return open_device()


@functools.cache
def _stream() -> int:
    return _device().create_stream()


_FUNCTIONS: dict[str, int] = {}


def _function(kernel: DeviceKernel) -> int:
    """The loaded function of a kernel, compiled once per process."""
    if kernel.digest not in _FUNCTIONS:
        device = _device()
        compiled = compile_nvrtc(kernel, device.target.capability)
        module = device.load_module(compiled.image, kernel.entry)
        _FUNCTIONS[kernel.digest] = device.function(module, kernel.entry, kernel.shared_nbytes, 1)
    return _FUNCTIONS[kernel.digest]


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class _Buffer:
    """Device memory with a copy of an array between guard bytes."""

    def __init__(self, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.array = array
        self.host = np.full(array.nbytes + 2 * GUARD, POISON, np.uint8)
        self.host[GUARD : GUARD + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        self.address = _device().allocate(self.host.nbytes)
        _device().upload(self.address, self.host.ctypes.data, self.host.nbytes, _stream())

    def address_of(self, view: np.ndarray) -> int:
        return self.address + GUARD + view.ctypes.data - self.array.ctypes.data

    def fetch(self, entry: str) -> bytes:
        """The array's bytes after the kernel has run; guards must be as they were."""
        found = np.empty_like(self.host)
        _device().download(found.ctypes.data, self.address, found.nbytes, _stream())
        _device().synchronize(_stream())
        _device().release(self.address)
        end = GUARD + self.array.nbytes
        for guard in (found[:GUARD], found[end:]):
            assert (guard == POISON).all(), f"{entry} writes outside of an array"
        return found[GUARD:end].tobytes()


def run_on_gpu(
    kernel: DeviceKernel,
    grid: Sequence[int],
    arguments: Sequence[Any],
    *,
    deterministic: bool = True,
) -> None:
    """Run a kernel on NumPy arrays in place; arguments as `tests.cuda_shim.run_kernel` takes."""
    _device().use()
    results: list[list[bytes]] = []
    buffers: dict[int, _Buffer] = {}
    for _ in range(2):
        buffers = {}
        passed = tuple(_argument(item, buffers) for item in arguments)
        x, y, z = (*grid, 1, 1)[:3]
        launch = Launch(
            _function(kernel), (x, y, z), kernel.threads, kernel.shared_nbytes, 1, False, passed
        )
        _device().prepare(launch)(_stream())
        results.append([item.fetch(kernel.entry) for item in buffers.values()])
    for buffer, first, second in zip(buffers.values(), *results):
        assert not deterministic or first == second, f"two runs of {kernel.entry} differ"
        if buffer.array.flags.writeable:
            buffer.array.reshape(-1).view(np.uint8)[:] = np.frombuffer(second, np.uint8)


def _argument(item: Any, buffers: dict[int, _Buffer]) -> Argument:
    if item is None:
        return "pointer", 0
    if isinstance(item, np.ndarray):
        root = _root(item)
        if id(root) not in buffers:
            buffers[id(root)] = _Buffer(root)
        return "pointer", buffers[id(root)].address_of(item)
    if isinstance(item, tuple):
        kind, number = item
        return kind, number
    assert isinstance(item, np.generic)
    kinds = {"int32": "i32", "int64": "i64", "float32": "f32"}
    return kinds[item.dtype.name], item.item()  # type: ignore[return-value]
