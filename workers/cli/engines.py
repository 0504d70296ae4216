"""`enginefarm engines`: what this farm has built."""

from __future__ import annotations

from dataclasses import asdict

import click

from storage.records import Engine, Name
from workers.farm import open_farm
from workers.home import is_whole
from workers.output import (
    announced_home,
    json_option,
    print_json,
    print_table,
    size_text,
    time_text,
)


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Print keys only.")
@json_option
def command(quiet: bool, as_json: bool) -> None:
    """List the engines of this farm, the newest first."""
    home = announced_home()
    farm = open_farm(home)
    with farm.database.reading() as rows:
        engines = rows.engines.newest()
        names = rows.engines.names()
    if as_json:
        for engine in engines:
            whole = is_whole(home, engine)
            print_json({**asdict(engine), "names": _names_of(engine, names), "whole": whole})
    elif quiet:
        for engine in engines:
            print(engine.key)
    else:
        rows_shown = [
            (
                engine.key[:12],
                engine.generation,
                engine.model_name,
                engine.options["target"],
                engine.options["precision"],
                size_text(engine.nbytes) if is_whole(home, engine) else "damaged",
                time_text(engine.created_at),
                " ".join(_names_of(engine, names)),
            )
            for engine in engines
        ]
        header = ("key", "gen", "model", "target", "precision", "size", "built", "names")
        print_table(header, rows_shown)


def _names_of(engine: Engine, names: list[Name]) -> list[str]:
    """The names that point to an engine."""
    return [
        f"{name.name}:{name.tag}"
        for name in names
        if (name.key, name.generation) == (engine.key, engine.generation)
    ]
