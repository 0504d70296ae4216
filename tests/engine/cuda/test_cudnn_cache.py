"""cuDNN's built graphs in the user's cache: reused, rebuilt when damaged, never from others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from engine.cuda import cudnn_cache, cudnn_graph
from engine.cuda.cudnn_calls import ConvolutionCall, EngineChoice
from engine.cuda.cudnn_graph import CudnnGraphs
from engine.target import describe
from tests.engine.cuda.library_models import Graph, frontend_model

TARGET = describe("cuda:sm90")
SIZES = [1, 4, 4, 8, 8, 1, 1, 4, 4, 16]


class Kept(Graph):
    """A graph that writes itself down as a number and knows what was built."""

    built: list[tuple[int, Any]] = []
    restored: list[int] = []

    def create_execution_plan(self, engine: int, knobs: dict[Any, int]) -> None:
        super().create_execution_plan(engine, knobs)
        self.built.append((engine, knobs))

    def serialize(self) -> list[int]:
        return [len(self.built), 255]

    def deserialize(self, data: Any) -> None:
        if not isinstance(data, list):  # what the bindings take for a sequence of bytes
            raise TypeError(f"found {type(data).__name__}")
        if data[1] != 255:
            raise RuntimeError("not a plan")
        self.restored.append(data[0])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model = frontend_model([])
    model.pygraph = Kept
    monkeypatch.setattr(cudnn_graph, "frontend", lambda: model)
    monkeypatch.setattr(cudnn_graph, "SLOW_BUILD_S", 0.0)
    monkeypatch.setattr(Kept, "built", [])
    monkeypatch.setattr(Kept, "restored", [])
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cudnn"


def call(stages: int = 2) -> dict[str, Any]:
    made = ConvolutionCall("float16", "float16", (1, 1), (0, 0, 0, 0), (1, 1))
    choice = EngineChoice(3, {"STAGES": stages}, 512, 91900)
    return {**made.to_json(), "choice": choice.to_json(), "sizes": SIZES}


def prepare(stages: int = 2) -> int:
    """Prepare in a library of its own, as another process would."""
    library = CudnnGraphs()
    prepared = library.prepare(call(stages), SIZES, TARGET)  # type: ignore[arg-type]
    assert prepared.workspace_nbytes == 512
    prepared.close()
    library.close()
    return len(Kept.built)


def test_a_graph_is_built_once_per_user(folder: Path) -> None:
    assert [prepare(), prepare(), prepare()] == [1, 1, 1]
    assert Kept.restored == [1, 1]
    assert prepare(stages=3) == 2
    assert len(list(folder.glob("*.plan"))) == 2
    assert folder.stat().st_mode & 0o777 == 0o700


def test_quick_builds_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_graph, "SLOW_BUILD_S", 60.0)
    assert [prepare(), prepare()] == [1, 2]
    assert list(folder.glob("*")) == []


@pytest.mark.parametrize("cut", [0, 4, 20, 60, -1])
def test_damaged_entries_are_built_anew(folder: Path, cut: int) -> None:
    prepare()
    (path,) = folder.glob("*.plan")
    content = path.read_bytes()
    changed = content[:cut] if cut else b""
    path.write_bytes(changed if cut != 60 else content[:60] + b"?" + content[61:])
    assert prepare() == 2
    assert path.read_bytes()[:40] == content[:40] or Kept.restored == []
    assert prepare() == 2


def test_an_entry_that_the_library_refuses_is_built_anew(folder: Path) -> None:
    prepare()
    (path,) = folder.glob("*.plan")
    cudnn_cache.write(path.stem, cudnn_cache.Entry(b"\0\0", 512))
    assert prepare() == 2


def test_an_entry_under_another_name_is_not_taken(folder: Path) -> None:
    prepare()
    (path,) = folder.glob("*.plan")
    assert cudnn_cache.read(path.stem) is not None
    other = path.with_name("0" * 64 + ".plan")
    path.rename(other)
    assert cudnn_cache.read(other.stem) is None


def test_files_that_others_can_write_are_not_read(folder: Path) -> None:
    prepare()
    (path,) = folder.glob("*.plan")
    path.chmod(0o666)
    assert cudnn_cache.read(path.stem) is None
    path.chmod(0o600)
    assert cudnn_cache.read(path.stem) is not None
    path.unlink()
    os.mkfifo(path)  # opening a pipe for reading would wait for a writer
    writer = os.open(path, os.O_RDWR)
    try:
        assert cudnn_cache.read(path.stem) is None
    finally:
        os.close(writer)


def test_what_an_entry_depends_on_is_in_its_name() -> None:
    names = {
        cudnn_cache.entry_key(call(stages), sizes, versions, describe(target))  # type: ignore[arg-type]
        for stages in (2, 3)
        for sizes in (SIZES, [2, *SIZES[1:]])
        for versions in ((91900, "1.28.0"), (91901, "1.28.0"), (91900, "1.27.0"))
        for target in ("cuda:sm90", "cuda:sm80")
    }
    assert len(names) == 2 * 2 * 3 * 2


def test_the_least_recently_used_entries_go_when_the_folder_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudnn_cache, "MOST_NBYTES", 10_000)
    for place in range(9):
        cudnn_cache.write(f"{place}", cudnn_cache.Entry(bytes(1500), 0))
        os.utime(folder / f"{place}.plan", (place, place))
        if place == 5:
            assert cudnn_cache.read("0") is not None
    held = {path.stem for path in folder.glob("*.plan")}
    assert {"0", "8"} <= held and "1" not in held
    assert sum(path.stat().st_size for path in folder.glob("*.plan")) <= 10_000
