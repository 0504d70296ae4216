"""A process of its own that measures on a GPU, so that a crash or a hang costs one candidate.

Parent and child speak in pickled messages with their length in front, over the child's standard
input and output. The child announces what it is about to touch before it touches it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

from engine.errors import DeviceError
from engine.tune.contest import Contest, Outcome

__all__ = ["DEFAULT_FACTORY", "MeasuringProcess", "receive", "send"]

#: Makes, from the number of a GPU, what has `DeviceMeasurer`'s method ``measure``.
DEFAULT_FACTORY = "engine.tune.device_measuring:open_measurer"
#: Seconds in which the child must say something: while it starts and computes what is expected,
#: and while it checks or times one entrant.
PATIENCE = {"reference": 300.0, "entrant": 10.0}


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message; EOFError when the other side is gone."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError("the other process has ended")
    (length,) = struct.unpack("<Q", head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("the other process has ended in the middle of a message")
    return pickle.loads(data)


class MeasuringProcess:
    """Measures contests on one GPU in a child process, which is started anew when it dies."""

    def __init__(
        self,
        index: int = 0,
        *,
        factory: str = DEFAULT_FACTORY,
        patience: dict[str, float] | None = None,
    ) -> None:
        self._index, self._factory = index, factory
        self._patience = {**PATIENCE, **(patience or {})}
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[Any] = queue.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()

    def measure(self, contest: Contest) -> list[Outcome]:
        """One outcome per entrant, in their order.

        Raises DeviceError when there is no device to measure on, or when even the reference fails.
        """
        found: dict[int, Outcome] = {}
        while len(found) < len(contest.entrants):
            waiting = [i for i in range(len(contest.entrants)) if i not in found]
            entrants = tuple(contest.entrants[i] for i in waiting)
            part = replace(contest, entrants=entrants)
            outcomes, failed, reason = self._attempt(part)
            if not reason:
                found.update(zip(waiting, outcomes, strict=True))
            elif failed is None:
                raise DeviceError(reason)
            else:
                found[waiting[failed]] = Outcome(reason=reason)
        return [found[i] for i in range(len(contest.entrants))]

    def _attempt(self, contest: Contest) -> tuple[list[Outcome], int | None, str]:
        """All outcomes; or which entrant the child died of, and how."""
        child = self._started()
        assert child.stdin is not None
        current: int | None = None
        with contextlib.suppress(OSError):  # of a dead child the end of its answers tells
            send(child.stdin, contest)
        while True:
            patience = self._patience["reference" if current is None else "entrant"]
            try:
                kind, value = self._answers.get(timeout=patience)
            except queue.Empty:
                self.close()
                return [], current, f"it hung: no answer within {patience:.0f} s"
            if kind == "outcomes":
                return value, None, ""
            if kind == "touching":
                current = value
            elif kind == "fault":
                # A fault on the device leaves its context useless; a new process gets a new one.
                self.close()
                return [], current, value
            elif kind == "ended":
                code = child.wait()
                self.close()
                return [], current, f"the measuring process ended with code {code}"

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        self._answers = queue.Queue()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "engine.tune.measuring_child", str(self._index), self._factory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": _search_path()},
        )
        listener = threading.Thread(
            target=_listen, args=(self._child.stdout, self._answers), daemon=True
        )
        listener.start()
        return self._child


def _search_path() -> str:
    """Where the child finds this package and whatever else the parent was told to search."""
    found = importlib.util.find_spec("engine")
    assert found is not None and found.submodule_search_locations is not None
    root = str(Path(next(iter(found.submodule_search_locations))).parent)
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([root, inherited] if inherited else [root])


def _listen(stream: IO[bytes], answers: queue.Queue[Any]) -> None:
    try:
        while True:
            answers.put(receive(stream))
    except (EOFError, OSError, ValueError, pickle.UnpicklingError):
        answers.put(("ended", None))
