from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from engine.errors import PlanCorruptError
from engine.ir.types import Array, DType, TensorType
from engine.plan.container import read
from engine.plan.plan import Plan, host_steps, open_plan
from engine.plan.program import Program, RecipeStep, Slot, Weight
from engine.plan.writing import write

VALUES: dict[str, Array] = {
    "f": np.arange(6, dtype=np.float32).reshape(2, 3),
    "h": np.arange(6).astype(ml_dtypes.bfloat16).reshape(3, 2),
    "i4": np.array([-8, 7, 0], ml_dtypes.int4),
    "c": np.array([1 + 2j], np.complex64),
    "s": np.array([["é", ""], ["x", "y"]], object),
    "t": np.array([True, False]),
    "zero": np.zeros((0, 2), np.float16),
    "scalar": np.array(3, np.int64),
}


def constants(values: dict[str, Array]) -> Plan:
    """A plan of weights alone."""
    weights = tuple(
        Weight(name, DType.of(array.dtype), array.shape, name) for name, array in values.items()
    )
    slots = tuple(Slot(TensorType(w.dtype, w.shape), "weight", w.name) for w in weights)
    program = Program((), slots, (), (), (), (), (), weights)
    return Plan(program, values, {"vendor": "cpu"}, keys={"build": "k"})


def test_weights_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    plan = constants(VALUES)
    plan.save(tmp_path / "x.engine")
    opened = open_plan(tmp_path / "x.engine")
    assert opened.program == plan.program
    assert opened.metadata() == plan.metadata()
    assert opened.metadata()["keys"] == {"build": "k"}
    for name, found in opened.arrays().items():
        assert found.dtype == VALUES[name].dtype
        np.testing.assert_array_equal(found, VALUES[name])
        assert not found.flags.writeable


def test_a_saved_plan_saves_to_the_same_bytes(tmp_path: Path, sample: Program) -> None:
    Plan(sample, {"w": np.arange(4, dtype=np.float32)}).save(tmp_path / "x")
    open_plan(tmp_path / "x").save(tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_plan_may_replace_the_file_it_was_opened_from(tmp_path: Path) -> None:
    constants(VALUES).save(tmp_path / "x")
    opened = open_plan(tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    opened.save(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == before
    np.testing.assert_array_equal(opened.array("f"), VALUES["f"])


@dataclass(frozen=True)
class Source:
    constant: Array | None


@dataclass(frozen=True)
class Packed:
    sources: tuple[Source, ...]
    recipe: tuple[RecipeStep, ...]


def test_weights_are_made_by_their_recipes_when_saved(tmp_path: Path, sample: Program) -> None:
    source = np.arange(4, dtype=np.float32).reshape(2, 2)
    packed = Packed((Source(source),), sample.weights[0].recipe)
    Plan(sample, {"w": packed}).save(tmp_path / "x")
    np.testing.assert_array_equal(open_plan(tmp_path / "x").array("w"), source.reshape(4))


def test_a_weight_that_breaks_its_promise_is_refused(tmp_path: Path, sample: Program) -> None:
    for wrong in (np.zeros(5, np.float32), np.zeros(4), Packed((Source(None),), ())):
        with pytest.raises(ValueError, match="weight w"):
            Plan(sample, {"w": wrong}).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [("t", np.array([2, 0], np.uint8)), ("s", np.frombuffer(b'["a"]', np.uint8))],
)
def test_impossible_contents_are_refused(tmp_path: Path, name: str, content: Array) -> None:
    constants(VALUES).save(tmp_path / "x")
    container = read(tmp_path / "x")
    sections = {item: container.array(item) for item in container.names}
    sections[name] = content.view(np.bool_) if name == "t" else content
    write(tmp_path / "x", sections, keys=container.keys)
    with pytest.raises(PlanCorruptError, match=f"weight {name}"):
        open_plan(tmp_path / "x")


def test_host_steps_of_bodies_and_cases_are_found(sample: Program) -> None:
    names = [step.operator.get("name", step.function) for step in host_steps(sample.steps)]
    assert names == ["NonZero", "Loop", "copy", "Add", "SequenceConstruct"]
    assert Plan(sample, {}).requires == []
    step = replace(sample.steps[3], function="reference")
    assert Plan(replace(sample, steps=(step,)), {}).requires == ["onnx"]


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from engine.ir.sizes import symbol\n"
        "from engine.ir.types import DType, TensorType\n"
        "from engine.plan.plan import Plan\n"
        "from engine.plan.program import *\n"
        "n, m = symbol('n'), symbol('m')\n"
        "x = Slot(TensorType(DType.FLOAT32, (n, m)), 'input', 'x')\n"
        "a = Slot(TensorType(DType.FLOAT32, (n * m + m * 3 + n // 2, m)), 'arena')\n"
        "s = [Symbol(k, 1, (2,), 9, ('input', 'x', i)) for i, k in enumerate('nm')]\n"
        "p = Program(tuple(s), (x, a), (0,), (), (), (), ())\n"
        "Plan(p, {}, {'b': 1, 'a': 2}).save(sys.argv[1])\n"
    )
    written = []
    for seed in ("0", "1"):
        place = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, str(place)],
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            cwd=Path(__file__).parents[3],
        )
        written.append(place.read_bytes())
    assert written[0] == written[1]
