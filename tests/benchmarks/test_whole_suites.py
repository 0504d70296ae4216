"""The whole suites with the floors that the project holds: onnx's own cases, twelve networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import backend_suite, models, networks

pytestmark = pytest.mark.slow

#: Cases of 2,033 that must pass with the reference step, and without it.
WITH_REFERENCE, WITHOUT_REFERENCE = 2000, 1900
LARGEST_ARENA_RATIO = 1.05
#: A network may take this many times onnxruntime's time, even beside other tests.
SLOWEST_RATIO = 0.2


@pytest.mark.timeout(1200)
def test_the_backend_suite_of_onnx_passes_but_for_known_cases(tmp_path: Path) -> None:
    output = tmp_path / "suite.json"
    backend_suite.main(["--output", str(output)])
    found = json.loads(output.read_text())
    assert found["cases"] == 2033
    assert found["passed"] >= WITH_REFERENCE, sorted(found["failures"])
    assert found["passed_without_reference"] >= WITHOUT_REFERENCE


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", models.NAMES)
def test_a_network_agrees_with_onnxruntime_without_a_reference_step(name: str) -> None:
    row = networks.measure(name, level=0, rounds=1, seconds=0.3)
    assert networks.is_good(row), row
    assert row["arena_ratio"] <= LARGEST_ARENA_RATIO
    assert row["ratio"] >= SLOWEST_RATIO
