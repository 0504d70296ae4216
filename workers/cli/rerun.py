"""`enginefarm rerun`: build once more what was built, failed or was cancelled."""

from __future__ import annotations

from pathlib import Path

import click

from scheduler.errors import StateError
from scheduler.states import is_terminal
from workers.building import Wish, make_engine
from workers.cli.build import show_made
from workers.compiler import load_compiler
from workers.failures import InfrastructureError
from workers.farm import open_farm
from workers.output import announced_home, json_option


@click.command()
@click.argument("build_id", metavar="BUILD|KEY")
@json_option
def command(build_id: str, as_json: bool) -> None:
    """Build again with the same model and options, whatever came of it before."""
    home = announced_home()
    farm = open_farm(home)
    with farm.database.reading() as rows:
        build = rows.builds.find(build_id)
    if not is_terminal(build.state):
        raise StateError(f"build {build.id} is {build.state}; `enginefarm build` waits for it")
    if build.model_path is None:
        raise InfrastructureError(f"build {build.id} names no model file on this machine")
    wish = Wish(model=Path(build.model_path), options=build.spec["options"], force=True)
    made = make_engine(home, wish, load_compiler())
    show_made(home, made, output=None, name=None, as_json=as_json)
