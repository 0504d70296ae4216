"""Arrays into and out of a context: pinned memory, copies on the device, the order of streams."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import DeviceError, FeedError
from engine.ir.types import Array, DType, TensorType
from engine.plan.slots import root_of
from engine.runtime.cuda_binding import CudaBinding
from engine.runtime.cuda_feeds import DeviceArray, DeviceView, device_view, on_device
from engine.runtime.cuda_memory import LEGACY, Block, Pinned, ResultPool, Stream
from engine.runtime.feeds import owned

if TYPE_CHECKING:
    from engine.runtime.cuda_engine import CudaEngine

__all__ = ["Fixed", "Run", "State", "Transfers"]

#: Copies between the host and the device up to this size go through pinned memory.
PINNED_NBYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class State:
    """Memory that a context keeps for an input that an output updates in place."""

    memory: Block
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A caller's buffer for an input or output."""

    array: Any
    view: DeviceView


@dataclass(slots=True)
class Run:
    """What one run was given: checked feeds by slot, and values that Python owns."""

    feeds: dict[int, Any]
    outputs: Mapping[str, Any]
    values: dict[int, Any] = field(default_factory=dict)

    @property
    def on_device(self) -> bool:
        """Whether any input lies on the device."""
        return any(isinstance(feed, DeviceView) for feed in self.feeds.values())


