"""The container of a plan file: named arrays that the safetensors library can open.

Layout: eight bytes with the header's length, the header (JSON padded with spaces so that data
begins on a multiple of 4096), then the sections in the order of their names, each on a multiple of
256 with ``pad.N`` tensors of zeros in the holes, last the tensor ``digests``: SHA-256 of every
`CHUNK` bytes of every section. Metadata holds the digest of header and digests, so that nothing in
a file can change unnoticed. The same sections always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from engine.errors import PlanCorruptError, PlanVersionError
from engine.ir.types import Array, DType
from engine.plan.fields import choice, entries, integer, items, parse, text

__all__ = ["CHUNK", "VERSION", "Container", "Form", "layout", "read", "stored_form"]

#: The version of the container and of the program in it; readers refuse others.
VERSION = 1
FORMAT = "enginefarm"
CHUNK = 1 << 22
ALIGNMENT = 256
PAGE = 4096
MAX_HEADER = 1 << 24
LARGEST = 1 << 48
ZEROS = "0" * 64
DIGESTS = "digests"

_NATIVE = {
    DType.BOOL: "BOOL",
    DType.UINT8: "U8",
    DType.INT8: "I8",
    DType.UINT16: "U16",
    DType.INT16: "I16",
    DType.FLOAT16: "F16",
    DType.UINT32: "U32",
    DType.INT32: "I32",
    DType.FLOAT32: "F32",
    DType.UINT64: "U64",
    DType.INT64: "I64",
    DType.FLOAT64: "F64",
}
_DTYPES = {name: dtype.numpy for dtype, name in _NATIVE.items()}


@dataclass(frozen=True, slots=True)
class Form:
    """How a section is stored: the container's name of the dtype, and a shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


