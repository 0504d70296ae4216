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
            self._bars.update(
                self._task, total=float(data["total"]), completed=float(data.get("done", 0))
            )


@contextmanager
def progress_on_terminal() -> Iterator[Progress]:
    """A progress bar on stderr while the block runs, when stderr is a terminal."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Progress(bars, bars.add_task("starting", total=None))
