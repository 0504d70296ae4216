"""The files of a model and their digests, remembered by path, length, time and inode.

An ONNX file may name external data files. They are found by walking the file's protobuf records
without an ONNX library, since a hit must not load one: only the fields on the way to
`TensorProto.external_data` are entered, everything else is skipped by its length.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scheduler.errors import RequestError
from scheduler.keys import ModelFile
from storage.digest import digest_of_bytes, digest_of_file
from storage.disk import write_whole

# A file changed a moment ago may change again within the same tick of the file system's clock,
# so its digest is not remembered.
_SETTLED_NS = 1_000_000_000

# Which fields of which ONNX message lead to a tensor. Field numbers are those of onnx.proto.
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 64


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file's content."""

    digest: str
    nbytes: int
    external: tuple[str, ...]


class DigestCache:
    """Facts about files in a folder, valid while path, length, time and inode stay the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def facts(self, path: Path, *, scan: bool = False) -> FileFacts:
        """Digest and length of a file, and the external data files it names when `scan` is set."""
        status = path.stat()
        identity = [str(path), status.st_size, status.st_mtime_ns, status.st_ino, scan]
        place = self._folder / f"{digest_of_bytes(str(path).encode())[:32]}-{int(scan)}.json"
        known = _read_facts(place, identity)
        if known is not None:
            return known
        digest, nbytes = digest_of_file(path)
        facts = FileFacts(digest, nbytes, external_files(path) if scan else ())
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            self._remember(place, identity, facts)
        return facts

    def _remember(self, place: Path, identity: list[object], facts: FileFacts) -> None:
        """Write the facts down; a cache that cannot be written is only slower."""
        fields = {
            "identity": identity,
            "digest": facts.digest,
            "size": facts.nbytes,
            "external": facts.external,
        }
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(place, [json.dumps(fields).encode()], mode=0o600, flush=False)


def model_files(path: Path, cache: DigestCache) -> tuple[ModelFile, ...]:
    """The model file and its external data files, named relative to the model's folder.

    The model file itself is named `model` with its suffix, so that renaming it changes nothing.
    Raises FileNotFoundError for the model, RequestError for an external file that is absent or
    lies outside the folder.
    """
    path = path.absolute()
    if path.is_dir():
        raise RequestError(f"{path} is a folder; expected a model file")
    facts = cache.facts(path, scan=True)
    files = [ModelFile(f"model{path.suffix}", facts.digest, facts.nbytes)]
    for name in facts.external:
        beside = _beside(path, name)
        if not beside.is_file():
            raise RequestError(
                f"{path} keeps weights in {name!r}, which is absent: expected the file {beside}"
            )
        external = cache.facts(beside)
        files.append(ModelFile(name, external.digest, external.nbytes))
    return tuple(files)


def _beside(model: Path, name: str) -> Path:
    """The external data file of a model; refuses a path that leaves the model's folder."""
    relative = PurePosixPath(name)
    beside = model.parent / relative
    folder = model.parent.resolve()
    if relative.is_absolute() or not beside.resolve().is_relative_to(folder):
        raise RequestError(
            f"{model} keeps weights in {name!r}, outside its own folder; "
            "expected a path within the folder of the model"
        )
    return beside


def external_files(path: Path) -> tuple[str, ...]:
    """The external data files that an ONNX file names, sorted; none when it is no ONNX file.

    A damaged file is left to the importer, which says what is wrong with it.
    """
    if path.suffix != ".onnx" or path.stat().st_size == 0:
        return ()
    found: set[str] = set()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        suppress(ValueError, IndexError, UnicodeDecodeError),
    ):
        found.update(_locations(data, 0, len(data), "model", 0))
    return tuple(sorted(found))


def _locations(data: mmap.mmap, begin: int, end: int, message: str, depth: int) -> Iterator[str]:
    """The values of every external_data entry `location` below a message."""
    if depth > _DEEPEST:
        raise ValueError("messages nested too deeply")
    inner = _PATHS[message]
    for number, first, last in _fields(data, begin, end):
        kind = inner.get(number)
        if kind == "entry":
            key, value = _entry(data, first, last)
            if key == "location":
                yield value
        elif kind is not None:
            yield from _locations(data, first, last, kind, depth + 1)


def _entry(data: mmap.mmap, begin: int, end: int) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    texts = {number: data[first:last].decode() for number, first, last in _fields(data, begin, end)}
    return texts.get(1, ""), texts.get(2, "")


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number and extent of the length-delimited fields of a protobuf message."""
    position = begin
    while position < end:
        tag, position = _varint(data, position, end)
        wire_type = tag & 7
        if wire_type == 0:
            _, position = _varint(data, position, end)
        elif wire_type == 1:
            position += 8
        elif wire_type == 5:
            position += 4
        elif wire_type == 2:
            nbytes, position = _varint(data, position, end)
            if position + nbytes > end:
                raise ValueError("a field that ends behind its message")
            yield tag >> 3, position, position + nbytes
            position += nbytes
        else:
            raise ValueError(f"wire type {wire_type}")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """A variable-length integer and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number without an end")


def _read_facts(place: Path, identity: list[object]) -> FileFacts | None:
    """Facts that were written down for exactly this file, or None."""
    try:
        fields = json.loads(place.read_bytes())
        if fields["identity"] != identity or place.stat().st_uid != os.getuid():
            return None
        return FileFacts(fields["digest"], fields["size"], tuple(fields["external"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
