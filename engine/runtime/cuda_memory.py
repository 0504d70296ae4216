"""What a context of a GPU owns: its stream, blocks of memory, memory of results that come back."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.cuda.device import Device
from engine.errors import DeviceError, DeviceMemoryError, FeedError
from engine.ir.types import Array

__all__ = [
    "LEGACY",
    "Block",
    "Pending",
    "Pinned",
    "ResultPool",
    "Stream",
    "allocated",
    "spelled_nbytes",
]

#: The default stream, with which streams that others make by default are in order.
LEGACY = 1
#: Idle memory of results that a context keeps.
KEPT_NBYTES = 1 << 30


def spelled_nbytes(nbytes: int) -> str:
    """Bytes for a person, as "2.31 GiB"."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes} bytes"


def allocated(device: Device, nbytes: int, purpose: str, helps: str) -> int:
    """Device memory for a purpose; DeviceMemoryError says how much, for what, and what helps."""
    try:
        return device.allocate(nbytes)
    except DeviceMemoryError:
        free, total = device.memory()
        raise DeviceMemoryError(
            f"the GPU has too little free memory for {purpose}: needed are "
            f"{spelled_nbytes(nbytes)}, free are {spelled_nbytes(free)} of "
            f"{spelled_nbytes(total)}; {helps}, or end other programs on this GPU"
        ) from None


class Pending:
    """What may still run on a stream; whoever gives back what it uses waits for it first.

    A collector ends the parts of a cycle in any order, and the driver promises no wait when memory
    is given back ("may perform implicit synchronization"). So every part can wait by itself: this
    refers to nothing that could be in a cycle.
    """

    def __init__(self, device: Device, handle: int) -> None:
        self.device, self.handle = device, handle
        self._begun = self._ended = 0

    def begin(self) -> None:
        """Something is enqueued from now on."""
        self._begun += 1

    def finish(self) -> None:
        """Wait for what was enqueued; nothing happens when nothing was since the last time."""
        begun = self._begun
        if begun > self._ended:
            self.device.synchronize(self.handle)
            self._ended = begun


class Stream:
    """A stream with an event to put it in order with others; its own one, or a caller's."""

    def __init__(self, device: Device, given: object = None) -> None:
        self.device = device
        self.owned = given is None
        self._given = given  # whoever gave it keeps it alive through us
        self.handle = device.create_stream() if given is None else _handle(given)
        self._event = device.create_event()
        self._lock = threading.Lock()
        self.pending = Pending(device, self.handle)
        handles = (self.handle if self.owned else None, self._event)
        weakref.finalize(self, _close_stream, self.pending, *handles).atexit = False

    @property
    def public(self) -> int:
        """The handle as the array protocols spell it; the default stream is 1."""
        return self.handle or LEGACY

    def wait_for(self, other: int) -> None:
        """Let this stream go on only after what is on another one now."""
        if (other or LEGACY) != self.public:
            self._order(other, self.handle)

    def hold_back(self, other: int) -> None:
        """Let another stream go on only after what is on this one now."""
        if (other or LEGACY) != self.public:
            self._order(self.handle, other)

    def _order(self, first: int, then: int) -> None:
        with self._lock:
            self.device.record(self._event, first)
            self.device.wait(then, self._event)


def _close_stream(pending: Pending, stream: int | None, event: int) -> None:
    device = pending.device
    with contextlib.suppress(DeviceError):
        device.use()
        pending.finish()
        device.destroy_event(event)
        if stream is not None:
            device.destroy_stream(stream)


