"""SHA-256 of bytes, files and plain data; digests are 64 lower-case hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK_NBYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether the text is 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def digest_of_bytes(data: bytes) -> str:
    """SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> tuple[str, int]:
    """SHA-256 of a file and the number of bytes that were read."""
    hasher = hashlib.sha256()
    nbytes = 0
    with path.open("rb") as file:
        for chunk in chunks_of(file):
            hasher.update(chunk)
            nbytes += len(chunk)
    return hasher.hexdigest(), nbytes


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """The rest of an open file in pieces of at most one MiB."""
    while chunk := file.read(CHUNK_NBYTES):
        yield chunk


def canonical_json(value: object) -> bytes:
    """The one JSON text of plain data: sorted keys, no spaces, UTF-8, no NaN.

    A float that is a whole number is written as that integer, so that 1 and 1.0, which compare
    equal in Python and in JSON, have one text. Raises TypeError for anything but null, booleans,
    numbers, strings, lists, tuples and mappings with string keys, ValueError for NaN and infinity.
    """
    plain = _plain(value)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def digest_of_json(value: object) -> str:
    """SHA-256 of the canonical JSON of plain data."""
    return digest_of_bytes(canonical_json(value))


def _plain(value: object) -> object:
    """Plain data with tuples as lists and whole floats as integers."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"canonical JSON has no number {value}; give a finite number")
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"canonical JSON needs text as keys; found {name!r}")
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"canonical JSON cannot hold a {type(value).__name__}: {value!r}")
