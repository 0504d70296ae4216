"""What each layer of an engine on a GPU writes, in one run where no layer overwrites another.

Memory that nobody wrote holds bytes that are no number, so that a layer which reads it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.cuda.device import Device
from engine.ir.types import Array
from engine.plan.arena import Request, plan_arena
from engine.plan.structure import FlatStep, Program
from engine.runtime.cuda_binding import CudaBinding
from engine.runtime.cuda_engine import CudaEngine
from engine.runtime.cuda_layout import Layout, lay_out
from engine.runtime.cuda_memory import Block, Stream
from engine.runtime.feeds import bind_symbols, check_feeds
from engine.runtime.steps import arena_requests

__all__ = ["DeviceCapture"]

#: Bytes of poison that are copied at a time.
POISONED_NBYTES = 1 << 26


class DeviceCapture:
    """One run of an engine on its GPU with memory of its own for every value.

    Raises DeviceMemoryError when all intermediate values together do not fit.
    """

    def __init__(self, engine: CudaEngine, feeds: Mapping[str, Any]) -> None:
        engine.device.use()
        self.program, self._device = engine.program, engine.device
        self._stream = Stream(engine.device)
        given = check_feeds(engine.program, feeds)
        sizes = bind_symbols(engine.program, given)
        self._binding = CudaBinding(engine, sizes, {})
        self._binding.layout = layout = _apart(engine.program, self._binding.steps, sizes)
        self._memory, self._zeros = Block(engine.device), Block(engine.device)
        helps = "compare layers at smaller sizes"
        self._memory.grow(max(layout.nbytes, 1), "every intermediate value at once", helps)
        self._zeros.grow(max(layout.zeros_nbytes, 1), "the counters of kernels", helps)
        handle = self._stream.handle
        _poison(engine.device, self._memory, handle)
        engine.device.clear(self._zeros.address, self._zeros.nbytes, handle)
        self._binding.prepare(self._memory.address, self._zeros.address, 1, programmatic=False)
        self._values: dict[int, Any] = {}
        for index, value in zip(engine.program.inputs, given, strict=True):
            port = self._binding.ports.get(index)
            if port is None:
                self._values[index] = value
            elif value is not None:
                array = np.ascontiguousarray(value)
                engine.device.upload(port.address, array.ctypes.data, array.nbytes, handle)
                engine.device.synchronize(handle)  # the array is ours to drop only now
        self._binding.run_apart(handle, self._values)

    @property
    def steps(self) -> list[FlatStep]:
        """The steps that ran."""
        return self._binding.steps

    def view(self, slot: int) -> Array:
        """A copy of a tensor as the run left it."""
        found = self._binding.fetch(slot, self._stream.handle, self._values)
        self._device.synchronize(self._stream.handle)
        return np.array(found)

    def close(self) -> None:
        """Give the memory back."""
        self._binding.close()
        self._memory.close()
        self._zeros.close()


def _poison(device: Device, memory: Block, stream: int) -> None:
    """Fill memory with bytes that are not-a-numbers in every float."""
    poison = np.full(min(memory.nbytes, POISONED_NBYTES), 0xFF, np.uint8)
    for start in range(0, memory.nbytes, POISONED_NBYTES):
        count = min(POISONED_NBYTES, memory.nbytes - start)
        device.upload(memory.address + start, poison.ctypes.data, count, stream)
    device.synchronize(stream)


def _apart(program: Program, steps: list[FlatStep], sizes: Mapping[str, int]) -> Layout:
    """The layout of a context in which everything in the arena lives from first to last."""
    usual = lay_out(program, steps, sizes)
    requests = arena_requests(program, steps, sizes)
    arena = plan_arena([Request(item.id, item.nbytes, 0, len(steps)) for item in requests])
    shift = arena.nbytes - usual.arena.nbytes
    ports = {i: at + shift for i, at in usual.places.items() if i not in usual.arena.offsets}
    places = {**ports, **arena.offsets}
    return Layout(arena, places, usual.nbytes + shift, usual.zeros, usual.zeros_nbytes)
