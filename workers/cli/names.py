"""`enginefarm names`: movable pointers such as resnet50:prod."""

from __future__ import annotations

from dataclasses import asdict

import click

from scheduler.clock import SystemClock
from scheduler.names import parse_name
from storage.errors import NotFoundError
from workers.farm import Farm, open_farm
from workers.output import announced_home, json_option, print_json, print_table, time_text


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the names of this farm, or change one."""
    farm = open_farm(announced_home())
    context.obj = farm
    if context.invoked_subcommand is not None:
        return
    with farm.database.reading() as rows:
        names = rows.engines.names()
    if as_json:
        for name in names:
            print_json(asdict(name))
    else:
        shown = [
            (f"{name.name}:{name.tag}", name.key[:12], name.generation, time_text(name.moved_at))
            for name in names
        ]
        print_table(("name", "key", "gen", "moved"), shown)


@command.command("set")
@click.argument("name", metavar="NAME[:TAG]")
@click.argument("what", metavar="KEY|NAME[:TAG]")
@json_option
@click.pass_obj
def set_name(farm: Farm, name: str, what: str, as_json: bool) -> None:
    """Point NAME to the engine of a key or of another name."""
    pointer = parse_name(name)
    at = SystemClock().now()
    with farm.database.transaction() as rows:
        try:
            engine = rows.engines.find(what)
        except NotFoundError:
            other = parse_name(what)
            named = rows.engines.named(other.name, other.tag)
            engine = rows.engines.get(named.key, named.generation)
        moved = rows.engines.move_name(
            pointer.name, pointer.tag, key=engine.key, generation=engine.generation, at=at
        )
    if as_json:
        print_json(asdict(moved))
    else:
        print(f"{pointer} is {engine.key[:12]} ({engine.model_name})")


@command.command("rm")
@click.argument("name", metavar="NAME[:TAG]")
@json_option
@click.pass_obj
def remove_name(farm: Farm, name: str, as_json: bool) -> None:
    """Forget NAME; its engine stays."""
    pointer = parse_name(name)
    with farm.database.transaction() as rows:
        rows.engines.remove_name(pointer.name, pointer.tag)
    if as_json:
        print_json({"removed": str(pointer)})
    else:
        print(f"{pointer} is forgotten")
