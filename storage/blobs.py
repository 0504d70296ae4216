"""Blobs by digest: four methods, kept in a folder or in memory.

A blob is written aside, flushed and renamed, so a name never stands for a part of a blob. Bytes
are checked against the digest when they are written and again each time they are read.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from storage.digest import chunks_of, is_digest
from storage.disk import disk_errors, flush_folder, write_whole
from storage.errors import CorruptError, NotFoundError


@dataclass(frozen=True, slots=True)
class Blob:
    """The digest and length of some bytes that are kept."""

    digest: str
    nbytes: int


class BlobStore(Protocol):
    """Bytes kept by their SHA-256; methods may be called from several threads and processes."""

    def get(self, digest: str) -> Iterator[bytes]:
        """The blob in pieces; raises NotFoundError at once, CorruptError at the latest at the end.

        A caller must not use the bytes before the iterator has ended without an error.
        """

    def put(self, chunks: Iterable[bytes], *, digest: str | None = None) -> Blob:
        """Keep the bytes; raises CorruptError when they do not have the digest expected."""

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Those of the digests that are not kept."""

    def delete(self, digest: str) -> None:
        """Forget a blob; nothing happens when there is none."""


class FolderBlobs:
    """Blobs as read-only files `sha256/<two digits>/<digest>` of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path_of(self, digest: str) -> Path:
        """Where the blob lies, or would lie."""
        _check(digest)
        return self._folder / "sha256" / digest[:2] / digest

    def get(self, digest: str) -> Iterator[bytes]:
        """The blob in pieces, checked at the end."""
        path = self.path_of(digest)
        with disk_errors(str(path)):
            try:
                file = path.open("rb")
            except FileNotFoundError as error:
                raise _absent(digest) from error
        return _checked(digest, _closing(file))

    def put(self, chunks: Iterable[bytes], *, digest: str | None = None) -> Blob:
        """Write the bytes aside and move them to the name of their digest."""
        aside = self._folder / "unfinished"
        hashed = _Hashed(chunks)
        with disk_errors(str(self._folder)):
            aside.mkdir(parents=True, exist_ok=True)
            part = aside / secrets.token_hex(16)
            try:
                write_whole(part, hashed, mode=0o444)
                found = hashed.blob()
                _expect(digest, found)
                path = self.path_of(found.digest)
                path.parent.mkdir(parents=True, exist_ok=True)
                part.replace(path)
                flush_folder(path.parent)
            finally:
                part.unlink(missing_ok=True)
        return found

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Those of the digests without a file."""
        return {digest for digest in digests if not self.path_of(digest).is_file()}

    def delete(self, digest: str) -> None:
        """Remove the file, if there is one."""
        path = self.path_of(digest)
        with disk_errors(str(path)):
            path.unlink(missing_ok=True)


class MemoryBlobs:
    """Blobs in a dictionary, for tests and for programs that keep nothing."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def get(self, digest: str) -> Iterator[bytes]:
        """The blob in one piece, checked at the end."""
        _check(digest)
        if digest not in self._blobs:
            raise _absent(digest)
        return _checked(digest, iter((self._blobs[digest],)))

    def put(self, chunks: Iterable[bytes], *, digest: str | None = None) -> Blob:
        """Keep a copy of the bytes."""
        hashed = _Hashed(chunks)
        data = b"".join(hashed)
        found = hashed.blob()
        _expect(digest, found)
        self._blobs[found.digest] = data
        return found

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Those of the digests that are not in the dictionary."""
        return {digest for digest in digests if digest not in self._blobs}

    def delete(self, digest: str) -> None:
        """Drop the bytes, if there are any."""
        _check(digest)
        self._blobs.pop(digest, None)


def put_file(blobs: BlobStore, path: Path) -> Blob:
    """Keep a copy of a file."""
    with path.open("rb") as file:
        return blobs.put(chunks_of(file))


def read_blob(blobs: BlobStore, digest: str) -> bytes:
    """A whole blob in memory, checked."""
    return b"".join(blobs.get(digest))


def save_blob(blobs: BlobStore, digest: str, path: Path) -> None:
    """Write a checked copy of a blob to a file; a file that was there is replaced or untouched."""
    pieces = blobs.get(digest)
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, pieces)


class _Hashed:
    """Pieces of bytes, hashed while they pass."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hasher = hashlib.sha256()
        self._nbytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hasher.update(chunk)
            self._nbytes += len(chunk)
            yield chunk

    def blob(self) -> Blob:
        """The digest and length of what passed so far."""
        return Blob(self._hasher.hexdigest(), self._nbytes)


def _closing(file: BinaryIO) -> Iterator[bytes]:
    """The pieces of an open file, which is closed at the end."""
    with file:
        yield from chunks_of(file)


def _checked(digest: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces; raises CorruptError after the last when they have another digest."""
    hashed = _Hashed(chunks)
    yield from hashed
    found = hashed.blob()
    if found.digest != digest:
        raise CorruptError(
            f"blob {digest[:12]} is damaged: its {found.nbytes} bytes have digest "
            f"{found.digest[:12]}; build the engine again"
        )


def _expect(digest: str | None, found: Blob) -> None:
    """Refuse bytes with another digest than the one named."""
    if digest is not None and digest != found.digest:
        raise CorruptError(
            f"the bytes given have digest {found.digest[:12]}; expected {digest[:12]}"
        )


def _check(digest: str) -> None:
    """Refuse a digest that could name another file."""
    if not is_digest(digest):
        raise NotFoundError(f"{digest!r} is no digest; expected 64 hexadecimal digits")


def _absent(digest: str) -> NotFoundError:
    """The error for a blob that is not kept."""
    return NotFoundError(f"there is no blob {digest[:12]}")
