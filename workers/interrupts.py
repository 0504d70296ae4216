"""Ctrl-C and termination: they stop work at once, but never in the middle of a commit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, later when a shielded part is running.

    Only the main thread of a process can be interrupted; elsewhere `installed` does nothing.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._pending = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals until the end of the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Put interrupts off until the end of the block."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._pending and self._depth == 0:
                self._pending = False
                raise KeyboardInterrupt

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        """Raise now, or remember to raise at the end of the shielded part."""
        if self._depth:
            self._pending = True
            return
        raise KeyboardInterrupt
