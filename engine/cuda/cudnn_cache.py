"""What cuDNN compiled when an engine was loaded, kept for the next load of the same user.

cuDNN generates fused kernels while a graph is built, which takes up to a second each; it can write
down what it built. Such bytes are trusted by the library, hence no part of plan files: they are
written and read here alone, in a folder that nobody else can write to, from files that this user
owns. An entry is one file: a magic word, the SHA-256 of the rest, a line of JSON, the bytes. Its
name is the SHA-256 of everything that they depend on. Damaged entries are built anew; files are
placed by rename, and those used least recently go when the folder grows too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.runtime.compilation import cache_folder, place
from engine.target import CudaTarget

__all__ = ["MOST_NBYTES", "Entry", "entry_key", "read", "write"]

#: The greatest size of the folder; at the bound it is cut to three quarters.
MOST_NBYTES = 256 << 20
#: No entry is larger than this; cuDNN's are some hundred KiB.
_MOST_ENTRY = 32 << 20
_MAGIC = b"EFcudnn1"


@dataclass(frozen=True, slots=True)
class Entry:
    """A built graph as cuDNN writes it down, and the workspace that it needs."""

    data: bytes
    workspace_nbytes: int


def entry_key(
    call: Mapping[str, Any], sizes: Sequence[int], versions: Sequence[object], target: CudaTarget
) -> str:
    """The name of an entry: call with its choice, sizes, versions of the library, device."""
    parts = [dict(call), list(sizes), [str(item) for item in versions], target.to_json()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(key: str) -> Entry | None:
    """An entry, marked as used now; None when there is none that is whole and this user's own."""
    try:
        path = _path(key)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            private = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()
            if not private or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            if status.st_size > _MOST_ENTRY:
                return None
            content = file.read()
        head = len(_MAGIC) + 32
        if not content.startswith(_MAGIC):
            return None
        if hashlib.sha256(content[head:]).digest() != content[len(_MAGIC) : head]:
            return None
        line, _, data = content[head:].partition(b"\n")
        fields = json.loads(line)
        if fields["key"] != key:
            return None
        entry = Entry(data, int(fields["workspace_nbytes"]))
        os.utime(path)
        return entry
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(key: str, entry: Entry) -> None:
    """Keep an entry; a full disk only costs the next load its time."""
    fields = {"key": key, "workspace_nbytes": entry.workspace_nbytes}
    body = json.dumps(fields, sort_keys=True).encode() + b"\n" + entry.data
    if len(body) > _MOST_ENTRY:
        return
    with contextlib.suppress(OSError):
        path = _path(key)
        place(path, _MAGIC + hashlib.sha256(body).digest() + body)
        _prune(path.parent)


def _path(key: str) -> Path:
    return cache_folder("cudnn") / f"{key}.plan"


def _prune(folder: Path) -> None:
    """Drop what was used least recently, when the folder is over its bound."""
    entries = []
    for path in folder.glob("*.plan"):
        with contextlib.suppress(OSError):
            status = path.stat()
            entries.append((status.st_mtime_ns, status.st_size, path))
    held = sum(size for _, size, _ in entries)
    if held <= MOST_NBYTES:
        return
    for _, size, path in sorted(entries, key=lambda item: item[0]):
        with contextlib.suppress(OSError):
            path.unlink()
        held -= size
        if held <= MOST_NBYTES * 3 // 4:
            return
