"""Writes the numbers in README.md and docs/performance.md from benchmarks/results/.

    python -m scripts.readme_tables           write the marked sections
    python -m scripts.readme_tables --check   leave with 1 when one is out of date

Only what was measured is shown: without a result there is no table, and without any a section is
empty.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.surroundings import BUSY
from scripts.gpu_tables import gpu_table, read_rows

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- Written by python -m scripts.readme_tables from benchmarks/results; do not edit. -->"
END = "<!-- End of what scripts.readme_tables writes. -->"


def where(entry: Mapping[str, Any]) -> str:
    """The machine and the commit of a run, and what disturbed it."""
    busy = f" while other work was under way (load {entry['load']})"
    return f"{entry['machine']}, commit {entry['commit']}{busy if entry['load'] > BUSY else ''}."


def networks_table(entry: Mapping[str, Any]) -> str:
    """The latest run of `benchmarks.networks`."""
    peer = entry["versions"]["onnxruntime"]
    lines = [
        "### Twelve networks beside onnxruntime",
        "",
        f"One input, {entry['threads']} threads, {where(entry)} "
        f"Both runtimes take turns in the same run; times are medians of {entry['rounds']} rounds. "
        "The error is the largest between 8 inputs, in units of the outputs' spread.",
        "",
        f"| network | engine | onnxruntime {peer} | speed | error | arena over its lower bound |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [_network_row(row) for row in entry["rows"]]
    mean = entry["geometric_mean"]
    lines += ["", f"Geometric mean of the speeds: {mean:.2f} times onnxruntime's."]
    return "\n".join(lines)


def _network_row(row: Mapping[str, Any]) -> str:
    return (
        f"| {row['model']} | {1e3 * row['engine_seconds']:.2f} ms "
        f"| {1e3 * row['onnxruntime_seconds']:.2f} ms | {row['ratio']:.2f} "
        f"| {row['error']:.1e} | {row['arena_ratio']:.3f} |"
    )


def start_up_table(entry: Mapping[str, Any]) -> str:
    """The latest run of `benchmarks.start_up`."""
    lines = [
        "### Starting and building",
        "",
        where(entry),
        "",
        "| | measured | at most |",
        "|---|--:|--:|",
    ]
    for item in entry["measured"]:
        unit = f" {item['unit']}" if item["unit"] else ""
        lines.append(f"| {item['name']} | {item['value']:.3g}{unit} | {item['most']:g}{unit} |")
    return "\n".join(lines)


def suite_table(result: Mapping[str, Any]) -> str:
    """The result of `benchmarks.backend_suite`."""
    lines = [
        f"### The backend suite of onnx {result['onnx']}",
        "",
        "| kind | cases | pass | pass without the reference step |",
        "|---|--:|--:|--:|",
    ]
    whole = {key: result[key] for key in ("cases", "passed", "passed_without_reference")}
    for kind, row in [*result["kinds"].items(), ("all", whole)]:
        lines.append(
            f"| {kind} | {row['cases']} | {row['passed']} | {row['passed_without_reference']} |"
        )
    lines += ["", "[docs/operators.md](docs/operators.md) gives the reason for each failing case."]
    return "\n".join(lines)


def ideas_table(entry: Mapping[str, Any]) -> str:
    """The latest run of `benchmarks.ablations`."""
    lines = [
        f"{entry['threads']} threads, {where(entry)} Medians of {entry['rounds']} rounds in turns.",
        "",
        "| | network | with | without | gain |",
        "|---|---|--:|--:|--:|",
    ]
    for row in entry["rows"]:
        lines.append(
            f"| {row['idea']} | {row['model']} | {1e3 * row['seconds']:.1f} ms "
            f"| {1e3 * row['without_seconds']:.1f} ms | {row['gain']:.2f} |"
        )
    return "\n".join(lines)


def latest(folder: Path, name: str) -> Any:
    """The last entry of a result file that lists its runs; None without any."""
    path = folder / f"{name}.json"
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return entries[-1] if entries else None


def tables(folder: Path) -> str:
    """The README's tables for which a folder holds results; empty without any."""
    rows = read_rows(folder / "gpu" / "gpu.jsonl")
    found = [gpu_table(rows)] if rows else []
    for name, table in (("networks", networks_table), ("start_up", start_up_table)):
        entry = latest(folder, name)
        if entry is not None:
            found.append(table(entry))
    suite = folder / "backend_suite.json"
    if suite.exists():
        found.append(suite_table(json.loads(suite.read_text(encoding="utf-8"))))
    return "\n\n".join(["## Numbers", *found]) if found else ""


def sections(folder: Path) -> dict[Path, str]:
    """What belongs between the marks of each page."""
    ideas = latest(folder, "ablations")
    return {README: tables(folder), PERFORMANCE: "" if ideas is None else ideas_table(ideas)}


def filled(page: str, text: str) -> str:
    """A page with the marked section replaced; ValueError when a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page must hold the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{text}\n\n{END}{after}" if text else f"{before}{BEGIN}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.readme_tables")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args(arguments)
    outdated = []
    for path, text in sections(RESULTS).items():
        present = path.read_text(encoding="utf-8")
        wanted = filled(present, text)
        if present != wanted:
            outdated.append(path.name)
            if not options.check:
                path.write_text(wanted, encoding="utf-8")
    if not options.check or not outdated:
        return 0
    names = " and ".join(outdated)
    print(f"{names}: out of date, run python -m scripts.readme_tables", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
