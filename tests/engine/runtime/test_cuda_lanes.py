"""Lanes on streams: events in order, the same answers in every order that the events allow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.cuda.null_device import NullDevice
from engine.errors import DeviceError, PlanCorruptError
from engine.plan.structure import Program
from engine.runtime import cuda_layout
from engine.runtime.cuda_engine import CudaEngine
from engine.runtime.cuda_segments import Lanes
from tests.cuda_programs import KERNELS, blocks, expected_side_by_side, side_by_side, two_chains
from tests.emulated_device import EmulatedDevice, image_of

W = np.array([1, 2, 3, 4], np.float32)
IMAGES = {kernel.entry: image_of(kernel) for kernel in KERNELS}
PROGRAMS = {
    "serial": side_by_side(0, 0),
    "one lane": side_by_side(),
    "two lanes": side_by_side(2, 1),
    "main branch on a lane": side_by_side(1, 0),
    "copy": side_by_side(1, 3, host=True),
}


def engine_of(program: Program, device: Any) -> CudaEngine:
    return CudaEngine(program, {"w": W}, IMAGES, device=device)


def vector(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("device", ["late", "eager", "latest first"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_answers_are_the_same_in_every_order(name: str, device: str, capture: bool) -> None:
    emulated = EmulatedDevice(eager=device == "eager", latest_first=device == "latest first")
    with engine_of(PROGRAMS[name], emulated).create_context() as context:
        context.capture = capture
        for turn in range(4):
            for size in (100, 1000, 1, 0):
                x = vector(size, turn)
                found = context.run({"x": x})["y"]
                np.testing.assert_allclose(found, expected_side_by_side(x, W), rtol=1e-5)
        context.synchronous = True
        x = vector(50)
        found = context.run({"x": x})["y"]
        np.testing.assert_allclose(found, expected_side_by_side(x, W), rtol=1e-5)
        context.profile({"x": x})


class Tape(NullDevice):
    """Writes down what is enqueued where, streams and events by when they were first seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tape: list[tuple[str, int, int]] = []
        self._streams_seen: list[int] = []

    def _stream(self, stream: int) -> int:
        if stream not in self._streams_seen:
            self._streams_seen.append(stream)
        return self._streams_seen.index(stream)

    def submit(self, stream: int, what: str, subject: Any, action: Any) -> None:
        super().submit(stream, what, subject, action)
        self.tape.append((what, self._stream(stream), int(getattr(subject, "early", False))))

    def record(self, event: int, stream: int) -> None:
        super().record(event, stream)
        self.tape.append(("record", self._stream(stream), event))

    def wait(self, stream: int, event: int) -> None:
        super().wait(stream, event)
        self.tape.append(("wait", self._stream(stream), event))


@pytest.mark.parametrize("capture", [True, False])
def test_events_stand_where_lanes_part_and_meet(capture: bool) -> None:
    device = Tape()
    with engine_of(side_by_side(), device).create_context() as context:
        context.capture = capture
        context.run({"x": vector(100)})
        device.tape.clear()
        context.run({"x": vector(100)})
        start = context._lanes.event(0)
        begin = next(i for i, item in enumerate(device.tape) if item[2] == start)
        tape = device.tape[begin : begin + 12]
    leave, back = (item[2] for item in tape[1:] if item[0] == "record")
    assert len({start, leave, back}) == 3
    main = tape[0][1]
    side = next(item[1] for item in tape if item[0] == "launch" and item[1] != main)
    assert tape == [
        ("record", main, start),
        ("launch", main, 0),
        ("record", main, leave),
        ("launch", main, 0),  # not early: behind a place where another lane leaves
        ("launch", main, 1),
        ("wait", side, leave),
        ("launch", side, 0),
        ("record", side, back),
        ("launch", main, 1),
        ("wait", main, back),
        ("launch", main, 0),
        ("launch", main, 1),
    ]


