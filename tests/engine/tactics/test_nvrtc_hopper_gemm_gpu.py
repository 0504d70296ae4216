"""Hopper's products and convolutions on a GPU: right at all edges, timed beside others.

Every case runs in a process of its own, which is ended when a candidate says nothing for a while;
the next process goes on after it.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.cuda.device import probe
from tests.engine.tactics.test_nvrtc_hopper_gemm import EPILOGUES
from tests.hopper_timing import EDGES, TIMED, WINDOWS

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[3]
#: Seconds until the first line (imports, data, what is expected), and between lines.
BEGIN, NEXT = 60.0, 20.0


def lines(case: str) -> list[dict[str, Any]]:
    """What each candidate of a case came to; "hung" or "failed" tells what went wrong."""
    found: list[dict[str, Any]] = []
    first = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hopper_timing", case, str(first)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        told: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, told), daemon=True).start()
        last: dict[str, Any] | None = None
        wait, wrong = BEGIN, ""
        while True:
            try:
                text = told.get(timeout=wait)
            except queue.Empty:
                process.kill()
                wrong = "hung"
                break
            if text is None:
                break
            line = json.loads(text)
            wait = NEXT
            if "microseconds" in line:
                found.append(line)
                last = None
            else:
                last = line
        _, errors = process.communicate()
        if not wrong and process.returncode == 0:
            return found
        assert last is not None, f"{case}: nothing ran: {wrong} {errors[-1500:]}"
        found.append({**last, "failed": wrong or errors.strip().splitlines()[-1]})
        first = last["number"] + 1


def _read(process: subprocess.Popen[str], told: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        told.put(text)
    told.put(None)


@pytest.fixture(autouse=True)
def _hopper() -> None:
    if probe(0).capability != (9, 0):
        pytest.skip("a GPU of compute capability 9.0 is wanted")


def check(case: str) -> list[dict[str, Any]]:
    """Run a case, print its table; no candidate of ours may fail or be wrong."""
    found = lines(case)
    wrong = []
    for line in found:
        told = line.get("failed") or f"{line['microseconds']:8.2f} us, error {line['error']:.1e}"
        print(f"{case:16} {line['tactic']:18} {told}  {json.dumps(line['choice'])[:160]}")
        ours = line["tactic"].startswith("nvrtc.hopper")
        if ours and ("failed" in line or not line["finite"] or line["error"] > 2e-3):
            wrong.append(line)
    assert not wrong, wrong
    return found


@pytest.mark.parametrize("name", EPILOGUES)
def test_every_way_of_cutting_is_right(name: str) -> None:
    check(f"small {name}")


@pytest.mark.parametrize("case", EDGES)
def test_convolutions_are_right_at_all_edges(case: str) -> None:
    assert check(case)


@pytest.mark.parametrize("case", [*TIMED, *WINDOWS])
def test_real_layers_are_right_and_timed(case: str) -> None:
    assert any(line["tactic"].startswith("nvrtc.hopper") for line in check(case))
