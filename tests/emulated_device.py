"""A GPU on the CPU: memory is the host's, kernels are CUDA C under the host shim.

Every block of memory ends at a page without access, as the last one of a GPU may.

Nothing runs before it must: work waits on its stream until the host waits for it, or another stream
that the host waits for does. So whoever forgets to wait reads what was there before. A cubin is the
JSON of a `DeviceKernel` here.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.cuda.device import Enqueue, Launch
from engine.cuda.kernel import DeviceKernel
from engine.cuda.null_device import Node, NullDevice, Work
from engine.errors import DeviceError
from tests.cuda_shim import Function, load_function
from tests.paged_memory import Paged

__all__ = ["EmulatedDevice", "image_of"]

POISON = 0xAB
_LETTERS = {"pointer": "p", "i32": "i", "i64": "l", "f32": "f"}


def image_of(kernel: DeviceKernel) -> bytes:
    """What stands for a cubin."""
    return json.dumps(kernel.to_json()).encode()


def kernel_of(image: bytes) -> DeviceKernel:
    fields: dict[str, Any] = json.loads(image)
    for name in ("signature", "constants"):
        fields[name] = tuple(tuple(item) for item in fields[name])
    fields["aligned"] = tuple(fields["aligned"])
    return DeviceKernel(**fields)


@dataclass
class EmulatedDevice(NullDevice):
    """One GPU of host memory.

    ``eager`` runs everything at once; ``latest_first`` runs of a graph what was collected last and
    may run by then, so that work of lanes which nothing waits for or holds back is out of order.
    """

    eager: bool = False
    latest_first: bool = False
    _blocks: dict[int, Paged] = field(default_factory=dict)
    _queues: dict[int, list[Any]] = field(default_factory=dict)
    _done: dict[int, int] = field(default_factory=dict)
    _marks: dict[int, tuple[int, int]] = field(default_factory=dict)
    _compiled: dict[int, Function] = field(default_factory=dict)

    def _place(self, nbytes: int) -> int:
        block = Paged(nbytes, at_end=True, grain=256)
        block.memory[:] = POISON
        self._blocks[block.address] = block
        return block.address

    def release(self, address: int) -> None:
        self.finish()
        super().release(address)
        self._blocks.pop(address).memory.fill(POISON ^ 0xFF)

    def execute(self, stream: int, work: Work) -> None:
        super().execute(stream, work)
        if work[2] is not None:
            self._queues.setdefault(stream, []).append(work[2])
        if self.eager:
            self._advance(stream, None)

    def _advance(self, stream: int, end: int | None) -> None:
        """Run what waits on a stream, up to its ``end``-th piece of work ever."""
        queue = self._queues.setdefault(stream, [])
        done = self._done.get(stream, 0)
        end = len(queue) if end is None else end
        while done < end:
            done += 1
            self._done[stream] = done
            queue[done - 1]()

    def finish(self) -> None:
        """Run everything."""
        for stream in list(self._queues):
            self._advance(stream, None)

    def synchronize(self, stream: int) -> None:
        super().synchronize(stream)
        self._advance(self._alias(stream), None)

    def synchronize_all(self) -> None:
        super().synchronize_all()
        self.finish()

    @staticmethod
    def _alias(stream: int) -> int:
        return stream or 1

    def submit(self, stream: int, what: str, subject: Any, action: Any) -> None:
        super().submit(self._alias(stream), what, subject, action)

    def ordered(self, nodes: Sequence[Node]) -> list[Work]:
        if not self.latest_first:
            return super().ordered(nodes)
        left, found = dict(enumerate(nodes)), list[Work]()
        while left:
            index = max(at for at, (_, behind) in left.items() if not behind & left.keys())
            found.append(left.pop(index)[0])
        return found

    def record(self, event: int, stream: int) -> None:
        super().record(event, stream)
        if event in self._captured:
            return
        stream = self._alias(stream)
        self._marks[event] = (stream, len(self._queues.setdefault(stream, [])))

    def wait(self, stream: int, event: int) -> None:
        super().wait(stream, event)
        if event in self._captured:
            return
        other, end = self._marks[event]
        self._queues.setdefault(self._alias(stream), []).append(lambda: self._advance(other, end))

    def synchronize_event(self, event: int) -> None:
        super().synchronize_event(event)
        self._advance(*self._marks[event])

    def upload(self, address: int, host: int, nbytes: int, stream: int) -> None:
        self._inside(address, nbytes)
        if any(start <= host < start + len(held) for start, held in self._pinned.items()):
            self.submit(
                stream, "upload", nbytes, lambda: (ctypes.memmove(address, host, nbytes), None)[1]
            )
        else:
            taken = ctypes.string_at(host, nbytes)
            self.submit(
                stream, "upload", nbytes, lambda: (ctypes.memmove(address, taken, nbytes), None)[1]
            )

    def download(self, host: int, address: int, nbytes: int, stream: int) -> None:
        self._inside(address, nbytes)
        self.submit(
            stream, "download", nbytes, lambda: (ctypes.memmove(host, address, nbytes), None)[1]
        )

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self.submit(stream, "copy", nbytes, lambda: (ctypes.memmove(to, source, nbytes), None)[1])

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        self._inside(address, nbytes)
        self.submit(stream, "clear", nbytes, lambda: (ctypes.memset(address, 0, nbytes), None)[1])

    def function(self, module: int, entry: str, shared_nbytes: int, cluster: int) -> int:
        handle = super().function(module, entry, shared_nbytes, cluster)
        kernel = kernel_of(self._modules[module])
        assert (kernel.entry, kernel.shared_nbytes) == (entry, shared_nbytes)
        self._compiled[handle] = load_function(kernel)
        return handle

    def prepare(self, launch: Launch) -> Enqueue:
        super().prepare(launch)
        function = self._compiled[launch.function]
        letters = "".join(_LETTERS[kind] for kind, _ in launch.arguments)
        if letters != function.parameters or launch.threads != function.kernel.threads:
            raise DeviceError(
                f"{function.kernel.entry} takes {function.parameters} and "
                f"{function.kernel.threads} threads, not {letters} and {launch.threads}"
            )
        values: list[Any] = [value for _, value in launch.arguments]
        return lambda stream: self.submit(
            stream, "launch", launch, lambda: function.launch(launch.grid, values)
        )