def test_contexts_have_lanes_of_their_own_and_give_them_back() -> None:
    device = NullDevice()
    engine = engine_of(side_by_side(1, 2), device)
    streams = device.held["streams"]
    events = device.held["events"]
    first, second = engine.create_context(), engine.create_context()
    for context in (first, second, first):
        for size in (10, 20, 30, 10):
            context.run({"x": vector(size)})
    assert device.held["streams"] == streams + 2 * 4  # own stream, to capture on, and two lanes
    first.close()
    assert device.held["streams"] == streams + 1 + 4
    first.run({"x": vector(10)})
    first.close()
    second.close()
    del context, first, second
    assert device.held["streams"] == streams and device.held["events"] == events
    serial = engine_of(side_by_side(0, 0), device).create_context()
    serial.run({"x": vector(10)})
    assert device.held["streams"] == streams + 1


def test_a_caller_s_stream_is_in_order_with_all_lanes() -> None:
    device = EmulatedDevice(latest_first=True)
    stream = device.create_stream()
    with engine_of(side_by_side(1, 2), device).create_context(stream=stream) as context:
        for turn in range(4):
            x = vector(100, turn)
            found = context.run({"x": x})["y"]
            np.testing.assert_allclose(found, expected_side_by_side(x, W), rtol=1e-5)


@pytest.mark.parametrize("made", [blocks, two_chains])
@pytest.mark.parametrize("latest_first", [False, True])
def test_programs_with_lanes_compute_what_those_without_do(made: Any, latest_first: bool) -> None:
    found = {}
    for lane in (0, 1, 3):
        device = EmulatedDevice(latest_first=latest_first)
        with engine_of(made(6, lane), device).create_context() as context:
            found[lane] = [context.run({"x": vector(size)})["y"] for size in (300, 20, 300, 300)]
    for lane in (1, 3):
        for one, other in zip(found[0], found[lane], strict=True):
            np.testing.assert_array_equal(one, other)


def test_lanes_are_waited_for_after_a_failure() -> None:
    class Failing(Tape):
        fails = False

        def submit(self, stream: int, what: str, subject: Any, action: Any) -> None:
            if self.fails and what == "launch" and len(self.tape) >= 8:
                self.fails = False
                raise DeviceError("the launch failed")
            super().submit(stream, what, subject, action)

    device = Failing()
    with engine_of(side_by_side(), device).create_context() as context:
        context.run({"x": vector(100)})
        for capture in (False, True):
            context.capture = capture
            device.tape.clear()
            device.fails = True
            with pytest.raises(DeviceError, match="the launch failed"):
                context.run({"x": vector(100)})
            assert [what for what, _, _ in device.tape[-2:]] == ["record", "wait"]
            context.run({"x": vector(100)})


def test_a_binding_refuses_an_arena_in_which_lanes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cuda_layout.arena_requests
    serial = side_by_side(0, 0)

    def in_turns(_: Program, __: Any, sizes: Any) -> Any:
        return real(serial, serial.steps, sizes)

    monkeypatch.setattr(cuda_layout, "arena_requests", in_turns)
    device = NullDevice()
    engine = engine_of(side_by_side(), device)
    with engine.create_context() as context, pytest.raises(PlanCorruptError, match="side by side"):
        context.run({"x": vector(1000)})


def test_a_capture_of_the_null_device_minds_its_streams() -> None:
    device = NullDevice()
    main, side, event = device.create_stream(), device.create_stream(), device.create_event()
    device.begin_capture(main)
    device.record(event, main)
    device.wait(side, event)
    device.clear(0, 0, side)
    with pytest.raises(DeviceError, match="before all of its streams are waited for"):
        device.end_capture(main)
    with pytest.raises(DeviceError, match="a capture that ended"):
        device.wait(side, event)
    device.begin_capture(main)
    device.record(event, side)
    with pytest.raises(DeviceError, match="what is outside"):
        device.wait(main, event)
    device.abandon_capture(main)
    lanes = Lanes(device)
    assert lanes.stream(1) == lanes.stream(1) != lanes.stream(2)
    assert len({lanes.event(index) for index in (0, 1, 0, 2)}) == 3
    lanes.close()
    assert device.held["streams"] == 2 and device.held["events"] == 1
