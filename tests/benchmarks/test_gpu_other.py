"""The other numbers of a GPU: tasks on an emulated one, rows, limits, what is done again."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine
from benchmarks import gpu_other, gpu_other_tasks
from benchmarks.gpu_other_tasks import TASKS, unseen_batches
from engine import building
from engine.cuda.kernel import Compiled, DeviceKernel
from tests.emulated_device import EmulatedDevice, image_of

IMAGE = [3, 6, 6]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Relu(conv(x)) + x in float16, with an open batch axis."""
    filters = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["y"]),
    ]
    kinds = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", *IMAGE]) for name in "xy"
    ]
    weights = [numpy_helper.from_array(filters, "w")]
    graph = helper.make_graph(nodes, "small", kinds[:1], kinds[1:], initializer=weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds compile for a GPU of the host's, and plans are loaded onto it."""

    def compile(kernels: Sequence[DeviceKernel]) -> list[Compiled]:
        return [
            Compiled(image_of(k), k.entry, k.threads, k.shared_nbytes, waits=k.waits)
            for k in kernels
        ]

    monkeypatch.setattr(building, "device_compiler", lambda target: compile)
    device = EmulatedDevice(eager=True)
    monkeypatch.setattr(gpu_other_tasks, "load", lambda plan: engine.load(plan, device=device))


def built(model: Path, plan: Path, batch: Any) -> dict[str, Any]:
    shapes = {"x": [batch, *IMAGE]}
    options = {"target": "cuda:sm90", "tactics": ["nvrtc"]}
    found: dict[str, Any] = TASKS["build"](str(model), str(plan), shapes, **options)
    return found


@pytest.mark.usefixtures("emulated")
def test_tasks_run_on_a_plan_of_any_batch(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "small.engine"
    found = built(model, plan, "batch=1..2..5")
    assert found["layers"] > 0 and not set(found["tactics"]) & {"numpy.meaning", "numpy"}
    answer = TASKS["unseen"](str(plan), IMAGE, [3, 4], 2, [3])
    assert list(answer["extra_ms"]) == [3, 4] and answer["run_ms"][3] > 0
    arena = TASKS["arena"](str(plan))
    assert arena["nbytes"] >= arena["lower_bound"] > 0
    assert arena["ratio"] == arena["nbytes"] / arena["lower_bound"]


@pytest.mark.usefixtures("emulated")
def test_two_contexts_run_on_one_engine(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "small.engine"
    built(model, plan, 1)
    found = TASKS["two"](str(plan), [1, *IMAGE], runs=2)
    assert found["ratio"] == found["two_per_s"] / found["one_per_s"] > 0
    assert TASKS["steady"](str(plan), [1, *IMAGE])["run_ms"] > 0


def test_unseen_batches_are_neither_tuned_nor_repeated() -> None:
    found = unseen_batches(1, 32, 8, 20)
    assert len(set(found)) == 20 and not {1, 8, 32} & set(found)
    assert found == unseen_batches(1, 32, 8, 20)
    assert not {1, 8, 32} & set(gpu_other.COMPARED)


class Fake(gpu_other.Bench):
    """Tasks that answer what they are told to."""

    answers: dict[str, Any] = {}
    asked: list[tuple[str, dict[str, Any]]] = []

    def task(self, name: str, /, *, cache: Path | None = None, **options: Any) -> Any:
        self.asked.append((name, {"cache": cache, **options}))
        if name == "export":
            path = Path(options["folder"]) / "model.onnx"
            path.touch()
            return {"model": str(path)}
        if name == "build":
            Path(options["plan"]).touch()
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    first = {"seconds": 0.2, "finite": True}
    found: dict[str, Any] = {
        "import": {"seconds": 0.4, "init_s": 0.3, "modules": 300},
        "first_output": first,
        "two": {"ratio": 1.7},
        "build": {"seconds": 3.0},
        "arena": {"ratio": 1.02},
        "steady": {"run_ms": 1.0},
        "unseen": {"extra_ms": {"5": 2.0, "9": 12.0}, "run_ms": {"3": 1.1, "12": 1.2, "27": 1.25}},
    }
    monkeypatch.setattr(Fake, "answers", found)
    monkeypatch.setattr(Fake, "asked", [])
    monkeypatch.setattr(gpu_other, "Bench", Fake)
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu_other.jsonl").read_text().splitlines()]


def run(folder: Path, *words: str) -> int:
    return gpu_other.main(["--out", str(folder), "--work", str(folder / "w"), *words])


def test_every_part_writes_rows_with_limits(answers: dict[str, Any], tmp_path: Path) -> None:
    assert run(tmp_path, "--commit", "a") == 1  # one first run takes longer than allowed
    found = rows(tmp_path)
    assert {item["part"] for item in found} == set(gpu_other.PARTS)
    missed = [item["name"] for item in found if not item["reached"]]
    assert missed == ["first run of an unseen batch over launching it, worst of 20"]
    (shape,) = [item for item in found if item["name"].startswith("run at an unseen")]
    assert shape["value"] == 1.25 and shape["most"] == 1.3
    cold = [asked["cache"] for name, asked in Fake.asked if name == "build" and asked["cache"]]
    assert len(set(cold)) == 2  # neither build finds the other one's kernels
    exported = [asked["name"] for name, asked in Fake.asked if name == "export"]
    assert exported == ["resnet50"]


def test_parts_that_have_rows_are_left_out_on_request(
    answers: dict[str, Any], tmp_path: Path
) -> None:
    assert run(tmp_path, "--commit", "a", "--only", "imports") == 0
    assert run(tmp_path, "--commit", "a", "--only", "imports,streams", "--resume") == 0
    assert [item["part"] for item in rows(tmp_path)] == ["imports", "streams"]
    assert run(tmp_path, "--commit", "b", "--only", "imports", "--resume") == 0
    assert len(rows(tmp_path)) == 3


def test_a_part_that_fails_leaves_no_rows_and_the_others_go_on(
    answers: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers["first_output"] = RuntimeError("first_output failed: no GPU")
    assert run(tmp_path, "--commit", "a", "--only", "load,imports") == 1
    assert [item["part"] for item in rows(tmp_path)] == ["imports"]
    assert "load: first_output failed: no GPU" in capsys.readouterr().out


def test_arenas_are_those_of_plans_that_were_kept(answers: dict[str, Any], tmp_path: Path) -> None:
    for name in ("gpt2_1", "resnet50_32"):
        (tmp_path / f"{name}.engine").touch()
    run(tmp_path, "--commit", "a", "--only", "arena", "--plans", str(tmp_path))
    (item,) = rows(tmp_path)
    assert set(item["detail"]["ratios"]) == {"gpt2 b1", "resnet50 b32"}


def test_a_task_runs_in_a_process_with_caches_of_its_own(tmp_path: Path) -> None:
    bench = gpu_other.Bench(tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)arena failed: .*FileNotFoundError"):
        bench.task("arena", plan=str(tmp_path / "missing.engine"))
    found = bench.environment(tmp_path / "cold")
    assert found["ENGINEFARM_CACHE"] == str(tmp_path / "cold")


@pytest.mark.gpu
def test_the_first_output_of_a_plan_on_a_gpu(model: Path, tmp_path: Path) -> None:
    bench = gpu_other.Bench(tmp_path)
    plan, shapes = str(tmp_path / "small.engine"), {"x": [1, *IMAGE]}
    bench.task("build", model=str(model), plan=plan, shapes=shapes, tactics=["nvrtc"])
    found = bench.task("first_output", plan=plan, shape=shapes["x"])
    assert found["finite"] and 0 < found["seconds"] < 60
    assert bench.task("two", plan=plan, shape=shapes["x"], runs=20)["ratio"] > 0
    assert "torch" not in found["late_imports"] and "torch" not in sys.modules
