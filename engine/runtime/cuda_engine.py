"""Engines on a GPU: weights and kernels on the device once, shared read-only by all contexts."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.cuda.device import Device
from engine.cuda.libraries import PreparedCall
from engine.errors import PlanCorruptError, TargetMismatchError
from engine.ir.types import Array
from engine.plan.accesses import touched_slots
from engine.plan.device import LibraryStep
from engine.plan.slots import is_fixed, root_of
from engine.plan.structure import ChooseStep, HostStep, KernelStep, Program
from engine.runtime.cuda_context import CudaContext
from engine.runtime.cuda_layout import aligned, lay_out
from engine.runtime.cuda_loaded import Loaded
from engine.runtime.interface import Port, ProgramInterface, every_step, host_calls
from engine.runtime.steps import flat_steps, greatest_sizes

__all__ = ["CudaEngine", "Port"]

#: Memory for the greatest shapes is reserved at once up to this part of the device's memory.
RESERVED_PART = 16


class CudaEngine(ProgramInterface):
    """A plan ready to run on a GPU. Safe to use from several threads at once.

    ``weights`` are arrays by name, ``images`` machine code by the name that functions give it.
    Raises DeviceMemoryError when the weights do not fit, TargetMismatchError for another GPU.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Array],
        images: Mapping[str, bytes],
        *,
        device: Device,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(program)
        self.weights, self.device = weights, device
        self.metadata = dict(metadata or {})
        _check_target(self.metadata, device)
        missing = {f.tensor for f in program.functions} - set(images)
        if missing:
            raise PlanCorruptError(f"the plan lacks the machine code {sorted(missing)[0]!r}")
        self.images = images
        self.calls = host_calls(program, weights)
        self.library_lock = threading.Lock()
        self._lock = threading.Lock()
        self._idle: list[CudaContext] = []
        self._greatest: dict[frozenset[int], int] = {}
        self._functions: dict[int, int] = {}
        self._contexts: weakref.WeakSet[CudaContext] = weakref.WeakSet()
        device.use()
        self.loaded = Loaded(device)
        self._addresses = self._upload()

    @property
    def weights_nbytes(self) -> int:
        """Bytes of the weights on the device."""
        return self.loaded.weights.nbytes

    def _upload(self) -> dict[str, int]:
        """Copy every weight that a step on the device reads; offsets by name."""
        program = self.program
        roots: dict[int, None] = {}
        for step in every_step(program.steps):
            on_host = isinstance(step, HostStep) and step.function not in ("copy", "cupy")
            if isinstance(step, ChooseStep | KernelStep) or on_host:
                continue
            roots.update((root_of(program, slot), None) for slot in touched_slots(step))
        held = [
            program.slots[root].name
            for root in sorted(roots)
            if program.slots[root].place == "weight" and is_fixed(program.slots[root])
        ]
        places, end = {}, 0
        for name in held:
            places[name] = end
            end += aligned(max(self.weights[name].nbytes, 1))
        if not held:
            return {}
        self.loaded.weights.grow(
            end, f"the {len(held)} weights of the engine", "close other engines and contexts"
        )
        stream = self.device.create_stream()
        try:
            for name in held:
                array = np.ascontiguousarray(self.weights[name])
                address = self.loaded.weights.address + places[name]
                self.device.upload(address, array.ctypes.data, array.nbytes, stream)
            self.device.synchronize(stream)
        finally:
            self.device.destroy_stream(stream)
        return {name: self.loaded.weights.address + place for name, place in places.items()}

    @property
    def device_weights(self) -> list[str]:
        """Names of the weights that lie on the device."""
        return list(self._addresses)

    def weight_address(self, name: str) -> int:
        """Where a weight lies on the device."""
        self.loaded.check_open()
        return self._addresses[name]

    def function(self, index: int) -> int:
        """The device's handle of a function of the program; its module is loaded on first use."""
        self.loaded.check_open()
        with self._lock:
            if index not in self._functions:
                function = self.program.functions[index]
                module = self.loaded.modules.get(function.tensor)
                if module is None:
                    image = bytes(self.images[function.tensor])
                    module = self.device.load_module(image, function.entry)
                    self.loaded.modules[function.tensor] = module
                self._functions[index] = self.device.function(
                    module, function.entry, function.shared_nbytes, function.cluster
                )
            return self._functions[index]

    def library_call(self, step: LibraryStep, sizes: Sequence[int]) -> PreparedCall:
        """A library's call at these sizes, prepared once; run it under `library_lock`."""
        key = json.dumps([step.library, dict(step.call), list(sizes)], sort_keys=True)
        self.loaded.check_open()
        with self._lock:
            if key not in self.loaded.prepared:
                library = self.device.library(step.library)
                with self.library_lock:
                    prepared = library.prepare(step.call, sizes, self.device.target)
                self.loaded.prepared[key] = prepared
            return self.loaded.prepared[key]

    def greatest_nbytes(self, external: frozenset[int]) -> int:
        """Bytes of a context at the greatest shapes; 0 when that is too much to take at once.

        Inputs and outputs in ``external`` lie in memory of the caller's.
        """
        with self._lock:
            if external not in self._greatest:
                self._greatest[external] = self._measured(external)
            return self._greatest[external]

    def _measured(self, external: frozenset[int]) -> int:
        sizes = greatest_sizes(self.program)
        if not sizes:
            return 0
        try:
            steps = list(flat_steps(self.program.steps, sizes))
            needed = lay_out(self.program, steps, sizes, external).nbytes
        except (KeyError, ZeroDivisionError):  # sizes that only a run settles
            return 0
        return needed if needed <= self.device.memory()[1] // RESERVED_PART else 0

    def close(self) -> None:
        """Close all contexts, and give the weights and kernels back; no context runs any more.

        Waits for what its contexts have enqueued. No thread may be running one of them.
        """
        with self._lock:
            self._idle.clear()
        for context in list(self._contexts):
            context.close()
        self.loaded.close()

    def create_context(self, stream: object = None) -> CudaContext:
        """A context: memory, bound shapes and graphs of its own.

        It enqueues on ``stream`` (an integer, or a stream of CuPy, torch or cuda.core), or on one
        of its own. Raises DeviceMemoryError when the device is full.
        """
        self.loaded.check_open()
        context = CudaContext(self, stream)
        self._contexts.add(context)
        return context

    def wait_until_compiled(self) -> bool:
        """True: kernels of a GPU are compiled when the plan is built."""
        return True

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run once, arrays by name in and out; threads that call at once each get a context."""
        with self._lock:
            context = self._idle.pop() if self._idle else None
        context = context or self.create_context()
        try:
            return context.run(inputs)
        finally:
            with self._lock:
                self._idle.append(context)


def _check_target(metadata: Mapping[str, Any], device: Device) -> None:
    """Machine code runs on its own compute capability, before 9.0 also on later minor ones."""
    target = metadata.get("target") or {}
    if target.get("vendor") != "cuda" or "capability" not in target:
        return
    built, here = tuple(target["capability"]), device.target.capability
    later = built < (9, 0) and built[0] == here[0] and built < here
    if built != here and not later:
        raise TargetMismatchError(
            f"the plan was built for compute capability {built[0]}.{built[1]}, GPU {device.index} "
            f"({device.target.name}) has {here[0]}.{here[1]}; build the model for this GPU"
        )
