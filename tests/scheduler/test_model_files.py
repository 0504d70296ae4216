"""The files of a model are found without an ONNX library, and digested once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from scheduler import model_files as module
from scheduler.errors import RequestError
from scheduler.model_files import DigestCache, external_files, model_files
from storage.digest import digest_of_bytes


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_with(*, top: str = "weights.bin", inner: str = "inner/body.bin") -> onnx.ModelProto:
    """A model with external data at the top, in a branch, in an attribute, and inline weights."""
    branch = helper.make_graph([], "branch", [], [], initializer=[external("b", inner)])
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["k"], value=external("k", "constant.bin")),
    ]
    inline = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "inline")
    graph = helper.make_graph(nodes, "g", [], [], initializer=[inline, external("w", top)])
    return helper.make_model(graph)


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "cache")


def save(folder: Path, model: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_found_wherever_a_tensor_may_be(
    tmp_path: Path, cache: DigestCache
) -> None:
    path = save(tmp_path, model_with())
    (tmp_path / "inner").mkdir()
    for name in ("weights.bin", "constant.bin", "inner/body.bin"):
        (tmp_path / name).write_bytes(name.encode())
    assert external_files(path) == ("constant.bin", "inner/body.bin", "weights.bin")
    found = model_files(path, cache)
    assert [file.name for file in found] == [
        "model.onnx",
        "constant.bin",
        "inner/body.bin",
        "weights.bin",
    ]
    assert found[-1].digest == digest_of_bytes(b"weights.bin")


def test_the_name_of_the_model_file_does_not_matter(tmp_path: Path, cache: DigestCache) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    assert model_files(save(tmp_path, model, "a.onnx"), cache) == model_files(
        save(tmp_path, model, "b.onnx"), cache
    )


def test_external_data_that_is_absent_is_named(tmp_path: Path, cache: DigestCache) -> None:
    with pytest.raises(RequestError, match=r"constant\.bin"):
        model_files(save(tmp_path, model_with()), cache)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "inner/../../secret"])
def test_external_data_outside_the_folder_is_refused(
    tmp_path: Path, cache: DigestCache, location: str
) -> None:
    (tmp_path / "secret").write_bytes(b"")
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    graph = helper.make_graph([], "g", [], [], initializer=[external("w", location)])
    with pytest.raises(RequestError, match="outside its own folder"):
        model_files(save(folder, helper.make_model(graph)), cache)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, cache: DigestCache) -> None:
    (tmp_path / "secret").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").symlink_to(tmp_path / "secret")
    graph = helper.make_graph([], "g", [], [], initializer=[external("w", "weights.bin")])
    with pytest.raises(RequestError, match="outside its own folder"):
        model_files(save(folder, helper.make_model(graph)), cache)


@settings(deadline=None)
@given(cut=st.integers(0, 4500), flip=st.integers(0, 4500), bit=st.integers(0, 7))
def test_a_damaged_file_is_left_to_the_importer(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, bit: int
) -> None:
    data = bytearray(model_with().SerializeToString()[:cut])
    if flip < len(data):
        data[flip] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(data)
    found = external_files(path)
    assert list(found) == sorted(set(found))
    if not cut:
        assert found == ()


def test_a_file_is_digested_once_until_it_changes(
    tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.txt"
    calls: list[Path] = []

    def counting(file: Path) -> tuple[str, int]:
        calls.append(file)
        return digest_of_bytes(file.read_bytes()), file.stat().st_size

    monkeypatch.setattr(module, "digest_of_file", counting)

    def write(data: bytes, seconds_ago: float) -> None:
        path.write_bytes(data)
        at = time.time() - seconds_ago
        os.utime(path, (at, at))

    write(b"first", 100)
    assert cache.facts(path).digest == cache.facts(path).digest == digest_of_bytes(b"first")
    assert len(calls) == 1
    write(b"other", 50)
    assert cache.facts(path).digest == digest_of_bytes(b"other")
    assert len(calls) == 2
    write(b"young", 0)
    assert cache.facts(path).digest == cache.facts(path).digest == digest_of_bytes(b"young")
    assert len(calls) == 4


def test_a_cache_that_cannot_be_written_is_only_slower(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")
    os.utime(model, (1, 1))
    assert DigestCache(tmp_path / "file").facts(model, scan=True).digest == digest_of_bytes(b"")


def test_a_folder_is_no_model(tmp_path: Path, cache: DigestCache) -> None:
    with pytest.raises(RequestError, match="is a folder"):
        model_files(tmp_path, cache)
