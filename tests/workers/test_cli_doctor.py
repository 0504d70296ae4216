"""`enginefarm doctor`: what it finds on a healthy machine, and on broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.real_engine import RealLine
from workers import health


@pytest.fixture
def line(tmp_path: Path) -> RealLine:
    return RealLine(tmp_path)


def test_a_healthy_machine_passes_every_check(line: RealLine) -> None:
    found = line.outcome("doctor")
    assert found["healthy"]
    assert {item["check"] for item in found["findings"]} == set(health.CHECKS)
    assert all(item["state"] in ("fine", "limited") and item["found"] for item in found["findings"])
    assert not line.home.folder.exists()  # looking changes nothing


def test_a_database_that_is_none_is_essential(line: RealLine) -> None:
    line.home.folder.mkdir()
    line.home.database.write_bytes(b"this is no database" * 100)
    assert "database" in line.refused("doctor", code=8)
    found = line.outcome("doctor", code=8)
    broken = [item["check"] for item in found["findings"] if item["state"] == "broken"]
    assert broken == ["database"]


def test_a_wrong_engine_fails_the_self_test(
    line: RealLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.debug import tiny

    made = tiny.tiny_graph()

    def doubled() -> object:
        graph, plan = made
        weight = next(value for value in graph.constants() if value.constant is not None)
        assert weight.constant is not None
        weight.constant = weight.constant * 2
        return graph, plan

    monkeypatch.setattr(tiny, "tiny_graph", doubled)
    assert "self-test" in line.refused("doctor", code=8)


def test_a_check_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> health.Finding:
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr(health, "CHECKS", {"cache": fails})
    assert health.all_findings() == [health.Finding("cache", "broken", "cache: permission denied")]


def test_an_absent_package_is_named_with_the_line_that_installs_it() -> None:
    check = health._package("no-such-package-here", needed=False, why="pip install it")
    assert check("p") == health.Finding("p", "limited", "not installed; pip install it")