def _handle(given: object) -> int:
    """The handle of a caller's stream: an integer, or an object of CuPy, torch or cuda.core."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    protocol = getattr(given, "__cuda_stream__", None)
    if protocol is not None:
        answer = protocol() if callable(protocol) else protocol
        return int(answer[1])
    for name in ("cuda_stream", "ptr", "handle"):
        found = getattr(given, name, None)
        if found is not None:
            return int(found)
    raise FeedError(
        f"{type(given).__name__} is no CUDA stream; expected an integer handle or a stream of "
        "CuPy, torch or cuda.core"
    )


class Block:
    """One allocation of a context that can be given back and taken again.

    What ``pending`` says is waited for before memory goes back.
    """

    def __init__(self, device: Device, pending: Pending | None = None) -> None:
        self.device, self._pending = device, pending
        self.address = self.nbytes = 0
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def grow(self, nbytes: int, purpose: str, helps: str) -> bool:
        """Have at least that many bytes; True when the memory is new, its bytes undefined."""
        if nbytes <= self.nbytes:
            return False
        self.close()
        self.address = allocated(self.device, nbytes, purpose, helps)
        self.nbytes = nbytes
        give_back = (self.device.release, self.address, self._pending)
        self._finalizer = weakref.finalize(self, _give_back, self.device, *give_back)
        self._finalizer.atexit = False
        return True

    def close(self) -> None:
        """Give the memory back; waits for what runs."""
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer, self.address, self.nbytes = None, 0, 0


def _give_back(
    device: Device, release: Callable[[int], None], address: int, pending: Pending | None
) -> None:
    with contextlib.suppress(DeviceError):
        device.use()
        if pending is not None:
            pending.finish()
        release(address)


class Pinned:
    """Page-locked memory as an array of bytes, grown on demand; ``pending`` as for `Block`."""

    def __init__(self, device: Device, pending: Pending | None = None) -> None:
        self.device, self._pending = device, pending
        self.data: Array = np.empty(0, np.uint8)
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def take(self, nbytes: int) -> Array:
        """The first bytes; DeviceMemoryError when the host cannot pin that much."""
        if nbytes > self.data.nbytes:
            self.close()
            address = self.device.allocate_pinned(nbytes)
            memory: Any = (ctypes.c_uint8 * nbytes).from_address(address)
            self.data = np.frombuffer(memory, np.uint8)
            give_back = (self.device.release_pinned, address, self._pending)
            self._finalizer = weakref.finalize(self, _give_back, self.device, *give_back)
            self._finalizer.atexit = False
        return self.data[:nbytes]

    def close(self) -> None:
        """Give the memory back after what is pending; no array of it may be used any more."""
        self.data = np.empty(0, np.uint8)
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = None


class ResultPool:
    """Memory of results: what a caller dropped serves later runs of the same context.

    Dropping a result makes no call of the driver: a collector may do it at any time, on any thread.
    The next `take` puts the stream in order behind those who used the memory.
    """

    def __init__(self, stream: Stream) -> None:
        self.device, self.stream = stream.device, stream
        self._returned: deque[tuple[int, int, frozenset[int]]] = deque()
        self._idle: dict[int, list[int]] = {}
        self._idle_nbytes = 0
        self._closed = False

    def take(self, nbytes: int, purpose: str) -> ResultMemory:
        """Memory that the stream may write from now on."""
        self._collect()
        idle = self._idle.get(nbytes)
        if idle:
            self._idle_nbytes -= nbytes
            return ResultMemory(self, idle.pop(), nbytes)
        helps = "drop results that are not needed, use smaller inputs"
        try:
            address = allocated(self.device, nbytes, purpose, helps)
        except DeviceMemoryError:
            if not self._idle_nbytes:
                raise
            self.trim(0)
            address = allocated(self.device, nbytes, purpose, helps)
        return ResultMemory(self, address, nbytes)

    def put(self, address: int, nbytes: int, users: frozenset[int]) -> None:
        """Memory of a result that nobody holds any more; ``users`` are streams that read it."""
        self._returned.append((address, nbytes, users))
        if self._closed:
            self._drain()

    def _collect(self) -> None:
        users: set[int] = set()
        while self._returned:
            address, nbytes, streams = self._returned.popleft()
            users |= streams
            self._idle.setdefault(nbytes, []).append(address)
            self._idle_nbytes += nbytes
        if users - {LEGACY, self.stream.public}:
            # A stream of somebody else may be gone by now, hence it cannot be asked.
            self.device.synchronize_all()
        elif LEGACY in users:
            self.stream.pending.begin()
            self.stream.wait_for(LEGACY)
        if self._idle_nbytes > KEPT_NBYTES:
            self.trim(KEPT_NBYTES)

    def trim(self, nbytes: int) -> None:
        """Keep at most that many idle bytes; waits for the stream, which others' work is behind."""
        if self._idle_nbytes > nbytes:
            self.stream.pending.finish()
        for size in sorted(self._idle, reverse=True):
            while self._idle[size] and self._idle_nbytes > nbytes:
                self.device.release(self._idle[size].pop())
                self._idle_nbytes -= size

    def close(self) -> None:
        """Give all idle memory back, and what comes back later at once."""
        self._closed = True
        self._drain()

    def reopen(self) -> None:
        """Keep memory again."""
        self._closed = False

    def _drain(self) -> None:
        with contextlib.suppress(DeviceError):
            self.device.use()
            self.stream.pending.finish()
            while self._returned:
                self.device.release(self._returned.popleft()[0])
            self.trim(0)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._drain()


class ResultMemory:
    """Device memory of one result; comes back to its pool when nobody holds it."""

    def __init__(self, pool: ResultPool, address: int, nbytes: int) -> None:
        self.pool, self.address, self.nbytes = pool, address, nbytes
        self.users: set[int] = set()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.pool.put(self.address, self.nbytes, frozenset(self.users))
