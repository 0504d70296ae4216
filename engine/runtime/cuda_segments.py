"""What lies between two steps of the host: steps ready to be enqueued, on one stream or on lanes.

Lane 0 is the stream on which a program runs. Another lane begins behind an event of lane 0 and is
waited for before the segment ends, so that whoever is in order with that stream is in order with
all lanes, and a capture of it captures them, too.
"""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass, field

from engine.cuda.device import Device, Enqueue, Launch
from engine.errors import DeviceError
from engine.plan.lanes import Order
from engine.plan.structure import HostStep
from engine.runtime.host import HostCall

__all__ = ["DeviceSegment", "DeviceStep", "HostSegment", "LaneSchedule", "Lanes"]


class Lanes:
    """Auxiliary streams and the events between them and the main one, made when first used.

    For one thread at a time; whoever uses them leaves them waited for by its own stream.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._streams: dict[int, int] = {}
        self._events: list[int] = []
        weakref.finalize(self, _close, device, self._streams, self._events).atexit = False

    def stream(self, lane: int) -> int:
        """The stream of a lane other than the main one."""
        if lane not in self._streams:
            self._streams[lane] = self.device.create_stream()
        return self._streams[lane]

    def event(self, index: int) -> int:
        """One of the events; an index serves one purpose in a segment, another one in the next."""
        while len(self._events) <= index:
            self._events.append(self.device.create_event())
        return self._events[index]

    def close(self) -> None:
        """Give streams and events back; nothing may run on them any more."""
        _close(self.device, self._streams, self._events)


def _close(device: Device, streams: dict[int, int], events: list[int]) -> None:
    with contextlib.suppress(DeviceError):
        device.use()
        while events:
            device.destroy_event(events.pop())
        while streams:
            device.destroy_stream(streams.popitem()[1])


@dataclass(slots=True)
class DeviceStep:
    """One step ready to be enqueued; ``launch`` is None for anything but a kernel of ours."""

    layer: int
    enqueue: Enqueue
    launch: Launch | None = None
    lane: int = 0


class LaneSchedule:
    """Which events the steps of one segment record and wait for; ``first`` is its first step."""

    def __init__(self, lanes: Lanes, order: Order, first: int) -> None:
        self.lanes, self._order, self._first = lanes, order, first
        wanted = {position for waits in order.waits for position in waits}
        #: Positions after which an event is recorded, with its index; 0 is for the beginning.
        self._events = {at: 1 + index for index, at in enumerate(sorted(wanted)) if at >= first}
        self._joins: tuple[int, ...] = ()

    def end(self, position: int) -> None:
        """The segment ends in front of a step of the host, or behind the last step."""
        self._joins = self._order.waits[position]

    def crosses(self, position: int) -> bool:
        """Whether a step waits for other lanes."""
        return bool(self._order.waits[position])

    def marks(self, position: int) -> bool:
        """Whether other lanes wait for a step."""
        return position in self._events

    def enqueue(self, steps: dict[int, DeviceStep], stream: int) -> None:
        """Enqueue steps, by their positions, with ``stream`` as lane 0."""
        try:
            if any(step.lane for step in steps.values()):
                self._record(0, stream)
            for position, step in steps.items():
                on = stream if step.lane == 0 else self.lanes.stream(step.lane)
                self._wait(on, self._order.waits[position])
                step.enqueue(on)
                if position in self._events:
                    self._record(self._events[position], on)
            self._wait(stream, self._joins)
        except BaseException:
            self._join_all(steps, stream)
            raise

    def _record(self, index: int, stream: int) -> None:
        self.lanes.device.record(self.lanes.event(index), stream)

    def _wait(self, stream: int, positions: tuple[int, ...]) -> None:
        """Wait for steps; those before the segment are done when it begins."""
        for index in sorted({self._events.get(position, 0) for position in positions}):
            self.lanes.device.wait(stream, self.lanes.event(index))

    def _join_all(self, steps: dict[int, DeviceStep], stream: int) -> None:
        """After a failure: what other lanes still do is waited for by whatever comes next."""
        for lane in sorted({step.lane for step in steps.values()} - {0}):
            with contextlib.suppress(DeviceError):
                self._record(0, self.lanes.stream(lane))
                self._wait(stream, (self._first - 1,))


@dataclass(slots=True)
class DeviceSegment:
    """Steps of the device that are captured as one graph; ``lanes`` is None without any."""

    lanes: LaneSchedule | None = None
    graph: int | None = None
    _steps: dict[int, DeviceStep] = field(default_factory=dict)
    _last: dict[int, int] = field(default_factory=dict)

    @property
    def steps(self) -> list[DeviceStep]:
        """The steps as they are listed, an order in which they may also run one by one."""
        return list(self._steps.values())

    @property
    def empty(self) -> bool:
        """Whether there is nothing to enqueue."""
        return not self._steps

    @property
    def layers(self) -> list[int]:
        """The layers of the steps, each once."""
        return list(dict.fromkeys(step.layer for step in self._steps.values()))

    def add(self, position: int, step: DeviceStep) -> None:
        """The step at a position of the program comes next."""
        self._steps[position] = step
        self._last[step.lane] = position

    def follows_launch(self, lane: int, position: int) -> bool:
        """Whether the next step on a lane directly follows a kernel of ours, and nothing else."""
        last = self._last.get(lane)
        if last is None or self._steps[last].launch is None:
            return False
        return self.lanes is None or not (self.lanes.crosses(position) or self.lanes.marks(last))

    def enqueue(self, stream: int) -> None:
        """Enqueue all steps; the stream goes on behind all of them."""
        if self.lanes is not None:
            self.lanes.enqueue(self._steps, stream)
            return
        for step in self._steps.values():
            step.enqueue(stream)


@dataclass(slots=True)
class HostSegment:
    """A step of the host between segments of the device."""

    step: HostStep
    call: HostCall
