"""Memory of its own for every buffer, between pages that nobody may touch.

A read or write past the end (or before the beginning) of a buffer faults at once, whatever lies
there on a GPU. `tests.cuda_shim` reports the fault as an error of the kernel; Triton's interpreter
is asked for every address (`Reach`).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Paged", "Reach", "place_of"]

POISON = 0xFF
#: Bytes without access on either side: accesses that miss a buffer by less are found.
REACH = 1 << 20
#: What the beginning of a buffer is at least a multiple of, when its end is at the page's end.
GRAIN = 16


@functools.cache
def _protect() -> Any:
    function = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


class Paged:
    """``nbytes`` of memory, of which the end (or the beginning) lies at a page without access.

    With ``at_end`` the buffer begins at a multiple of ``grain``, so that up to ``grain`` - 1 bytes
    behind it can be read; these, and those of the page on the other side, are poison.
    """

    def __init__(self, nbytes: int, *, at_end: bool, grain: int = GRAIN) -> None:
        self.nbytes = nbytes
        page = mmap.PAGESIZE
        room = max(1, -(-nbytes // page)) * page
        whole = mmap.mmap(-1, room + 2 * REACH, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = np.frombuffer(whole, np.uint8, room, REACH)
        base = int(self.memory.ctypes.data)
        for start in (base - REACH, base + room):
            if _protect()(start, REACH, 0):
                raise OSError(ctypes.get_errno(), "mprotect refuses a page without access")
        self.start = room - -(-nbytes // grain) * grain if at_end else 0
        self.memory[: self.start] = POISON
        self.memory[self.start + nbytes :] = POISON

    @property
    def inside(self) -> np.ndarray:
        """The buffer's bytes."""
        return self.memory[self.start : self.start + self.nbytes]

    @property
    def address(self) -> int:
        """Where the buffer begins."""
        return int(self.memory.ctypes.data) + self.start

    def untouched(self) -> tuple[bool, bool]:
        """Whether the poison before and behind the buffer is still there."""
        before, behind = self.memory[: self.start], self.memory[self.start + self.nbytes :]
        return bool((before == POISON).all()), bool((behind == POISON).all())


def place_of(address: int, buffers: Sequence[tuple[str, int, int]]) -> str:
    """Where an address lies among buffers, each a name, a beginning and bytes."""
    distances = []
    for name, start, nbytes in buffers:
        if start <= address < start + nbytes:
            return f"inside of {name}"
        past = address - (start + nbytes)
        told = f"{past} bytes past the end of" if past >= 0 else f"{start - address} bytes before"
        distances.append((past if past >= 0 else start - address, f"{told} {name}"))
    return min(distances)[1] if distances else "where no buffer is"


class Reach:
    """The buffers of one launch; AssertionError for an access outside of them."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.buffers = [
            (f"an array of {array.shape} {array.dtype}", int(array.ctypes.data), array.nbytes)
            for array in arrays
        ]
        self.buffers.sort(key=lambda item: item[1])
        self.starts = np.array([start for _, start, _ in self.buffers], np.uint64)
        self.ends = np.array([start + nbytes for _, start, nbytes in self.buffers], np.uint64)

    def check(self, what: str, addresses: np.ndarray, nbytes: int, mask: Any = True) -> None:
        """Whether every address under the mask has ``nbytes`` of one buffer."""
        asked = np.broadcast_to(addresses, np.broadcast_shapes(addresses.shape, np.shape(mask)))
        asked = asked[np.broadcast_to(mask, asked.shape).astype(bool)].astype(np.uint64).reshape(-1)
        if not asked.size:
            return
        if not len(self.starts):
            raise AssertionError(f"a {what} in a launch without buffers")
        at = np.searchsorted(self.starts, asked, side="right").astype(np.int64) - 1
        wrong = (at < 0) | (asked + np.uint64(nbytes) > self.ends[np.maximum(at, 0)])
        if wrong.any():
            address = int(asked[wrong][0])
            count = int(wrong.sum())
            raise AssertionError(
                f"a {what} of {nbytes} bytes at {place_of(address, self.buffers)} "
                f"({count} of {asked.size} addresses are outside of every buffer)"
            )
