"""Every blob store keeps the same promises; the folder also survives a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blobs import (
    BlobStore,
    FolderBlobs,
    MemoryBlobs,
    put_file,
    read_blob,
    save_blob,
)
from storage.digest import digest_of_bytes
from storage.errors import CorruptError, DiskFullError, NotFoundError, ReadOnlyError

ABSENT = digest_of_bytes(b"never put")


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return FolderBlobs(tmp_path / "blobs") if request.param == "folder" else MemoryBlobs()


def test_what_is_put_is_what_is_got(blobs: BlobStore) -> None:
    blob = blobs.put([b"one ", b"", b"two"])
    assert (blob.digest, blob.nbytes) == (digest_of_bytes(b"one two"), 7)
    assert read_blob(blobs, blob.digest) == b"one two"


def test_a_blob_may_be_empty_and_may_be_put_twice(blobs: BlobStore) -> None:
    assert blobs.put([]) == blobs.put([b""])
    assert read_blob(blobs, digest_of_bytes(b"")) == b""


@given(chunks=st.lists(st.binary(max_size=40), max_size=6))
def test_how_bytes_are_cut_does_not_matter(chunks: list[bytes]) -> None:
    blobs = MemoryBlobs()
    whole = b"".join(chunks)
    assert blobs.put(chunks) == blobs.put([whole])
    assert read_blob(blobs, digest_of_bytes(whole)) == whole


def test_missing_names_exactly_what_is_not_kept(blobs: BlobStore) -> None:
    kept = blobs.put([b"kept"]).digest
    assert blobs.missing([kept, ABSENT]) == {ABSENT}


def test_delete_forgets_and_is_no_error_twice(blobs: BlobStore) -> None:
    digest = blobs.put([b"x"]).digest
    blobs.delete(digest)
    blobs.delete(digest)
    assert blobs.missing([digest]) == {digest}


def test_an_absent_blob_is_refused_at_once(blobs: BlobStore) -> None:
    with pytest.raises(NotFoundError, match=ABSENT[:12]):
        blobs.get(ABSENT)


def test_bytes_with_another_digest_than_promised_are_not_kept(blobs: BlobStore) -> None:
    with pytest.raises(CorruptError):
        blobs.put([b"other"], digest=ABSENT)
    assert blobs.missing([ABSENT, digest_of_bytes(b"other")]) == {
        ABSENT,
        digest_of_bytes(b"other"),
    }


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_name_that_is_no_digest_reaches_no_file(blobs: BlobStore, name: str) -> None:
    with pytest.raises(NotFoundError):
        blobs.get(name)


def test_a_source_that_fails_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        blobs.put(failing())
    assert blobs.missing([digest_of_bytes(b"half")])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_flipped_bit_is_noticed_when_read(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    digest = blobs.put([b"engine" * 1000]).digest
    path = blobs.path_of(digest)
    damaged = bytearray(path.read_bytes())
    damaged[1234] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)
    with pytest.raises(CorruptError, match="damaged"):
        read_blob(blobs, digest)
    destination = tmp_path / "copy"
    destination.write_bytes(b"what was there")
    with pytest.raises(CorruptError):
        save_blob(blobs, digest, destination)
    assert destination.read_bytes() == b"what was there"


def test_a_blob_is_a_read_only_file_and_a_copy_is_not(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    source = tmp_path / "source"
    source.write_bytes(b"content")
    blob = put_file(blobs, source)
    assert blobs.path_of(blob.digest).stat().st_mode & 0o777 == 0o444
    save_blob(blobs, blob.digest, tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").stat().st_mode & 0o200


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_full_disk_is_said_clearly_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    blobs = FolderBlobs(tmp_path)
    monkeypatch.setattr(f"storage.disk.os.{call}", full)
    with pytest.raises(DiskFullError, match="disk is full"):
        blobs.put([b"much"])
    monkeypatch.undo()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert blobs.put([b"much"]).nbytes == 4


def test_a_folder_that_cannot_be_one_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ReadOnlyError, match="write access"):
        FolderBlobs(tmp_path / "file").put([b"x"])
