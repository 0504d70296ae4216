"""`enginefarm ls`: builds."""

from __future__ import annotations

from dataclasses import asdict

import click

from scheduler.states import State
from workers.farm import open_farm
from workers.output import announced_home, json_option, print_json, print_table, time_text


@click.command()
@click.option(
    "--state",
    type=click.Choice([state.value for state in State]),
    help="Only builds in this state.",
)
@click.option("--limit", type=int, default=50, show_default=True, help="At most so many.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@json_option
def command(state: str | None, limit: int, quiet: bool, as_json: bool) -> None:
    """List builds, the newest first."""
    farm = open_farm(announced_home())
    with farm.database.reading() as rows:
        builds = rows.builds.newest(state=state, limit=limit)
    if as_json:
        for build in builds:
            print_json(asdict(build))
    elif quiet:
        for build in builds:
            print(build.id)
    else:
        shown = [
            (
                build.id,
                build.state,
                build.model_name,
                build.spec["options"]["target"],
                build.key[:12],
                time_text(build.created_at),
            )
            for build in builds
        ]
        print_table(("build", "state", "model", "target", "key", "submitted"), shown)
