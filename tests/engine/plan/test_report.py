from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.plan.plan import Plan
from engine.plan.program import Layer, Program
from engine.plan.report import (
    layer_steps,
    lockfile,
    plan_text,
    program_text,
    read_lockfile,
    summary,
)


def test_the_text_names_interface_layers_and_steps(sample: Program) -> None:
    text = program_text(sample)
    for line in (
        "n: 1 to 64, usually 2, 8 (axis 0 of x)",
        "found: 0 to 4*n, usually unknown (from data)",
        "%0 x: float32[n, 4]",
        "0 scale  Mul  c.scaling(width=4)  1.2 us  covers a, b",
        "0: scaling_for_tests.0(%0, %1, %2) sizes 4*n",
        "choose: 8 divides n; otherwise",
        "0: scaling_for_tests.1(%0, %1, %2+4*n) sizes 4*n",
        "1: %7 = Loop(-, -, %4) on the host",
        "1: %6 = SequenceConstruct(%4, %7) on the host",
    ):
        assert line in text


def test_refusals_stand_in_the_text_of_a_plan(sample: Program) -> None:
    decisions = [
        {"rule": "fold", "nodes": ["a", "b"], "made": False, "reason": "a is shared"},
        {"rule": "merge", "nodes": ["c"], "made": True, "reason": ""},
    ]
    plan = Plan(sample, {"w": np.ones(4, np.float32)}, {"isa": "avx2"}, decisions=decisions)
    text = plan_text(plan)
    assert "fold at a, b: a is shared" in text
    assert "merge" not in text
    assert "target    isa avx2" in text


def test_the_summary_counts_steps_of_all_cases(sample: Program) -> None:
    found = summary(Plan(sample, {}))
    assert found["steps"] == {"kernel": 4, "host": 3, "choice": 1}
    assert found["weight_nbytes"] == 16
    assert {index: len(steps) for index, steps in layer_steps(sample).items()} == {0: 4, 1: 3}


def test_a_lockfile_is_read_back_and_holds_no_times(sample: Program) -> None:
    written = lockfile(sample, {"isa": "avx2"})
    assert read_lockfile(written) == {"scale": ("c.scaling", {"width": 4}), "rest": ("", {})}
    layers = tuple(replace(layer, time_ns=7) for layer in sample.layers)
    assert lockfile(replace(sample, layers=layers), {"isa": "avx2"}) == written
    assert read_lockfile(lockfile(replace(sample, layers=()))) == {}


@pytest.mark.parametrize("content", ["{}", '{"format": 1}', '{"format": 1, "layers": [{}]}', "x"])
def test_what_is_no_lockfile_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r"lockfile|Expecting"):
        read_lockfile(content)


def test_a_layer_listed_twice_is_refused(sample: Program) -> None:
    twice = replace(sample, layers=(Layer("a", "k"), Layer("a", "k")))
    with pytest.raises(ValueError, match="twice"):
        read_lockfile(lockfile(twice))