class Transfers:
    """Brings inputs to a context's memory and outputs out of it; used by one thread at a time.

    ``fixed`` and ``states`` are the context's own and change with it.
    """

    def __init__(
        self,
        engine: CudaEngine,
        stream: Stream,
        fixed: Mapping[str, Fixed],
        states: Mapping[int, State],
    ) -> None:
        self.engine, self.stream, self.device = engine, stream, stream.device
        self.results = ResultPool(stream)
        self._fixed, self._states = fixed, states
        self._pinned: dict[int, Pinned] = {}
        self._held: deque[tuple[int, list[DeviceView]]] = deque()
        self._events: list[int] = []
        #: The event after which pinned memory may be written again.
        self._uploaded: int | None = None

    def close(self) -> None:
        """Give everything back; nothing of it may be in use on the stream."""
        events = [*self._events, *(event for event, _ in self._held)]
        if self._uploaded is not None:
            events.append(self._uploaded)
        with contextlib.suppress(DeviceError):
            for event in events:
                self.device.destroy_event(event)
        self._events.clear()
        self._held.clear()
        self._uploaded = None
        for pinned in self._pinned.values():
            pinned.close()
        self._pinned.clear()
        self.results.close()

    def take(self, run: Run, binding: CudaBinding) -> None:
        """Bring the inputs to where the program reads them."""
        self.results.reopen()
        views: list[DeviceView] = []
        staged = False
        for index, feed in run.feeds.items():
            place = binding.ports.get(index)
            if place is None:
                run.values[index] = feed
            elif isinstance(feed, DeviceView):
                address = place.address
                if address != feed.address:
                    self.device.copy(address, feed.address, feed.nbytes, self.stream.handle)
                    views.append(feed)
            elif feed is not None:
                if self._uploaded is not None:  # pinned memory may still be read
                    self.device.synchronize_event(self._uploaded)
                    self._events.append(self._uploaded)
                    self._uploaded = None
                self._upload(index, feed, place.address)
                staged = True
        if views:
            self.hold(views)
        if staged:
            self._uploaded = self._mark()

    def _upload(self, index: int, feed: Array, address: int) -> None:
        if feed.nbytes > PINNED_NBYTES:
            self.device.upload(address, feed.ctypes.data, feed.nbytes, self.stream.handle)
            return
        pinned = self._staging(index).take(feed.nbytes)
        pinned[:] = feed.reshape(-1).view(np.uint8)
        self.device.upload(address, pinned.ctypes.data, feed.nbytes, self.stream.handle)

    def _staging(self, index: int) -> Pinned:
        if index not in self._pinned:
            self._pinned[index] = Pinned(self.device, self.stream.pending)
        return self._pinned[index]

    def _mark(self) -> int:
        """An event that stands for the stream so far."""
        event = self._events.pop() if self._events else self.device.create_event()
        self.device.record(event, self.stream.handle)
        return event

    def hold(self, views: list[DeviceView]) -> None:
        """Keep callers' arrays until they were copied, and let their streams wait for that."""
        others = {view.stream for view in views if view.stream is not None}
        for other in others | ({LEGACY} if self.stream.owned else set()):
            self.stream.hold_back(other)
        self._held.append((self._mark(), views))
        while len(self._held) > 2:
            event, _ = self._held[0]
            self.device.synchronize_event(event)
            self._held.popleft()
            self._events.append(event)

    def give(self, run: Run, binding: CudaBinding) -> dict[str, Any]:
        """The outputs by name; waits for the stream when one of them goes to the host."""
        program = self.engine.program
        found: dict[str, Any] = {}
        waiting: list[tuple[str, Array, Array]] = []
        for index in program.outputs:
            name = program.slots[index].name
            if index not in binding.ports:
                callers = [*_arrays(run.feeds.values()), *self.engine.weights.values()]
                found[name] = owned(run.values.get(index), callers)
            else:
                found[name] = self._result(index, run, binding, waiting)
        if waiting:
            self.device.synchronize(self.stream.handle)
            for name, target, pinned in waiting:
                if pinned is not target:
                    target.reshape(-1).view(np.uint8)[:] = pinned
                found[name] = target
        return found

    def _result(
        self,
        index: int,
        run: Run,
        binding: CudaBinding,
        waiting: list[tuple[str, Array, Array]],
    ) -> Any:
        program = self.engine.program
        slot, root = program.slots[index], root_of(program, index)
        assert isinstance(slot.type, TensorType)
        place = binding.ports[index]
        address, shape, nbytes = place.address, place.shape, place.nbytes
        given = run.outputs.get(slot.name)
        if given is not None and on_device(given):
            return self._copied_into(given, slot.name, address, slot.type.dtype, shape)
        if given is not None:
            self._download(index, _checked(given, slot.name, slot.type, shape), address, waiting)
            return given
        if slot.name in self._fixed:
            return self._fixed[slot.name].array
        if root != index and not isinstance(run.feeds.get(root), np.ndarray):
            fixed = self._fixed.get(program.slots[root].name)
            whole = slot.offset == 0 and slot.type == program.slots[root].type
            if fixed is not None and whole and fixed.view.address == address:
                return fixed.array
            owner = fixed.array if fixed is not None else self._states[root].memory
            return DeviceArray(address, shape, slot.type.dtype, self.stream, owner)
        if not run.on_device:
            target: Array = np.empty(shape, slot.type.dtype.numpy)
            self._download(index, target, address, waiting)
            return target
        memory = self.results.take(nbytes, f"the output {slot.name!r}")
        self.device.copy(memory.address, address, nbytes, self.stream.handle)
        return DeviceArray(memory.address, shape, slot.type.dtype, self.stream, memory)

    def _copied_into(
        self, given: Any, name: str, address: int, dtype: DType, shape: tuple[int, ...]
    ) -> Any:
        where = f"the array for output {name!r}"
        view = device_view(given, where, self.device.index, self.stream)
        if view.shape != shape or view.dtype != dtype.numpy:
            raise FeedError(
                f"output {name!r} is {dtype.value}{list(shape)}; the array given for it is "
                f"{view.dtype}{list(view.shape)}"
            )
        self.device.copy(view.address, address, view.nbytes, self.stream.handle)
        self.hold([view])
        return given

    def _download(
        self, index: int, target: Array, address: int, waiting: list[tuple[str, Array, Array]]
    ) -> None:
        name = self.engine.program.slots[index].name
        if target.nbytes > PINNED_NBYTES:
            self.device.download(target.ctypes.data, address, target.nbytes, self.stream.handle)
            waiting.append((name, target, target))
            return
        pinned = self._staging(index).take(target.nbytes)
        self.device.download(pinned.ctypes.data, address, target.nbytes, self.stream.handle)
        waiting.append((name, target, pinned))


def _checked(given: Any, name: str, kind: TensorType, shape: tuple[int, ...]) -> Array:
    """A caller's NumPy array for an output; FeedError when it cannot be written."""
    if not isinstance(given, np.ndarray):
        raise FeedError(
            f"the array for output {name!r} is {type(given).__name__}, expected NumPy's or one on "
            "the GPU"
        )
    if given.shape != shape or given.dtype != kind.dtype.numpy:
        raise FeedError(
            f"output {name!r} is {kind.dtype.value}{list(shape)}; the array given for it is "
            f"{given.dtype}{list(given.shape)}"
        )
    flags = given.flags
    if not (flags.c_contiguous and flags.writeable and flags.aligned):
        raise FeedError(f"the array for output {name!r} must be writable, aligned and C-contiguous")
    return given


def _arrays(values: Iterable[Any]) -> list[Array]:
    """All NumPy arrays in values that may be lists of them."""
    found: list[Array] = []
    for value in values:
        if isinstance(value, np.ndarray):
            found.append(value)
        elif isinstance(value, list):
            found.extend(_arrays(value))
    return found