def stored_form(dtype: DType, shape: Sequence[int]) -> Form:
    """The form of an array: its own where the format has the dtype, else its bytes as U8."""
    if dtype in _NATIVE:
        return Form(_NATIVE[dtype], tuple(shape))
    return Form("U8", (math.prod(shape) * dtype.nbytes,))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies: offsets from the start of the data."""

    entries: Mapping[str, tuple[Form, int]]  # sections in file order, without pads
    pads: tuple[tuple[int, int], ...]
    digests: int
    nbytes: int

    def header(self, keys: Mapping[str, str], digest: str) -> bytes:
        """The whole beginning of the file, up to the data."""
        document: dict[str, Any] = {
            name: _entry(form, begin) for name, (form, begin) in self.entries.items()
        }
        for number, (begin, end) in enumerate(self.pads):
            document[f"pad.{number}"] = _entry(Form("U8", (end - begin,)), begin)
        document[DIGESTS] = _entry(Form("U8", (self.nbytes - self.digests,)), self.digests)
        document["__metadata__"] = {
            "digest": digest,
            "format": FORMAT,
            "version": str(VERSION),
            **{f"key.{name}": value for name, value in keys.items()},
        }
        body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        padded = -(-(8 + len(body)) // PAGE) * PAGE - 8
        return padded.to_bytes(8, "little") + body.ljust(padded)


def _entry(form: Form, begin: int) -> dict[str, Any]:
    return {
        "data_offsets": [begin, begin + form.nbytes],
        "dtype": form.dtype,
        "shape": list(form.shape),
    }


def layout(forms: Mapping[str, Form]) -> Layout:
    """Offsets of sections in the order of their names; ValueError for a reserved name."""
    found: dict[str, tuple[Form, int]] = {}
    pads: list[tuple[int, int]] = []
    end, chunks = 0, 0
    for name in sorted(forms):
        if not name or name in ("__metadata__", DIGESTS) or name.startswith("pad."):
            raise ValueError(f"a section cannot be called {name!r}")
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        if begin > end:
            pads.append((end, begin))
        found[name] = (forms[name], begin)
        end = begin + forms[name].nbytes
        chunks += -(-forms[name].nbytes // CHUNK)
    begin = -(-end // ALIGNMENT) * ALIGNMENT
    if begin > end:
        pads.append((end, begin))
    return Layout(found, tuple(pads), begin, begin + 32 * chunks)


def root_digest(header: bytes, digests: bytes | Array) -> str:
    """What seals a file: SHA-256 of the header, written with zeros for this, and the digests."""
    seal = hashlib.sha256(header)
    seal.update(digests if isinstance(digests, bytes) else digests.data)
    return seal.hexdigest()


@dataclass(frozen=True, slots=True)
class Container:
    """A plan file, mapped and read-only; `verify` compares the contents with the digests."""

    path: Path
    keys: Mapping[str, str]
    _layout: Layout
    _data: Array

    @property
    def names(self) -> tuple[str, ...]:
        """The sections, sorted."""
        return tuple(self._layout.entries)

    def form(self, name: str) -> Form:
        """How a section is stored; KeyError when there is none."""
        return self._layout.entries[name][0]

    def raw(self, name: str) -> Array:
        """The bytes of a section (uint8, a read-only view of the mapped file)."""
        form, begin = self._layout.entries[name]
        return self._data[begin : begin + form.nbytes]

    def array(self, name: str) -> Array:
        """A section as an array: a read-only view of the mapped file."""
        form = self.form(name)
        return self.raw(name).view(_DTYPES[form.dtype]).reshape(form.shape)

    def verify(self, threads: int = 2, names: Iterable[str] | None = None) -> None:
        """Check the digests of some sections (of all by default, and that pads are zero).

        Raises PlanCorruptError naming the section that was altered.
        """
        wanted = None if names is None else set(names)
        digests, position = self._data[self._layout.digests :], 0
        tasks: list[tuple[str, Array, bytes]] = []
        for name in self.names:
            raw = self.raw(name)
            for begin in range(0, raw.size, CHUNK):
                if wanted is None or name in wanted:
                    expected = digests[position : position + 32].tobytes()
                    tasks.append((name, raw[begin : begin + CHUNK], expected))
                position += 32
        for begin, end in self._layout.pads if wanted is None else ():
            if self._data[begin:end].any():
                _corrupt(self.path, "the bytes between two sections are not zero")
        if threads > 1 and len(tasks) > 1:
            with ThreadPoolExecutor(threads) as pool:
                answers = list(pool.map(_matches, tasks))
        else:
            answers = [_matches(task) for task in tasks]
        for (name, _, _), matches in zip(tasks, answers, strict=True):
            if not matches:
                _corrupt(self.path, f"the section {name!r} does not match its digest")


def _matches(task: tuple[str, Array, bytes]) -> bool:
    _, data, expected = task
    return hashlib.sha256(data.data).digest() == expected


def _corrupt(path: Path, what: str) -> NoReturn:
    raise PlanCorruptError(f"{path} is no intact plan: {what}; build or fetch it again")


def read(path: str | os.PathLike[str]) -> Container:
    """Map a plan file and check its header fully; nothing else is read yet.

    Raises PlanVersionError for another version, PlanCorruptError for anything that `write` would
    not have written, OSError when the file cannot be opened.
    """
    place = Path(path)
    whole = _mapped(place)
    length = int.from_bytes(whole[:8].tobytes(), "little")
    if length > MAX_HEADER or (8 + length) % PAGE or 8 + length > whole.size:
        _corrupt(place, f"its header of {length} bytes does not fit its {whole.size} bytes")
    header = whole[: 8 + length].tobytes()
    document = parse(header[8:], f"the header of {place}")
    metadata = _metadata(place, document)
    forms = {
        name: _form(value, f"header.{name[:80]}")
        for name, value in document.items()
        if name not in ("__metadata__", DIGESTS) and not name.startswith("pad.")
    }
    if sum(form.nbytes for form in forms.values()) > whole.size:
        _corrupt(place, f"its sections are longer than its {whole.size} bytes")
    keys = {name[4:]: value for name, value in metadata.items() if name.startswith("key.")}
    try:
        placed = layout(forms)
        expected = placed.header(keys, metadata["digest"])
        unsealed = placed.header(keys, ZEROS)
    except (ValueError, OverflowError) as error:
        _corrupt(place, str(error)[:160])
    if expected != header:
        _corrupt(place, "its header is not in the one form that such a plan has")
    data = whole[8 + length :]
    if data.size != placed.nbytes:
        _corrupt(place, f"it has {data.size} bytes of data, expected {placed.nbytes}")
    if root_digest(unsealed, data[placed.digests :]) != metadata["digest"]:
        _corrupt(place, "its header does not match its digest")
    return Container(place, keys, placed, data)


def _mapped(path: Path) -> Array:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size < PAGE:
            _corrupt(path, f"it has {status.st_size} bytes, expected a file of {PAGE} at least")
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _metadata(path: Path, document: Any) -> dict[str, str]:
    metadata = document.get("__metadata__") if isinstance(document, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        _corrupt(path, "it is a container of something else")
    if not all(isinstance(value, str) for value in metadata.values()):
        _corrupt(path, "its metadata are no strings")
    version = metadata.get("version", "")
    if version != str(VERSION):
        raise PlanVersionError(
            f"{path} has the plan format {version[:20]!r}, this version reads format {VERSION}; "
            "build it again, or use the version that built it"
        )
    if set(map(type, metadata)) != {str} or len(metadata.get("digest", "")) != 64:
        _corrupt(path, "its metadata hold no digest")
    return dict(metadata)


def _form(value: Any, where: str) -> Form:
    _, dtype, shape = entries(value, where, ("data_offsets", "dtype", "shape"))
    sizes = items(shape, where, lambda v, at: integer(v, at, 0, LARGEST))
    form = Form(choice(text(dtype, where), where, tuple(_DTYPES)), sizes)
    if len(sizes) > 64 or form.nbytes > LARGEST:
        raise PlanCorruptError(f"the plan is damaged at {where}: it is greater than 2**48 bytes")
    return form
