"""`enginefarm timings`: the kernel timings that this farm has measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from scheduler.clock import SystemClock
from scheduler.timings import timing_of
from storage.digest import canonical_json
from storage.disk import disk_errors, write_whole
from storage.records import Timing
from workers.farm import open_farm
from workers.output import announced_home, json_option, print_json, print_table


@click.group()
def command() -> None:
    """List, export and import kernel timings."""


@command.command("ls")
@click.option("--signature", default="", help="Only signatures that contain this text.")
@click.option("--limit", type=int, default=200, show_default=True, help="At most so many.")
@json_option
def list_timings(signature: str, limit: int, as_json: bool) -> None:
    """List timings by signature, the fastest tactic of each first."""
    farm = open_farm(announced_home())
    with farm.database.reading() as rows:
        timings = rows.timings.all(containing=signature, limit=limit)
    if as_json:
        for timing in timings:
            print_json(asdict(timing))
        return
    shown = [
        (
            item.signature[:12],
            item.record.get("layer", ""),
            item.tactic,
            _choice_text(item.record.get("choice")),
            _time_text(item),
        )
        for item in timings
    ]
    print_table(("signature", "layer", "tactic", "choice", "time"), shown)


@command.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def export_timings(file: Path, as_json: bool) -> None:
    """Write every timing to FILE, one JSON object to a line."""
    farm = open_farm(announced_home())
    with farm.database.reading() as rows:
        timings = rows.timings.all()
    lines = (
        canonical_json(
            {
                "target_digest": timing.target_digest,
                "toolchain_digest": timing.toolchain_digest,
                "record": timing.record,
            }
        )
        + b"\n"
        for timing in timings
    )
    with disk_errors(str(file)):
        write_whole(file, lines)
    _say(as_json, "exported", len(timings), file)


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def import_timings(file: Path, as_json: bool) -> None:
    """Add the timings of FILE; of two of the same thing the better-sampled one stays."""
    farm = open_farm(announced_home())
    timings = [_read(file, number, line) for number, line in enumerate(file.open("rb"), start=1)]
    with farm.database.transaction() as rows:
        kept = rows.timings.keep(timings)
    _say(as_json, "imported", kept, file)


def _read(file: Path, number: int, line: bytes) -> Timing:
    """The timing on one line of a file."""
    try:
        fields = json.loads(line)
        return timing_of(
            fields["record"],
            target_digest=str(fields["target_digest"]),
            toolchain_digest=str(fields["toolchain_digest"]),
            at=SystemClock().now(),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise click.ClickException(f"{file} line {number} is no timing: {error}") from error


def _choice_text(choice: object) -> str:
    """The parameters of a tactic on one line."""
    if isinstance(choice, dict):
        return " ".join(f"{name}={value}" for name, value in sorted(choice.items()))
    return str(choice or "")


def _time_text(timing: Timing) -> str:
    """A time in microseconds, or that there is none."""
    return "failed" if timing.time_ns is None else f"{timing.time_ns / 1000:.2f} us"


def _say(as_json: bool, done: str, count: int, file: Path) -> None:
    """Tell how many timings went where."""
    if as_json:
        print_json({done: count, "file": str(file)})
    else:
        print(f"{done} {count} timings ({file})")
