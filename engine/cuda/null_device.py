"""A GPU that computes nothing and counts everything; planning and runtime are tested with it.

Memory is numbers: what is copied from it reads as zeros. Misuse that a driver would answer with an
error or with a crash raises here: memory freed twice, copies past an allocation, streams that are
gone, two captures at once, launches beyond what the device has.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.cuda.device import Enqueue, Launch
from engine.cuda.libraries import Library, LibraryName, PreparedCall
from engine.cuda.tensor_map import EncodedBox
from engine.errors import DeviceError, DeviceMemoryError
from engine.target import CudaTarget

__all__ = ["NullDevice"]

_ALIGNMENT = 256
_PAGE = 2 << 20
#: The default streams: none, legacy, per thread.
_DEFAULTS = (0, 1, 2)


def _default_target() -> CudaTarget:
    return CudaTarget("cuda", "null", (9, 0), 132, 227 << 10, 60 << 20, 140)


#: What was enqueued: its name, what it is about, and how a device that computes does it.
Work = tuple[str, Any, Callable[[], None] | None]
#: Work of a graph, and which of the work before it must be done by then.
Node = tuple[Work, frozenset[int]]


@dataclass(eq=False)
class _Capture:
    """What is collected on one stream, and on others that wait for events of it."""

    origin: int
    nodes: list[Node] = field(default_factory=list)
    tails: dict[int, frozenset[int]] = field(default_factory=dict)
    open: bool = True

    def add(self, stream: int, work: Work) -> None:
        behind = self.tails[stream]
        if isinstance(work[1], Launch) and work[1].early:
            before = [self.nodes[index][0][0] for index in behind]
            if before != ["launch"]:
                raise DeviceError(f"a kernel that begins early comes behind {before}, not a kernel")
        self.nodes.append((work, behind))
        self.tails[stream] = frozenset([len(self.nodes) - 1])

    def joined(self) -> bool:
        """Whether the stream where it began comes after everything."""
        seen: set[int] = set()
        pending = list(self.tails[self.origin])
        while pending:
            index = pending.pop()
            if index not in seen:
                seen.add(index)
                pending += self.nodes[index][1]
        return len(seen) == len(self.nodes)


@dataclass
class NullDevice:
    """One GPU that is none; ``memory_nbytes`` limits what can be allocated.

    ``counts`` tells how often each thing happened ("launch" for kernels that would have run,
    "captured launch" for those put into a graph, "graph launch", "upload", "download", "copy",
    "clear", "allocate", ..., "refused" for what names nothing), ``nbytes`` how many bytes moved
    or are held, ``launches`` every kernel that would have run, in order. ``fault`` makes the next
    wait fail, once and for all.
    """

    target: CudaTarget = field(default_factory=_default_target)
    index: int = 0
    memory_nbytes: int = 140 << 30
    counts: Counter[str] = field(default_factory=Counter)
    nbytes: Counter[str] = field(default_factory=Counter)
    launches: list[Launch] = field(default_factory=list)
    fault: str = ""

    def __post_init__(self) -> None:
        self._next = 1 << 40
        self._held: dict[int, int] = {}
        self._pinned: dict[int, Any] = {}
        self._streams: set[int] = set(_DEFAULTS)
        self._events: set[int] = set()
        self._modules: dict[int, bytes] = {}
        #: Entry and module by function.
        self._functions: dict[int, tuple[str, int]] = {}
        self._graphs: dict[int, list[Node]] = {}
        #: By stream; streams that are part of one capture share it.
        self._capturing: dict[int, _Capture] = {}
        #: Events recorded while a stream was captured, and what they stand for there.
        self._captured: dict[int, tuple[_Capture, frozenset[int]]] = {}
        self._libraries: dict[LibraryName, _NullLibrary] = {}

    def _number(self) -> int:
        self._next += _PAGE
        return self._next

    def _check(self, known: bool, what: str) -> None:
        if not known:
            self.counts["refused"] += 1
            raise DeviceError(f"the null device was given {what}")

    # Memory -----------------------------------------------------------------------------------

    def use(self) -> None:
        """Nothing needs to be made current."""
        self.counts["use"] += 1

    def memory(self) -> tuple[int, int]:
        """Free bytes and all bytes."""
        return self.memory_nbytes - self.nbytes["held"], self.memory_nbytes

    def allocate(self, nbytes: int) -> int:
        """An address; DeviceMemoryError over the limit."""
        nbytes = max(nbytes, 1)
        if self.nbytes["held"] + nbytes > self.memory_nbytes:
            raise DeviceMemoryError(f"the null device cannot allocate {nbytes} bytes")
        address = self._place(nbytes)
        self._held[address] = nbytes
        self.counts["allocate"] += 1
        self.nbytes["held"] += nbytes
        return address

    def _place(self, nbytes: int) -> int:
        address = self._number()
        self._next += nbytes
        self._next += -self._next % _ALIGNMENT
        return address + -address % _ALIGNMENT

    def release(self, address: int) -> None:
        """Forget an address."""
        self._check(address in self._held, f"the address {address:#x}, which it does not hold")
        self.counts["release"] += 1
        self.nbytes["held"] -= self._held.pop(address)

    def allocate_pinned(self, nbytes: int) -> int:
        """Plain memory of the host."""
        memory = ctypes.create_string_buffer(max(nbytes, 1))
        self._pinned[ctypes.addressof(memory)] = memory
        self.counts["allocate pinned"] += 1
        return ctypes.addressof(memory)

    def release_pinned(self, address: int) -> None:
        """Forget memory of the host."""
        self._check(address in self._pinned, "pinned memory that it does not hold")
        del self._pinned[address]

    def _inside(self, address: int, nbytes: int) -> None:
        if nbytes == 0:
            return
        for start, held in self._held.items():
            if start <= address and address + nbytes <= start + held:
                return
        raise DeviceError(f"the null device holds no {nbytes} bytes at {address:#x}")

    def upload(self, address: int, host: int, nbytes: int, stream: int) -> None:
        """Count a copy from the host."""
        self._inside(address, nbytes)
        self._move("upload", nbytes, stream)

    def download(self, host: int, address: int, nbytes: int, stream: int) -> None:
        """Zeros."""
        self._inside(address, nbytes)
        self._move("download", nbytes, stream)
        ctypes.memset(host, 0, nbytes)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Count a copy; the source may be memory of somebody else."""
        self._move("copy", nbytes, stream)

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        """Count bytes set to zero."""
        self._move("clear", nbytes, stream)

    def _move(self, what: str, nbytes: int, stream: int) -> None:
        self.submit(stream, what, nbytes, None)

    def submit(
        self, stream: int, what: str, subject: Any, action: Callable[[], None] | None
    ) -> None:
        """Enqueue work: into a graph while the stream is captured."""
        self._check(stream in self._streams, "a stream that is gone")
        if stream not in self._capturing:
            self.execute(stream, (what, subject, action))
            return
        self._check(what not in ("upload", "download"), f"an {what} into a graph")
        self._capturing[stream].add(stream, (what, subject, action))
        self.counts[f"captured {what}"] += 1

    def execute(self, stream: int, work: Work) -> None:
        """Count work instead of doing it."""
        what, subject, _ = work
        self.counts[what] += 1
        if isinstance(subject, Launch):
            self._check(subject.function in self._functions, "a kernel whose module is gone")
            self.launches.append(subject)
        elif isinstance(subject, int):
            self.nbytes[what] += subject

    # Streams and events -----------------------------------------------------------------------

    def create_stream(self) -> int:
        """A number."""
        stream = self._number()
        self._streams.add(stream)
        self.counts["create stream"] += 1
        return stream

    def destroy_stream(self, stream: int) -> None:
        """Forget a number."""
        self._check(stream in self._streams - set(_DEFAULTS), "a stream that is gone")
        self._streams.discard(stream)

    def synchronize(self, stream: int) -> None:
        """Fail if there is a fault."""
        self._check(stream in self._streams, "a stream that is gone")
        self._check(stream not in self._capturing, "a wait for a stream that is captured")
        self.counts["synchronize"] += 1
        if self.fault:
            raise DeviceError(self.fault)

    def synchronize_all(self) -> None:
        """Fail if there is a fault."""
        self.synchronize(0)

    def create_event(self, *, timed: bool = False) -> int:
        """A number."""
        event = self._number()
        self._events.add(event)
        return event

    def destroy_event(self, event: int) -> None:
        """Forget a number."""
        self._check(event in self._events, "an event that is gone")
        self._events.discard(event)

    def record(self, event: int, stream: int) -> None:
        """Count an event; while the stream is captured, a place in the graph."""
        self._check(event in self._events and stream in self._streams, "an event that is gone")
        self._captured.pop(event, None)
        if stream in self._capturing:
            capture = self._capturing[stream]
            self._captured[event] = capture, capture.tails[stream]
            self.counts["captured record"] += 1
        else:
            self.counts["record"] += 1

    def record_in_graph(self, event: int, stream: int) -> None:
        """Put an event into a graph."""
        self._check(event in self._events, "an event that is gone")
        self._check(stream in self._capturing, "an event in a graph that is not captured")
        self.submit(stream, "record", event, None)

    def wait(self, stream: int, event: int) -> None:
        """Count a wait; behind an event of a capture the stream is captured, too."""
        self._check(event in self._events and stream in self._streams, "an event that is gone")
        if event not in self._captured:
            self._check(stream not in self._capturing, "a wait in a graph for what is outside")
            self.counts["wait"] += 1
            return
        capture, behind = self._captured[event]
        self._check(capture.open, "a wait for an event of a capture that ended")
        known = self._capturing.setdefault(stream, capture)
        self._check(known is capture, "a wait of one capture for another")
        capture.tails[stream] = capture.tails.get(stream, frozenset()) | behind
        self.counts["captured wait"] += 1

    def synchronize_event(self, event: int) -> None:
        """Count a wait of the host."""
        self._check(event in self._events, "an event that is gone")
        self.counts["synchronize event"] += 1

    def elapsed_ns(self, start: int, end: int) -> int:
        """A microsecond."""
        self._check({start, end} <= self._events, "an event that is gone")
        return 1000

    # Kernels ----------------------------------------------------------------------------------

    def load_module(self, image: bytes, name: str) -> int:
        """A number."""
        module = self._number()
        self._modules[module] = image
        self.counts["load"] += 1
        return module

    def unload_module(self, module: int) -> None:
        """Forget a number and the functions of the module."""
        self._check(module in self._modules, "a module that is gone")
        del self._modules[module]
        self._functions = {
            function: found for function, found in self._functions.items() if found[1] != module
        }

    def function(self, module: int, entry: str, shared_nbytes: int, cluster: int) -> int:
        """A number."""
        self._check(module in self._modules, "a module that is gone")
        self._check(shared_nbytes <= self.target.shared_nbytes, "too much shared memory")
        function = self._number()
        self._functions[function] = entry, module
        return function

    def prepare(self, launch: Launch) -> Enqueue:
        """Counts a launch when it is called."""
        self._check(launch.function in self._functions, "a function that is gone")
        self._check(0 < launch.threads <= 1024 and min(launch.grid) > 0, "an empty launch")
        self._check(launch.grid[0] % launch.cluster == 0, "a grid that is no multiple of clusters")
        self.counts["prepare"] += 1

        return lambda stream: self.submit(stream, "launch", launch, None)

    def entry(self, launch: Launch) -> str:
        """The name of the kernel that a launch runs."""
        return self._functions[launch.function][0]

    def encode(self, box: EncodedBox) -> bytes:
        """128 bytes that begin with the address."""
        self.counts["encode"] += 1
        return box.address.to_bytes(8, "little").ljust(128, b"\0")

    # Graphs -----------------------------------------------------------------------------------

    def begin_capture(self, stream: int) -> None:
        """Collect what is enqueued on a stream."""
        self._check(stream in self._streams - set(_DEFAULTS), "a default stream to capture")
        self._check(stream not in self._capturing, "two captures on one stream")
        self._capturing[stream] = _Capture(stream, tails={stream: frozenset()})

    def end_capture(self, stream: int) -> int:
        """What was collected."""
        capture = self._capturing.get(stream)
        known = capture is not None and capture.origin == stream
        self._check(known, "an end of a capture that did not begin")
        assert capture is not None
        self.abandon_capture(stream)
        self._check(
            capture.joined(), "a capture that ends before all of its streams are waited for"
        )
        graph = self._number()
        self._graphs[graph] = capture.nodes
        self.counts["capture"] += 1
        return graph

    def abandon_capture(self, stream: int) -> None:
        """Forget what was collected."""
        capture = self._capturing.get(stream)
        if capture is not None:
            capture.open = False
            for other in capture.tails:
                del self._capturing[other]

    def launch_graph(self, graph: int, stream: int) -> None:
        """Count a launch of a graph and everything in it."""
        self._check(graph in self._graphs and stream in self._streams, "a graph that is gone")
        self.counts["graph launch"] += 1
        for work in self.ordered(self._graphs[graph]):
            self.execute(stream, work)

    def ordered(self, nodes: Sequence[Node]) -> list[Work]:
        """The work of a graph in an order in which it may run: as it was collected."""
        return [work for work, _ in nodes]

    def destroy_graph(self, graph: int) -> None:
        """Forget a graph."""
        self._check(graph in self._graphs, "a graph that is gone")
        del self._graphs[graph]
        self.counts["destroy graph"] += 1

    def library(self, name: LibraryName) -> Library:
        """A library whose calls do nothing."""
        return self._libraries.setdefault(name, _NullLibrary(self, name))

    # What tests ask ---------------------------------------------------------------------------

    @property
    def held(self) -> Mapping[str, int]:
        """How much of each thing was not given back."""
        return {
            "allocations": len(self._held),
            "pinned": len(self._pinned),
            "streams": len(self._streams) - len(_DEFAULTS),
            "events": len(self._events),
            "modules": len(self._modules),
            "graphs": len(self._graphs),
        }

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """What happens inside, apart from what happened before."""
        before, during = Counter(self.counts), Counter[str]()
        yield during
        during.update(self.counts)
        during.subtract(before)


@dataclass
class _NullLibrary:
    device: NullDevice
    name: str
    version: int = 0

    def prepare(
        self, call: Mapping[str, Any], sizes: Sequence[int], target: CudaTarget
    ) -> PreparedCall:
        self.device.counts[f"{self.name} prepare"] += 1
        workspace, reach = call.get("workspace_nbytes", 0), call.get("operand_nbytes", ())
        return _NullCall(self.device, self.name, int(workspace), tuple(reach))

    def close(self) -> None:
        pass


@dataclass
class _NullCall:
    device: NullDevice
    name: str
    workspace_nbytes: int
    operand_nbytes: tuple[int, ...] = ()

    def run(
        self, operands: Sequence[int], workspace: int, workspace_nbytes: int, stream: int
    ) -> None:
        self.device.submit(stream, self.name, None, None)

    def close(self) -> None:
        pass
