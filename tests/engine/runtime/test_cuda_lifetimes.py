"""What ends first: work on the GPU, then the graphs, then memory and kernels; in cycles, too."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from engine.cuda.device import Launch
from engine.cuda.null_device import NullDevice, Work
from engine.errors import DeviceError
from engine.plan.structure import Program
from engine.runtime.cuda_engine import CudaEngine
from tests.cuda_programs import KERNELS, chain, side_by_side, with_counters, with_state
from tests.emulated_device import image_of

W = np.array([1, 2, 3, 4], np.float32)
IMAGES = {kernel.entry: image_of(kernel) for kernel in KERNELS}
PROGRAMS = [chain, with_state, with_counters, side_by_side]


@dataclass
class BusyDevice(NullDevice):
    """A device whose work runs until somebody waits for its stream.

    ``early`` tells what was given back before the work that uses it had ended, or, for modules,
    before a graph with their kernels.
    """

    early: list[str] = field(default_factory=list)
    _uses: dict[int, set[int]] = field(default_factory=dict)
    _module_of: dict[int, int] = field(default_factory=dict)
    _recorded: dict[int, int] = field(default_factory=dict)

    def _used(self, stream: int, *addresses: int) -> None:
        held = (*self._held.items(), *((at, len(made)) for at, made in self._pinned.items()))
        found = {at for at, size in held for address in addresses if at <= address < at + size}
        if stream not in self._capturing:
            self._uses.setdefault(stream, set()).update(found)

    def execute(self, stream: int, work: Work) -> None:
        super().execute(stream, work)
        if isinstance(work[1], Launch):
            pointers = [value for kind, value in work[1].arguments if kind == "pointer"]
            self._used(stream, *map(int, pointers))
            self._uses[stream].add(self._module_of[work[1].function])

    def upload(self, address: int, host: int, nbytes: int, stream: int) -> None:
        super().upload(address, host, nbytes, stream)
        self._used(stream, address, host)

    def download(self, host: int, address: int, nbytes: int, stream: int) -> None:
        super().download(host, address, nbytes, stream)
        self._used(stream, address, host)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        super().copy(to, source, nbytes, stream)
        self._used(stream, to, source)

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        super().clear(address, nbytes, stream)
        self._used(stream, address)

    def record(self, event: int, stream: int) -> None:
        super().record(event, stream)
        self._recorded[event] = stream

    def wait(self, stream: int, event: int) -> None:
        super().wait(stream, event)
        before = self._uses.get(self._recorded[event], set())
        self._uses[stream] = self._uses.get(stream, set()) | before

    def synchronize(self, stream: int) -> None:
        super().synchronize(stream)
        ended = self._uses.pop(stream, set())
        self._uses = {other: used - ended for other, used in self._uses.items()}

    def function(self, module: int, entry: str, shared_nbytes: int, cluster: int) -> int:
        found = super().function(module, entry, shared_nbytes, cluster)
        self._module_of[found] = module
        return found

    def release(self, address: int) -> None:
        self._check_idle("memory", address)
        super().release(address)

    def release_pinned(self, address: int) -> None:
        self._check_idle("pinned memory", address)
        super().release_pinned(address)

    def unload_module(self, module: int) -> None:
        self._check_idle("a module", module)
        works = [work for nodes in self._graphs.values() for (_, work, _), _ in nodes]
        if any(isinstance(w, Launch) and self._module_of[w.function] == module for w in works):
            self.early.append("a module of a graph")
        super().unload_module(module)

    def _check_idle(self, what: str, number: int) -> None:
        if any(number in used for used in self._uses.values()):
            self.early.append(what)


class Buffer:
    """An array of a caller's."""

    def __init__(self, device: NullDevice, size: int, stream: int | None = None) -> None:
        self.shape, self.address = (size,), device.allocate(4 * size)
        self.stream = stream
        # A caller's memory goes back to a pool of the caller's.
        weakref.finalize(self, NullDevice.release, device, self.address).atexit = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "<f4",
            "data": (self.address, False),
            "version": 3,
            "stream": self.stream,
        }


def engine_of(program: Program, device: NullDevice) -> CudaEngine:
    return CudaEngine(program, {"w": W} if program.weights else {}, IMAGES, device=device)


def used(engine: CudaEngine, device: NullDevice, stream: int | None) -> Any:
    """A context whose last run nobody has waited for."""
    context = engine.create_context(stream)
    names = engine.input_names
    for size in (5, 5, 7, 7, 7):
        kept = context.run({name: Buffer(device, size) for name in names})
    del kept
    return context


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("make", PROGRAMS)
def test_engines_in_cycles_end_after_their_work(make: Callable[[], Program], own: bool) -> None:
    device = BusyDevice()
    stream = None if own else device.create_stream()
    engine: Any = engine_of(make(), device)
    context = used(engine, device, stream)
    assert any(device._uses.values()) and device._graphs
    engine.context, context.itself, context.stream.context = context, context, context
    with device.counting() as counted:
        del engine, context
        gc.collect()
    assert not device.early and not counted["refused"]
    assert not any(device._uses.values())
    held = dict(device.held)
    assert held.pop("streams") == (0 if own else 1) and not any(held.values())


