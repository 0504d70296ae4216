"""Showing how a build gets on: a bar on a terminal, nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage.records import Json

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_TITLES = {
    "prepare": "importing and fusing",
    "tune": "measuring",
    "assemble": "choosing and planning",
}


LONGEST_NAME = 32
#: Layers differ in how long they take: the time left is told from those of the last minutes.
SPEED_SECONDS = 180.0


class Progress:
    """Takes a build's events; shows the step and how far it is."""

    def __init__(self, bars: Bars | None = None, task: TaskID | None = None) -> None:
        self._bars = bars
        self._task = task

    def show(self, kind: str, data: Json) -> None:
        """Show one event, when there is a terminal to show it on."""
        if self._bars is None or self._task is None:
            return
        if kind == "job_started":
            title = _TITLES.get(str(data.get("job")), "building")
            self._bars.update(self._task, description=title, total=None, completed=0)
        elif kind == "progress" and data.get("checking"):
            self._bars.update(self._task, description="checking in a fresh process", total=None)
        elif kind == "progress" and "total" in data:
            title = f"{_TITLES['tune']} {_shortened(str(data.get('layer', '')))}".rstrip()
            done, total = float(data.get("done", 0)), float(data["total"])
            self._bars.update(self._task, description=title, total=total, completed=done)


def _shortened(name: str) -> str:
    """A layer's name that leaves room for the bar; the end of a name says the most."""
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"


@contextmanager
def progress_on_terminal() -> Iterator[Progress]:
    """A progress bar on stderr while the block runs, when stderr is a terminal."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    period = SPEED_SECONDS
    with Bars(*columns, console=console, transient=True, speed_estimate_period=period) as bars:
        yield Progress(bars, bars.add_task("starting", total=None))
