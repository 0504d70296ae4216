"""The table of networks on a GPU: rows of one commit, failures and wrong results shown as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.gpu_tables import gpu_table, read_rows


def row(model: str, batch: int, **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "batch": batch,
        "commit": "b",
        "gpu": "NVIDIA H200",
        "torch": "2.11.0",
        "ours_ms": 0.5,
        "torch graph_ms": 1.0,
        "sum_of_layers_ms": 0.6,
        "ratio": 2.0,
        "error": 1e-3,
        "eager_error": 2e-3,
        "right": True,
        "launches": 56,
        **fields,
    }


def test_a_table_is_made_from_the_latest_rows_of_the_latest_commit(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    rows = [
        row("vit", 1, commit="a", ours_ms=9.0),
        row("resnet50", 1, ours_ms=7.0, ratio=1.0),
        row("resnet50", 8, right=False),
        row("gpt2", 1, failed="KernelError: no"),
        row("resnet50", 1),
        row("resnet50", 32, onnxruntime_ms=4.0, ratio=8.0),
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    table = gpu_table(read_rows(path))
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| network | batch | engine | onnxruntime | torch graph |")
    assert lines[1].startswith("| gpt2 | 1 | failed |")
    assert lines[2].startswith("| resnet50 | 1 | 0.500 |  | 1.000 | 2.00 |")
    assert "**wrong**" in lines[3]
    assert "vit" not in table and "sum_of_layers" not in table
    assert "over 2 points: 4.00 times" in table and "lowest 2.00" in table


def test_without_rows_there_is_no_table(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "gpu.jsonl") == []
