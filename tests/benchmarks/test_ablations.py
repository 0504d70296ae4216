"""Every idea can be switched off, and is on again afterwards."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.ablations import IDEAS, without_fusions, without_tactic
from engine.tactics import tactic


@pytest.fixture(autouse=True)
def _everything_found() -> None:
    """Tactics and fusions are found when they are first asked for."""
    tactic._discover()


def state() -> tuple[object, ...]:
    rules = importlib.import_module("engine.fusions.fusion")
    lowering = importlib.import_module("engine.lower.lowering")
    return set(tactic._TACTICS), rules.known, lowering.plan_slices


@pytest.mark.parametrize("name", IDEAS)
def test_an_idea_is_off_only_inside(name: str) -> None:
    idea, before = IDEAS[name], state()
    with idea.off():
        changed = state() != before
    assert state() == before
    assert changed or idea.level == 0 or idea.threads != 2


def test_what_is_not_there_cannot_be_switched_off() -> None:
    with pytest.raises(AssertionError), without_tactic("c.never_written"):
        pass
    with pytest.raises(AssertionError), without_fusions("layout", "never written"):
        pass
