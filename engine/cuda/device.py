"""Devices: what the runtime asks of a GPU, real or not, and which GPUs this machine has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from engine.cuda.libraries import Library, LibraryName
from engine.cuda.tensor_map import EncodedBox
from engine.target import CudaTarget

__all__ = ["Argument", "Device", "Enqueue", "Launch", "device_count", "open_device", "probe"]

#: A kernel's parameter as it is passed: an address, a number, or the 128 bytes of a tensor map.
Argument = (
    tuple[Literal["pointer", "i32", "i64"], int]
    | tuple[Literal["f32"], float]
    | tuple[Literal["map"], bytes]
)
#: Enqueues something on a stream.
Enqueue = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel with everything fixed but its stream.

    ``function`` is what `Device.function` gave; ``grid`` is in blocks; ``early`` lets it begin
    before the launch in front of it on the stream has ended (programmatic dependent launch).
    """

    function: int
    grid: tuple[int, int, int]
    threads: int
    shared_nbytes: int
    cluster: int
    early: bool
    arguments: tuple[Argument, ...]


class Device(Protocol):
    """One GPU. Addresses, streams, events, modules, functions and graphs are integers.

    Every method but `use` needs the device to be in use in the calling thread. Methods that take a
    stream only enqueue. DeviceMemoryError means too little memory, DeviceError a fault or a device
    that is gone, KernelError machine code that the device refuses.
    """

    @property
    def index(self) -> int:
        """The number of the device among those of this machine."""
        ...

    @property
    def target(self) -> CudaTarget:
        """What the device is."""
        ...

    def use(self) -> None:
        """Make the device's primary context, which all libraries share, current in this thread."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free bytes and all bytes of the device."""
        ...

    def allocate(self, nbytes: int) -> int:
        """Device memory, aligned to 256 bytes, at least one byte; its bytes are undefined."""
        ...

    def release(self, address: int) -> None:
        """Give memory back, which nothing uses that still runs: the driver may not wait for it."""
        ...

    def allocate_pinned(self, nbytes: int) -> int:
        """Page-locked host memory; an address of the host."""
        ...

    def release_pinned(self, address: int) -> None:
        """Give page-locked memory back."""
        ...

    def upload(self, address: int, host: int, nbytes: int, stream: int) -> None:
        """Copy from the host; memory that is not pinned has been read when this returns."""
        ...

    def download(self, host: int, address: int, nbytes: int, stream: int) -> None:
        """Copy to the host; the bytes are there once the stream has been waited for."""
        ...

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Copy on the device."""
        ...

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        """Set bytes to zero."""
        ...

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back; what was enqueued still runs."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait on the host until everything on the stream has run."""
        ...

    def synchronize_all(self) -> None:
        """Wait on the host until everything on the device has run."""
        ...

    def create_event(self, *, timed: bool = False) -> int:
        """An event; only a timed one can be measured with."""
        ...

    def destroy_event(self, event: int) -> None:
        """Give an event back."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Let the event stand for everything on the stream so far."""
        ...

    def record_in_graph(self, event: int, stream: int) -> None:
        """While the stream is captured: let the graph record the event when it gets there."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Let the stream go on only after what the event stands for."""
        ...

    def synchronize_event(self, event: int) -> None:
        """Wait on the host for what the event stands for."""
        ...

    def elapsed_ns(self, start: int, end: int) -> int:
        """Nanoseconds between two timed events that have happened."""
        ...

    def load_module(self, image: bytes, name: str) -> int:
        """Load machine code; ``name`` is for messages."""
        ...

    def unload_module(self, module: int) -> None:
        """Give a module back, of which nothing runs and no graph is left; its functions end."""
        ...

    def function(self, module: int, entry: str, shared_nbytes: int, cluster: int) -> int:
        """An entry of a module, prepared for that much dynamic shared memory and that cluster."""
        ...

    def prepare(self, launch: Launch) -> Enqueue:
        """A launch whose parameters are marshalled once; call it with a stream."""
        ...

    def encode(self, box: EncodedBox) -> bytes:
        """The 128 bytes of a tensor map."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Collect what this thread enqueues on the stream from now on instead of running it."""
        ...

    def end_capture(self, stream: int) -> int:
        """What was collected, as a graph that can be launched."""
        ...

    def abandon_capture(self, stream: int) -> None:
        """End collecting after a failure."""
        ...

    def launch_graph(self, graph: int, stream: int) -> None:
        """Enqueue a graph."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back; launches that still run end well."""
        ...

    def library(self, name: LibraryName) -> Library:
        """A vendor's library, opened once."""
        ...


_OPENED: dict[int, Device] = {}
_LOCK = threading.Lock()


def open_device(index: int = 0) -> Device:
    """The GPU with that number, opened once per process.

    Raises DeviceError when there is none or its driver is too old, and MissingExtraError without
    the bindings to the driver.
    """
    from engine.cuda.hardware import CudaDevice

    with _LOCK:
        if index not in _OPENED:
            _OPENED[index] = CudaDevice(index)
        return _OPENED[index]


def probe(index: int = 0) -> CudaTarget:
    """What the GPU with that number is; errors as for `open_device`. Opens no context on it."""
    from engine.cuda.hardware import describe_device

    return describe_device(index)


def device_count() -> int:
    """How many GPUs there are; 0 without a driver or without the bindings to it."""
    from engine.cuda.driver import count
    from engine.errors import DeviceError, MissingExtraError

    try:
        return count()
    except (DeviceError, MissingExtraError):
        return 0
