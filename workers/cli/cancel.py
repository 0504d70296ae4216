"""`enginefarm cancel`: end builds that are queued or running."""

from __future__ import annotations

from dataclasses import asdict

import click

from workers.farm import open_farm
from workers.output import announced_home, json_option, print_json
from workers.waiting import take_back_from_the_dead


@click.command()
@click.argument("build_ids", metavar="BUILD...", nargs=-1, required=True)
@json_option
def command(build_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel builds, or single submissions by their ids."""
    farm = open_farm(announced_home())
    for words in build_ids:
        build = farm.submissions.cancel(words)
        take_back_from_the_dead(farm, build)
        build = farm.build(build.id)
        if as_json:
            print_json(asdict(build))
        elif build.cancel_requested and build.state != "cancelled":
            print(f"{build.id} will stop as soon as its worker sees it")
        elif build.state == "cancelled":
            print(f"{build.id} is cancelled")
        else:
            print(f"{build.id} goes on for others who wait for it")
