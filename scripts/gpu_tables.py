"""The README's table of networks on a GPU, from benchmarks/results/gpu/gpu.jsonl.

A table is made only from rows of one commit: the one of the latest row. A row that failed, or whose
outputs were wrong, is shown as such.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["gpu_table", "read_rows"]

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The latest row of every point of the latest commit; nothing without a file."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not rows:
        return []
    commit = rows[-1]["commit"]
    latest = {(row["model"], row["batch"]): row for row in rows if row["commit"] == commit}
    return [latest[key] for key in sorted(latest)]


def gpu_table(rows: Sequence[Row]) -> str:
    """One line per model and batch, the peers beside us, and the geometric mean of the ratios."""
    first = rows[0]
    peers = sorted({name for row in rows for name in _peers(row)})
    lines = [
        f"### Networks on an {first['gpu']}",
        "",
        f"Float16, inputs and outputs on the device, PyTorch {first['torch']}, commit "
        f"{first['commit']}. All take turns in the same process; times are medians in "
        "milliseconds. The error is the distance from float32 over the spread between 8 inputs, "
        "beside that of PyTorch in float16.",
        "",
        f"| network | batch | engine | {' | '.join(peers)} "
        "| best peer / engine | error | launches |",
        f"|---|--:|--:|{'--:|' * len(peers)}--:|--:|--:|",
    ]
    lines += [_line(row, peers) for row in rows]
    sound = [row for row in rows if "failed" not in row and row["right"]]
    ratios = [row["ratio"] for row in sound if "ratio" in row]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines += [
            "",
            f"Geometric mean over {len(ratios)} points: {mean:.2f} times the best peer's speed; "
            f"lowest {min(ratios):.2f}.",
        ]
    return "\n".join(lines)


def _peers(row: Row) -> list[str]:
    ends = "_ms"
    own = ("ours_ms", "sum_of_layers_ms", "samples_ms")
    return [key.removesuffix(ends) for key in row if key.endswith(ends) and key not in own]


def _line(row: Row, peers: Sequence[str]) -> str:
    head = f"| {row['model']} | {row['batch']} "
    if "failed" in row:
        return head + f"| failed |{' |' * len(peers)} | | |"
    times = [row["ours_ms"], *(row.get(f"{name}_ms") for name in peers)]
    shown = " | ".join("" if time is None else f"{time:.3f}" for time in times)
    errors = f"{row['error']:.1e} / {row['eager_error']:.1e}"
    verdict = "" if row["right"] else " **wrong**"
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
    return head + f"| {shown} | {ratio} | {errors}{verdict} | {row['launches']} |"
