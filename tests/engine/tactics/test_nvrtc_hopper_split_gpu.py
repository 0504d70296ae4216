"""Split products and convolutions on a GPU: right at all edges, timed beside others.

One process works on all cases; when a candidate says nothing for a while it is ended, and the next
one goes on after that candidate. Set ENGINEFARM_TEST_CASES to names of cases, separated by commas,
to run those alone.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.cuda.device import probe
from tests.hopper_split_timing import EDGES, TIMED

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[3]
#: Seconds until the first line and between candidates (data, compiling), and within one.
BEGIN, NEXT = 120.0, 30.0
CASES = [name for name in os.environ.get("ENGINEFARM_TEST_CASES", "").split(",") if name]


def _read(process: subprocess.Popen[str], told: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        told.put(text)
    told.put(None)


def _process(first: int, found: list[dict[str, Any]]) -> int | None:
    """Run candidates from a number on; the number of the one that failed, or None at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hopper_split_timing", str(first), *CASES],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, told), daemon=True).start()
    begun: dict[str, Any] | None = None
    wrong = ""
    while True:
        try:
            text = told.get(timeout=NEXT if begun else BEGIN)
        except queue.Empty:
            process.kill()
            wrong = "hung"
            break
        if text is None:
            break
        line = json.loads(text)
        if "done" in line:
            process.wait()
            return None
        begun = None if "microseconds" in line else line
        if begun is None:
            found.append(line)
    _, errors = process.communicate()
    told_last = (errors.strip().splitlines() or ["it ended without a word"])[-1]
    assert begun is not None, f"nothing ran from {first} on: {wrong or errors[-1500:]}"
    found.append({**begun, "failed": wrong or told_last})
    return int(begun["number"])


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """What every candidate of every case came to; "failed" tells what went wrong."""
    if probe(0).capability != (9, 0):
        pytest.skip("a GPU of compute capability 9.0 is wanted")
    found: list[dict[str, Any]] = []
    first: int | None = 0
    while first is not None and sum("failed" in line for line in found) < 12:
        first = _process(first, found)
    return found


@pytest.mark.parametrize("case", [*EDGES, *TIMED])
def test_every_candidate_is_right(case: str, lines: list[dict[str, Any]]) -> None:
    """Prints the case's table; no candidate of ours may fail or be wrong."""
    if CASES and case not in CASES:
        pytest.skip("not among ENGINEFARM_TEST_CASES")
    own = [line for line in lines if line["case"] == case]
    wrong = []
    for line in own:
        told = line.get("failed") or f"{line['microseconds']:8.2f} us, error {line['error']:.1e}"
        print(f"{case:16} {line['tactic']:24} {told}  {json.dumps(line['choice'])[:150]}")
        ours = line["tactic"] == "nvrtc.hopper_split"
        if ours and ("failed" in line or not line["finite"] or line["error"] > 2e-3):
            wrong.append(line)
    assert not wrong, wrong
    assert any(line["tactic"] == "nvrtc.hopper_split" for line in own), "no candidate ran"
