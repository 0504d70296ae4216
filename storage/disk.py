"""Writing files so that a reader sees a whole file or none, and what the disk may answer."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import DiskFullError, ReadOnlyError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def translate(error: OSError, where: str) -> StorageError:
    """The storage error for an error of the operating system."""
    if error.errno in _FULL:
        return DiskFullError(f"{where}: the disk is full; free some space and try again")
    if error.errno in _FORBIDDEN:
        return ReadOnlyError(
            f"{where}: may not be written ({error.strerror}); give this user write access, "
            "or name another folder"
        )
    return StorageError(f"{where}: {error.strerror or error}")


@contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """Turn errors of the operating system into those of storage."""
    try:
        yield
    except OSError as error:
        raise translate(error, where) from error


def write_whole(
    path: Path, chunks: Iterable[bytes], *, mode: int = 0o644, flush: bool = True
) -> None:
    """Write a file aside, flush it to the disk and move it into place; replaces what was there.

    Without `flush` the file may be empty or absent after a loss of power, which is good enough for
    caches. Whatever happens, no unfinished file stays.
    """
    part = path.parent / f".{path.name}.{secrets.token_hex(6)}.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        part.chmod(mode)
        part.replace(path)
        if flush:
            flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a name survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
