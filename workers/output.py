"""Printing: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from storage.records import Json
from workers import settings
from workers.failures import UnreachableError
from workers.home import Home, present_home

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people."
)


def announced_home() -> Home:
    """The embedded farm's folder, after its mode was told on stderr."""
    url = settings.service_url()
    if url is not None:
        raise UnreachableError(
            f"ENGINEFARM_URL is {url}, but this version has no farm service; "
            "unset it to use the embedded farm"
        )
    home = present_home()
    print(f"embedded farm in {home.folder}", file=sys.stderr)
    return home


def print_json(fields: object) -> None:
    """One JSON value on one line."""
    print(json.dumps(fields))


def print_fields(title: str, fields: Json) -> None:
    """A title and its fields, one to a line."""
    print(title)
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        if value is not None:
            print(f"  {name:<{width}}  {value}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def size_text(nbytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def duration_text(seconds: float) -> str:
    """A duration for people."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.3f} s"


def time_text(at: float) -> str:
    """A time as ISO 8601 in UTC, to the second."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain_warnings() -> None:
    """Show each warning once, as one sentence on stderr, without the line of code that gave it."""
    import warnings

    told: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        text = str(message)
        if text not in told:
            told.add(text)
            print(f"warning: {text}", file=sys.stderr)

    warnings.showwarning = show