@pytest.mark.parametrize("make", PROGRAMS)
def test_a_collector_may_end_one_engine_while_another_captures(
    make: Callable[[], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = BusyDevice()
    engine: Any = engine_of(make(), device)
    engine.context = used(engine, device, None)
    begun, engines = device.begin_capture, weakref.ref(engine)
    collected: list[bool] = []

    def begin_capture(stream: int) -> None:
        begun(stream)
        if not collected:
            gc.collect()
            collected.append(engines() is None)

    monkeypatch.setattr(device, "begin_capture", begin_capture)
    with device.counting() as counted:
        del engine
        gc.disable()
        other = engine_of(make(), device)
        context = used(other, device, None)
        gc.enable()
    assert not device.early and not counted["refused"]
    assert device.held["graphs"] and collected == [True]
    context.close()
    other.close()


def test_a_collector_may_end_an_old_state_while_its_context_captures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = BusyDevice()
    context = engine_of(with_state(), device).create_context()
    names = ("x", "past")
    cycle: list[Any] = [context.run({name: Buffer(device, 5) for name in names})["present"]]
    alive = weakref.ref(cycle[0])
    cycle.append(cycle)
    begun = device.begin_capture

    def begin_capture(stream: int) -> None:
        begun(stream)
        gc.collect()

    monkeypatch.setattr(device, "begin_capture", begin_capture)
    gc.disable()
    with device.counting() as counted:
        context.run({name: Buffer(device, 6) for name in names})
        del cycle
        context.run({name: Buffer(device, 6) for name in names})
    gc.enable()
    assert alive() is None and counted["capture"] == 1
    assert not device.early and not counted["refused"]


def test_a_closed_engine_waits_for_its_contexts_and_runs_no_more() -> None:
    device = BusyDevice()
    engine = engine_of(chain(), device)
    context = used(engine, device, None)
    engine.close()
    assert not device.early and not device.held["graphs"] and not device.held["modules"]
    with pytest.raises(DeviceError, match="the engine was closed; load the plan again"):
        context.run({"x": np.zeros(5, np.float32)})
    with pytest.raises(DeviceError, match="the engine was closed"):
        engine.create_context()
    engine.close()


def test_the_null_device_runs_no_kernel_of_a_module_that_is_gone() -> None:
    device = NullDevice()
    engine = engine_of(chain(), device)
    context = engine.create_context()
    for _ in range(2):
        context.run({"x": np.zeros(5, np.float32)})
    device.unload_module(engine.loaded.modules.popitem()[1])
    with pytest.raises(DeviceError, match="a kernel whose module is gone"):
        context.run({"x": np.zeros(5, np.float32)})


def test_a_context_that_was_closed_leaves_the_callers_stream_alone() -> None:
    """Somebody else may be capturing it by then, or it may be gone."""
    device = BusyDevice()
    stream = device.create_stream()
    context = used(engine_of(chain(), device), device, stream)
    context.close()
    device.destroy_stream(stream)
    with device.counting() as counted:
        context.close()
        del context
        gc.collect()
    assert not counted["refused"] and not counted["synchronize"]


def test_a_buffer_that_is_bound_no_more_lives_until_the_work_on_it_has_ended() -> None:
    device = BusyDevice()
    context = engine_of(chain(), device).create_context()
    stream = device.create_stream()
    first: Buffer | None = Buffer(device, 9, stream)
    alive = weakref.ref(first)
    for name, buffer in (("x", first), ("y", Buffer(device, 9))):
        context.bind(name, buffer)
    context.run({})
    device.destroy_stream(stream)
    first = buffer = None
    context.bind("x", Buffer(device, 9))
    gc.collect()
    assert alive() is not None
    for _ in range(4):  # runs and buffers behind it wait for an event of that time
        context.run({})
        context.bind("x", Buffer(device, 9))
    assert device.counts["synchronize event"] and alive() is None


def test_idle_memory_of_results_goes_back_behind_those_who_read_it() -> None:
    device = BusyDevice()
    context = used(engine_of(chain(), device), device, None)
    result = context.run({"x": Buffer(device, 8)})["y"]
    _ = result.__cuda_array_interface__
    del result
    context._transfers.results._collect()
    device.early.clear()
    context._transfers.results.trim(0)
    assert not device.early
