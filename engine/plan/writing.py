"""Writing a container: streamed, sealed, and there as a whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from engine.errors import PlanError
from engine.ir.types import Array, DType
from engine.plan.container import CHUNK, ZEROS, Form, layout, root_digest, stored_form

__all__ = ["Section", "write"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Section:
    """An array that is made when it is written, so that never more than one is in memory."""

    form: Form
    make: Callable[[], Array]


def write(
    path: str | os.PathLike[str],
    sections: Mapping[str, Array | Section],
    *,
    keys: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays as a plan file, replacing what is there at once.

    Arrays are streamed, memory-mapped ones are never in memory as a whole. Raises PlanError when
    the disk is full, and leaves nothing behind.
    """
    place = Path(path)
    draft = place.with_name(f".{place.name[:128]}.{secrets.token_hex(6)}.part")
    try:
        with open(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            _write(file, sections, dict(keys or {}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, place)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise PlanError(
            f"there is no room for {place}: {os.strerror(error.errno)}; free some and save again"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    _sync_folder(place.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(file: IO[bytes], sections: Mapping[str, Array | Section], keys: dict[str, str]) -> None:
    placed = layout({name: _form(section) for name, section in sections.items()})
    unsealed = placed.header(keys, ZEROS)
    file.write(unsealed)
    position, digests = 0, bytearray()
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[bytes]] = deque()
        for name, (form, begin) in placed.entries.items():
            file.write(bytes(begin - position))
            for chunk in _chunks(name, sections[name], form):
                waiting.append(pool.submit(_digest, chunk))
                file.write(chunk)
                while len(waiting) > 4:
                    digests += waiting.popleft().result()
            position = begin + form.nbytes
        digests += b"".join(item.result() for item in waiting)
    file.write(bytes(placed.digests - position))
    file.write(digests)
    file.seek(0)
    file.write(placed.header(keys, root_digest(unsealed, bytes(digests))))


def _digest(chunk: memoryview) -> bytes:
    return hashlib.sha256(chunk).digest()


def _form(section: Array | Section) -> Form:
    if isinstance(section, Section):
        return section.form
    dtype = DType.of(section.dtype)
    if dtype is DType.STRING:
        raise TypeError("an array of strings has no bytes to write")
    return stored_form(dtype, section.shape)


def _chunks(name: str, section: Array | Section, form: Form) -> Iterator[memoryview]:
    """The bytes of a section, in pieces of CHUNK."""
    array = section.make() if isinstance(section, Section) else section
    if array.nbytes != form.nbytes:
        raise ValueError(f"section {name!r} has {array.nbytes} bytes, expected {form.nbytes}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    step = CHUNK // array.itemsize
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    for begin in range(0, array.size, step):
        piece = np.ascontiguousarray(flat[begin : begin + step])
        yield piece.view(np.uint8).data
