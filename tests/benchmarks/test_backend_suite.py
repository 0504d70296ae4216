"""The runner of the backend suite, tried on onnx's reference evaluator and on wrong answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from benchmarks import backend_cases, backend_suite, isolated
from benchmarks.backend_cases import Case

CASES = backend_cases.load_cases()


def chosen(*parts: str) -> list[Case]:
    return [case for case in CASES if any(part in case.name for part in parts)]


@dataclass
class Evaluated:
    """A plan and an engine at once: the model, run by onnx's reference evaluator."""

    model: onnx.ModelProto

    def save(self, path: Path) -> None:
        onnx.save(self.model, path)

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        evaluator = ReferenceEvaluator(self.model)
        return dict(zip(evaluator.output_names, evaluator.run(None, inputs), strict=True))


class Reference:
    """The two calls of the engine; it refuses negations unless the reference step is allowed."""

    def build(self, model: Any, *, target: str, level: int, reference: bool) -> Evaluated:
        assert (target, level) == ("cpu", 0)
        proto = onnx.load(model) if isinstance(model, Path) else model
        if not reference and any(node.op_type == "Neg" for node in proto.graph.node):
            raise ValueError("Neg is not here")
        return Evaluated(proto)

    def load(self, path: Path, *, compile: str) -> Evaluated:
        return Evaluated(onnx.load(path))


class Nearly(Reference):
    """Answers that are off by one."""

    def load(self, path: Path, *, compile: str) -> Any:
        right = Evaluated(onnx.load(path))
        return lambda inputs: {name: array + 1 for name, array in right(inputs).items()}


class Fatal(Reference):
    """An implementation that takes its process with it."""

    def load(self, path: Path, *, compile: str) -> Any:
        os._exit(7)


def test_the_suite_has_all_its_cases() -> None:
    kinds = {kind: sum(case.kind == kind for case in CASES) for kind in backend_cases.KINDS}
    assert len({case.name for case in CASES}) == len(CASES)
    assert kinds["real"] == 9
    assert kinds["node"] >= 1884
    assert kinds["pytorch-converted"] == 82
    assert kinds["pytorch-operator"] == 35
    assert kinds["simple"] == 23


def test_tensors_sequences_optionals_and_strings_pass_on_the_reference_evaluator() -> None:
    cases = chosen("test_softmax", "sequence_model1", "strnorm_model", "optional_get_element")
    cases += chosen("test_operator_conv", "test_MaxPool2d", "test_cast_FLOAT_to_FLOAT8E5M2")
    outcomes = backend_suite.run(cases, Reference(), processes=2)
    assert {case.kind for case in cases} >= {"node", "simple", "pytorch-operator"}
    assert [outcome for outcome in outcomes if outcome.with_reference] == []


def test_both_totals_are_counted_and_a_failure_keeps_its_reason() -> None:
    outcomes = backend_suite.run(chosen("test_neg", "test_abs"), Reference(), processes=2)
    result = backend_suite.summary(outcomes)
    assert result["passed"] == result["cases"] == 3
    assert result["passed_without_reference"] == 1
    failure = result["failures"]["test_neg"]
    assert failure["with_reference"] is None
    assert failure["without_reference"].endswith("Neg is not here")


def test_a_wrong_answer_fails() -> None:
    (outcome,) = backend_suite.run(chosen("test_abs"), Nearly(), processes=1, only_without=True)
    assert outcome.with_reference is not None
    assert "Not equal to tolerance" in outcome.with_reference


def test_a_crash_costs_one_case_and_is_named() -> None:
    outcomes = backend_suite.run(chosen("test_neg", "test_abs"), Fatal(), processes=2)
    assert ["exit code 7" in str(outcome.with_reference) for outcome in outcomes] == [True] * 3


