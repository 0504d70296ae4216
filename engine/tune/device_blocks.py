"""Device memory of one contest: taken piece by piece, given back all at once."""

from __future__ import annotations

import numpy as np

from engine.cuda.device import Device
from engine.ir.types import Array

__all__ = ["GUARD_NBYTES", "Blocks"]

ALIGNMENT = 256
GUARD_NBYTES = 256
#: Memory is asked of the device in pieces of at least this size and kept for later contests.
CHUNK_NBYTES = 256 << 20
_POISON_NBYTES = 4 << 20


class Blocks:
    """Pieces of device memory, aligned to 256 bytes.

    ``sizes`` tells how long the piece at an address is.
    """

    def __init__(self, device: Device, stream: int) -> None:
        self.device, self.stream = device, stream
        self.sizes: dict[int, int] = {}
        self._chunks: list[tuple[int, int]] = []
        self._chunk = self._used = 0
        self._poison = device.allocate(_POISON_NBYTES)
        ones = np.full(_POISON_NBYTES, 0xFF, np.uint8)
        device.upload(self._poison, ones.ctypes.data, ones.nbytes, stream)
        device.synchronize(stream)

    def reset(self) -> None:
        """Forget all pieces; their memory is taken again."""
        self.sizes.clear()
        self._chunk = self._used = 0

    def take(self, nbytes: int) -> int:
        """A piece whose bytes are undefined; DeviceMemoryError when there is no room."""
        needed = max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
        while self._chunk < len(self._chunks):
            address, held = self._chunks[self._chunk]
            if self._used + needed <= held:
                found = address + self._used
                self._used += needed
                self.sizes[found] = nbytes
                return found
            self._chunk, self._used = self._chunk + 1, 0
        held = max(needed, CHUNK_NBYTES)
        self._chunks.append((self.device.allocate(held), held))
        return self.take(nbytes)

    def duplicated(self, source: int, nbytes: int) -> int:
        """A copy of memory of the device."""
        found = self.take(nbytes)
        self.device.copy(found, source, nbytes, self.stream)
        return found

    def cleared(self, nbytes: int) -> int:
        """A piece of zero bytes."""
        found = self.take(nbytes)
        if nbytes:
            self.device.clear(found, nbytes, self.stream)
        return found

    def uploaded(self, array: Array) -> int:
        """A piece with the bytes of an array."""
        found = self.take(array.nbytes)
        if array.nbytes:
            data = np.ascontiguousarray(array)
            self.device.upload(found, data.ctypes.data, data.nbytes, self.stream)
        return found

    def guarded(self, nbytes: int, source: int | None = None) -> int:
        """A piece full of NaN, or with what lies at ``source``, and guard bytes behind it."""
        found = self.take(nbytes + GUARD_NBYTES)
        self.sizes[found] = nbytes
        self.poison(found, 0 if source is None else nbytes)
        if source is not None and nbytes:
            self.device.copy(found, source, nbytes, self.stream)
        return found

    def poison(self, address: int, start: int = 0) -> None:
        """Fill a guarded piece from a byte on, and its guard bytes, with NaN."""
        end = self.sizes[address] + GUARD_NBYTES
        for begin in range(start, end, _POISON_NBYTES):
            count = min(_POISON_NBYTES, end - begin)
            self.device.copy(address + begin, self._poison, count, self.stream)

    def guard_holds(self, address: int) -> bool:
        """Whether nothing was written behind a guarded piece."""
        host = np.empty(GUARD_NBYTES, np.uint8)
        end = address + self.sizes[address]
        self.device.download(host.ctypes.data, end, GUARD_NBYTES, self.stream)
        self.device.synchronize(self.stream)
        return bool((host == 0xFF).all())
