"""`enginefarm logs`: the numbered events of a build."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from scheduler.states import is_terminal
from storage.records import Event
from workers.farm import open_farm
from workers.output import announced_home, json_option, print_json, time_text

POLL_S = 0.5


@click.command()
@click.argument("build_id", metavar="BUILD|KEY")
@click.option("-f", "--follow", is_flag=True, help="Go on until the build has ended.")
@click.option("--after", type=int, default=0, help="Only events with a greater number.")
@json_option
def command(build_id: str, follow: bool, after: int, as_json: bool) -> None:
    """Show what has happened to a build, in order."""
    farm = open_farm(announced_home())
    with farm.database.reading() as rows:
        build = rows.builds.find(build_id)
    while True:
        ended = is_terminal(farm.build(build.id).state)
        for event in farm.events(build.id, after=after):
            after = event.number
            _print(event, as_json=as_json)
        if ended or not follow:
            return
        time.sleep(POLL_S)


def _print(event: Event, *, as_json: bool) -> None:
    """One event on one line."""
    if as_json:
        print_json(asdict(event))
        return
    data = " ".join(f"{name}={value}" for name, value in event.data.items() if value is not None)
    print(f"{event.number:>4}  {time_text(event.at)}  {event.kind}  {data}".rstrip(), flush=True)
