"""`enginefarm run`: a plan, a model or a name, on given or random inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import engine
from tests.workers.real_engine import RealLine


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> RealLine:
    return RealLine(tmp_path_factory.mktemp("run"))


def test_given_inputs_give_what_the_api_gives(line: RealLine, tmp_path: Path) -> None:
    feeds, output = line.feeds(3), tmp_path / "y.npz"
    np.savez(tmp_path / "x.npz", **feeds)
    found = line.outcome("run", line.plan, "--inputs", tmp_path / "x.npz", "--output", output)
    wanted = engine.load(line.plan, compile="wait")(feeds)["y"]
    with np.load(output) as held:
        assert np.array_equal(held["y"], wanted)
    assert found["outputs"]["y"]["shape"] == [3, 5]
    assert found["outputs"]["y"]["greatest"] == pytest.approx(float(wanted.max()))


def test_a_single_array_is_an_input_too(line: RealLine, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", line.feeds(1)["x"])
    found = line.outcome("run", line.plan, "--input", f"x={tmp_path / 'x.npy'}")
    assert found["inputs"]["x"]["shape"] == [1, 3, 16, 16]


def test_random_inputs_follow_the_seed_and_the_sizes(line: RealLine) -> None:
    def means(*words: object) -> tuple[float, list[int]]:
        found = line.outcome("run", line.plan, "--random", *words)["outputs"]["y"]
        return found["deviation"], found["shape"]

    assert means() == means("--seed", 0)
    assert means("--seed", 1) != means()
    assert means("--size", "batch=4")[1] == [4, 5]


def test_a_model_is_built_and_then_found_by_path_and_key(line: RealLine) -> None:
    shape = ("--shape", "x=batch=1..2..4,3,16,16", "--level", 0)
    first = line.outcome("run", line.network, "--random", *shape)
    assert first["answer"] == "built"
    assert line.outcome("run", line.network, "--random", *shape)["answer"] == "hit"
    key = Path(first["plan"]).stem.rpartition("-")[2]
    by_key = line.outcome("run", key, "--random")
    assert (by_key["answer"], by_key["outputs"]) == ("farm", first["outputs"])


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--random", "--size", "batch=9"), 2, "outside the profile"),
        (("--random", "--size", "height=9"), 2, "no symbolic size 'height'"),
        (("--random", "--size", "batch"), 2, "expected NAME=VALUE"),
        ((), 2, "give the inputs"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    line: RealLine, words: tuple[str, ...], code: int, sentence: str
) -> None:
    assert sentence in line.refused("run", line.plan, *words, code=code)


def test_wrong_arrays_are_named(line: RealLine, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", line.feeds(1)["x"].astype(np.float64))
    words = ("run", line.plan, "--input")
    assert "float64" in line.refused(*words, f"x={tmp_path / 'x.npy'}", code=2)
    assert "'z'" in line.refused(*words, f"z={tmp_path / 'x.npy'}", code=2)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:90])
    assert "cannot be read" in line.refused(*words, f"x={tmp_path / 'cut.npy'}", code=2)
    assert "no such file" in line.refused(*words, f"x={tmp_path / 'none.npy'}", code=3)


def test_a_plan_cut_short_is_an_integrity_failure(line: RealLine, tmp_path: Path) -> None:
    cut = tmp_path / "cut.engine"
    cut.write_bytes(line.plan.read_bytes()[:-100])
    line.refused("run", cut, "--random", code=9)


def test_nothing_there_is_not_found(line: RealLine) -> None:
    assert "no name nothing:latest" in line.refused("run", "nothing", "--random", code=3)
    line.refused("run", "nothing.onnx", "--random", code=3)
