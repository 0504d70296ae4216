from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from engine.errors import PlanCorruptError, PlanError, PlanVersionError
from engine.ir.types import DType
from engine.plan.container import CHUNK, Form, layout, read, stored_form
from engine.plan.writing import Section, write

SECTIONS: dict[str, Any] = {
    "b": np.arange(7, dtype=np.float32),
    "a": np.array([[True, False]]),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 3), np.int64),
    "bits": np.arange(8).astype(ml_dtypes.bfloat16),
    "turned": np.arange(12, dtype=np.int16).reshape(3, 4).T,
    "exact": np.arange(64, dtype=np.uint32),
}


def test_the_safetensors_library_opens_a_plan_file(tmp_path: Path) -> None:
    write(tmp_path / "x.engine", SECTIONS, keys={"build": "abc"})
    with safe_open(tmp_path / "x.engine", "np") as file:
        names = {name for name in file.keys() if not name.startswith("pad.")}  # noqa: SIM118
        assert names == set(SECTIONS) | {"digests"}
        for name, array in SECTIONS.items():
            found = file.get_tensor(name)
            if array.dtype.name == "bfloat16":
                found = found.view(array.dtype)
            np.testing.assert_array_equal(found, array)
        assert file.metadata()["key.build"] == "abc"


def test_what_is_written_is_read_back_as_views_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "x", SECTIONS, keys={"build": "abc"})
    container = read(tmp_path / "x")
    container.verify()
    assert container.names == tuple(sorted(SECTIONS))
    assert container.keys == {"build": "abc"}
    for name, array in SECTIONS.items():
        found = container.array(name)
        if array.dtype.name == "bfloat16":
            found = found.view(array.dtype)
        np.testing.assert_array_equal(found, array)
        assert not found.flags.owndata
        assert not found.flags.writeable
        assert found.size == 0 or found.ctypes.data % 256 == 0


def test_the_same_sections_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "x", SECTIONS)
    write(tmp_path / "y", dict(reversed(SECTIONS.items())))
    lazy = {
        name: Section(stored_form(DType.of(array.dtype), array.shape), lambda array=array: array)
        for name, array in SECTIONS.items()
    }
    write(tmp_path / "z", lazy)
    first = (tmp_path / "x").read_bytes()
    assert first == (tmp_path / "y").read_bytes() == (tmp_path / "z").read_bytes()
    assert (8 + int.from_bytes(first[:8], "little")) % 4096 == 0


@given(
    st.dictionaries(st.text("abcxyz.", min_size=1, max_size=4), st.integers(0, 2000), max_size=9)
)
def test_sections_lie_on_256_bytes_without_holes(sizes: dict[str, int]) -> None:
    placed = layout({f"s{name}": Form("U8", (size,)) for name, size in sizes.items()})
    spans = [(begin, begin + form.nbytes) for form, begin in placed.entries.values()]
    assert all(begin % 256 == 0 for begin, _ in spans)
    end = 0
    for begin, stop in sorted([*spans, *placed.pads, (placed.digests, placed.nbytes)]):
        assert begin == end
        end = stop


@pytest.mark.parametrize("name", ["", "__metadata__", "digests", "pad.0"])
def test_reserved_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        write(tmp_path / "x", {name: np.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_an_altered_section_is_named(tmp_path: Path) -> None:
    big = np.zeros(CHUNK + 5, np.uint8)
    write(tmp_path / "x", {"big": big, "small": np.ones(3)})
    content = bytearray((tmp_path / "x").read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + CHUNK + 2] ^= 1
    (tmp_path / "x").write_bytes(content)
    container = read(tmp_path / "x")
    container.verify(names=["small"])
    for threads in (1, 2):
        with pytest.raises(PlanCorruptError, match="'big' does not match"):
            container.verify(threads)


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "x", SECTIONS)
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content.replace(b'"version":"1"', b'"version":"7"'))
    with pytest.raises(PlanVersionError, match="plan format '7', this version reads format 1"):
        read(tmp_path / "x")


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 5000, b"\xff" * 5000])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(PlanCorruptError):
        read(tmp_path / "x")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    header = header.ljust(4088)
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(PlanCorruptError, match="something else"):
        read(tmp_path / "x")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "x", {"a": np.zeros(3)})
    before = (tmp_path / "x").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(PlanError, match="no room"):
            write(tmp_path / "x", {"a": np.ones(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [item.name for item in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_sync_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PlanError if number == errno.ENOSPC else OSError):
        write(tmp_path / "x", SECTIONS)
    assert not list(tmp_path.iterdir())


def test_a_section_that_breaks_its_promise_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 24 bytes, expected 16"):
        write(tmp_path / "x", {"a": Section(Form("F64", (2,)), lambda: np.zeros(3))})
    assert not list(tmp_path.iterdir())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 63))
def test_any_bit_of_a_small_file_matters(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    place = tmp_path_factory.mktemp("flip") / "x"
    write(place, {"a": np.arange(300, dtype=np.uint8), "b": np.arange(9.0)})
    content = bytearray(place.read_bytes())
    random = np.random.default_rng(seed)
    for position in random.integers(0, len(content) * 8, 20):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << (position % 8)
        place.write_bytes(changed)
        with pytest.raises(PlanError):
            read(place).verify(1)
