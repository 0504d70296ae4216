"""What an engine holds on a GPU: weights, modules, calls of libraries that were prepared."""

from __future__ import annotations

import contextlib
import weakref

from engine.cuda.device import Device
from engine.cuda.libraries import PreparedCall
from engine.errors import DeviceError
from engine.runtime.cuda_memory import Block

__all__ = ["Loaded"]


class Loaded:
    """Weights, modules by the name of their machine code, calls by what tells them apart.

    The finalizers of contexts refer to it, and it refers to no engine or context. So when a
    collector finds an engine and its contexts in a cycle, this is no part of what it found: their
    streams are waited for and their graphs destroyed before it gives anything back.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.weights = Block(device)
        self.modules: dict[str, int] = {}
        self.prepared: dict[str, PreparedCall] = {}
        self._finalizer = weakref.finalize(self, _unload, device, self.modules, self.prepared)
        self._finalizer.atexit = False

    def check_open(self) -> None:
        """DeviceError when everything was given back."""
        if not self._finalizer.alive:
            raise DeviceError("the engine was closed; load the plan again to run it")

    def close(self) -> None:
        """Give everything back; nothing of it may run or be part of a graph any more."""
        self._finalizer()
        self.weights.close()


def _unload(device: Device, modules: dict[str, int], prepared: dict[str, PreparedCall]) -> None:
    with contextlib.suppress(DeviceError):
        device.use()
        while prepared:
            prepared.popitem()[1].close()
        while modules:
            device.unload_module(modules.popitem()[1])
