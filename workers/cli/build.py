"""`enginefarm build`: a tuned engine from a model, or the one that was built before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scheduler.names import parse_name
from storage.records import Json
from workers.building import Made, Wish, make_engine
from workers.cli.options import build_options, read_options
from workers.compiler import load_compiler
from workers.home import Home, place_engine, statement_path
from workers.output import announced_home, json_option, print_fields, print_json, size_text

_WORDS = {
    "hit": "hit (exact) in {seconds:.2f} s",
    "built": "built in {seconds:.1f} s",
    "resumed": "built in {seconds:.1f} s, going on from where an earlier process stopped",
    "attached": "built by another process; waited {seconds:.1f} s",
    "same": "same as {same_as:.12} under another export; found in {seconds:.1f} s",
}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the engine here too.")
@build_options
@click.option("--name", metavar="NAME[:TAG]", help="Point this name to the engine.")
@click.option("--force", is_flag=True, help="Build although there is an engine or a known failure.")
@json_option
def command(
    model: Path,
    output: Path | None,
    as_json: bool,
    name: str | None,
    force: bool,
    **choices: Any,
) -> None:
    """Build a tuned engine from MODEL, or find the one built before."""
    home = announced_home()
    wish = Wish(
        model=model,
        options=read_options(**choices),
        name=None if name is None else parse_name(name),
        force=force,
    )
    try:
        made = make_engine(home, wish, load_compiler())
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            "interrupted; what was measured is kept, the same command goes on from there"
        ) from interrupt
    show_made(home, made, output=output, name=name, as_json=as_json)


def show_made(
    home: Home, made: Made, *, output: Path | None, name: str | None, as_json: bool
) -> None:
    """Put an engine in its place and tell about it."""
    path = place_engine(home, made.engine, output)
    fields = _fields(home, made, path, name=name)
    if as_json:
        print_json(fields)
    else:
        _print(made, fields)


def _fields(home: Home, made: Made, path: Path, *, name: str | None) -> Json:
    """What a program may want to know of a build."""
    engine = made.engine
    return {
        "answer": made.answer,
        "seconds": round(made.seconds, 4),
        "key": engine.key,
        "generation": engine.generation,
        "digest": engine.digest,
        "size": engine.nbytes,
        "file": str(path),
        "statement": str(statement_path(path)),
        "name": name,
        "model": engine.model_name,
        "same_as": engine.same_as,
        "build_id": engine.build_id,
        "build_seconds": round(engine.build_seconds, 4),
        "report": engine.report,
        "home": str(home.folder),
    }


def _check_of(report: Json) -> Json:
    """What a build found when it ran the engine; a note says why it ran nothing."""
    check = report.get("check")
    return check if isinstance(check, dict) else {}


def _print(made: Made, fields: Json) -> None:
    """The outcome for people."""
    report = made.engine.report
    print_fields(
        _WORDS[made.answer].format(seconds=fields["seconds"], same_as=fields["same_as"] or ""),
        {
            "key": made.engine.key,
            "engine": f"{fields['file']} ({size_text(made.engine.nbytes)})",
            "name": fields["name"],
            "layers": report.get("layers") if isinstance(report.get("layers"), int) else None,
            "needs": ", ".join(report.get("requires") or []) or None,
            "not run": _check_of(report).get("note"),
        },
    )
