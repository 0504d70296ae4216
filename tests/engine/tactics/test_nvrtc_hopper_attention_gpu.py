"""Hopper's attention on a GPU: right in all its forms, timed beside Triton's.

Cases run in a process that is ended when it says nothing for a while; the next one goes on with
the case after it.
"""

from __future__ import annotations

import functools
import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.cuda.device import probe

pytest.importorskip("triton")

from tests.hopper_attention_timing import EDGES, TIMED

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[3]
#: Seconds without a line after which a process is ended: expectations of large batches take some.
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _hopper() -> None:
    if probe(0).capability != (9, 0):
        pytest.skip("a GPU of compute capability 9.0 is wanted")


@functools.cache
def results() -> dict[str, list[dict[str, Any]]]:
    """The last word on every candidate, by case."""
    left = [*EDGES, *TIMED]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in left}
    while left:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hopper_attention_timing", *left],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        told: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, told), daemon=True).start()
        last, begun = left[0], None
        while True:
            try:
                text = told.get(timeout=PATIENCE)
            except queue.Empty:
                process.kill()
                found[last].append({**(begun or {}), "failed": "hung"})
                break
            if text is None:
                break
            line = json.loads(text)
            last, begun = line["case"], line
            if len(line) > 3:
                found[last].append(line)
                begun = None
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        if not (found[last] and found[last][-1].get("failed") == "hung"):
            found[last].append({"case": last, "failed": errors[-1500:]})
        left = left[left.index(last) + 1 :]
    return found


def _read(process: subprocess.Popen[str], told: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        told.put(text)
    told.put(None)


@pytest.mark.parametrize("case", [*EDGES, *TIMED])
def test_attention(case: str) -> None:
    """No candidate of ours fails or is wrong; the table is printed."""
    lines = results()[case]
    wrong = []
    for line in sorted(lines, key=lambda item: item.get("microseconds", 0.0)):
        said = line.get("failed") or f"{line['microseconds']:8.2f} us, error {line['error']:.1e}"
        tactic = line.get("tactic", "")
        print(f"{case:12} {tactic:24} {said}  {json.dumps(line.get('choice'))}")
        limit = 2e-2 if case == "bfloat16" else 4e-3
        if tactic != "triton.attention" and ("failed" in line or not line["error"] < limit):
            wrong.append(line)
    assert lines and not wrong, wrong
