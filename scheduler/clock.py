"""The time as an argument: seconds since 1970, from the system or set by a test."""

from __future__ import annotations

import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Seconds since 1970 in UTC."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """Seconds since 1970 in UTC."""
        return time.time()


class FakeClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        """The time that was last set."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let some seconds pass."""
        self._now += seconds


class NewId(Protocol):
    """Makes names for rows."""

    def __call__(self, prefix: str) -> str:
        """A name that no other row has, such as bld_5f0c…"""


def random_id(prefix: str) -> str:
    """A prefix and twelve random hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(6)}"