def test_a_task_that_hangs_is_ended_and_the_others_finish() -> None:
    def perform(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    found = {
        task: (answer, reason)
        for task, answer, reason in isolated.run(
            perform, [60.0, 0.0, 0.01, 0.02], processes=2, limit_s=1.0
        )
    }
    assert found.pop(60.0) == (None, "no answer after 1 s")
    assert found == {seconds: (seconds, None) for seconds in (0.0, 0.01, 0.02)}


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (np.zeros(2, np.float32), np.zeros(3, np.float32)),
        (np.zeros(2, np.float32), np.zeros(2, np.float64)),
        (np.zeros(2, np.float32), np.ones(2, np.float32)),
        (np.zeros(2, np.float32), [np.zeros(2, np.float32)]),
        ([np.zeros(2, np.float32)], []),
        (np.zeros(2, np.float32), None),
        (None, np.zeros(2, np.float32)),
        (np.array(["a"], object), np.array(["b"], object)),
        (np.array([np.nan], np.float32), np.zeros(1, np.float32)),
    ],
)
def test_values_that_differ_in_kind_shape_dtype_or_content_are_told_apart(
    got: Any, wanted: Any
) -> None:
    with pytest.raises(AssertionError):
        backend_cases.same(got, wanted, rtol=1e-3, atol=1e-7)


def test_the_reason_of_a_failure_names_no_folder_of_this_machine() -> None:
    class Lost(Reference):
        def load(self, path: Path, *, compile: str) -> Any:
            raise FileNotFoundError(f"{path} is gone")

    found = backend_suite.attempt(Lost(), chosen("test_abs")[0], reference=True)
    assert found == "FileNotFoundError: case.engine is gone"


def test_the_setting_says_what_is_built_and_whether_it_runs() -> None:
    assert backend_suite.Setting().options(True) == {
        "target": "cpu",
        "level": 0,
        "reference": True,
    }
    setting = backend_suite.Setting("cuda", ("nvrtc",))
    assert setting.options(False)["tactics"] == ("nvrtc",)
    runs = {
        target: backend_suite.Setting(target).runs
        for target in ("cpu", "cuda", "cuda:1", "cuda:sm90")
    }
    assert runs == {"cpu": True, "cuda": True, "cuda:1": True, "cuda:sm90": False}


def test_cases_are_assembled_for_a_gpu_that_is_only_described(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    words = ["--target", "cuda:sm90", "--filter", "test_relu", "--output", str(path)]
    assert backend_suite.main(words) == 0
    found = json.loads(path.read_text())
    assert found["passed"] == found["cases"] > 0 and not found["run"]
    assert found["layers"].keys() == {"nvrtc.region"}
    assert found["cases_without_host_layers"] == found["cases"]


def test_a_process_in_which_a_case_failed_on_a_gpu_takes_no_more(tmp_path: Path) -> None:
    @dataclass
    class Faulty:
        """Answers once per process, and fails ever after."""

        process: int = 0

        def build(self, model: Any, **_: Any) -> Any:
            if self.process == os.getpid():
                raise ValueError("the GPU is lost")
            self.process = os.getpid()
            raise ValueError("this kernel faults")

    cases = chosen("test_abs", "test_neg", "test_relu")
    outcomes = backend_suite.run(
        cases, Faulty(), processes=1, only_without=True, setting=backend_suite.Setting("cuda")
    )
    assert len(outcomes) >= 3
    assert {str(outcome.without_reference).split(" (")[0] for outcome in outcomes} == {
        "ValueError: this kernel faults"
    }


@pytest.mark.gpu
def test_cases_run_on_a_gpu(tmp_path: Path) -> None:
    """In processes of its own: this one may have started CUDA already."""
    path = tmp_path / "result.json"
    words = ["--target", "cuda", "--filter", "test_softmax", "--output", str(path), "-j", "4"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.backend_suite", *words],
        cwd=Path(__file__).parent.parent.parent,
        check=True,
    )
    found = json.loads(path.read_text())
    assert found["failures"] == {} and found["run"]
    assert found["layers"].get("nvrtc.region", 0) > 0
