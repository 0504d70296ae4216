"""`enginefarm build`: a tuned engine from a model, or the one that was built before."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from scheduler.keys import DEFAULT_LEVEL, PRECISIONS, normalise_options
from scheduler.names import parse_name
from storage.records import Json
from workers.building import Made, Wish, make_engine
from workers.compiler import load_compiler
from workers.home import Home, place_engine, statement_path
from workers.output import announced_home, json_option, print_fields, print_json, size_text

_WORDS = {
    "hit": "hit (exact) in {seconds:.2f} s",
    "built": "built in {seconds:.1f} s",
    "attached": "built together with another process in {seconds:.1f} s",
    "same": "same as {same_as:.12} under another export; found in {seconds:.1f} s",
}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the engine here too.")
@click.option("--target", default="cpu", show_default=True, help="The device to build for.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="The arithmetic to use.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=SPEC",
    help="Dimensions of one input, for example x=batch=1..8..32,3,224,224.",
)
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    default=DEFAULT_LEVEL,
    show_default=True,
    help="How much to measure; 0 measures nothing.",
)
@click.option("--tactics", metavar="LIST", help="The tactic sources allowed, for example c,numpy.")
@click.option("--no-reference", is_flag=True, help="Refuse operators without a meaning of ours.")
@click.option("--name", metavar="NAME[:TAG]", help="Point this name to the engine.")
@click.option("--force", is_flag=True, help="Build although there is an engine or a known failure.")
@click.option(
    "--lockfile",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Choices that win ties between tactics.",
)
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
    began = time.monotonic()
    home = announced_home()
    wish = Wish(
        model=model,
        options=_options(**choices),
        name=None if name is None else parse_name(name),
        force=force,
    )
    try:
        made = make_engine(home, wish, load_compiler())
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            "interrupted; what was measured is kept, the same command goes on from there"
        ) from interrupt
    path = place_engine(home, made.engine, output)
    fields = _fields(home, made, path, name=name, seconds=time.monotonic() - began)
    if as_json:
        print_json(fields)
    else:
        _print(made, fields)


def _options(
    *,
    target: str,
    precision: str,
    shapes: tuple[str, ...],
    level: int,
    tactics: str | None,
    no_reference: bool,
    lockfile: Path | None,
) -> Json:
    """The normalised options of the command line."""
    return normalise_options(
        target=target,
        precision=precision,
        shapes=dict(_shape(text) for text in shapes),
        level=level,
        tactics=None if tactics is None else [part.strip() for part in tactics.split(",")],
        reference=not no_reference,
        lockfile=None if lockfile is None else _read_lockfile(lockfile),
    )


def _shape(text: str) -> tuple[str, str]:
    """Input name and dimensions of one --shape."""
    name, equals, dimensions = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r}; expected NAME=DIMENSION,DIMENSION,...")
    return name, dimensions


def _read_lockfile(path: Path) -> Json:
    """The choices of a lockfile."""
    try:
        choices = json.loads(path.read_bytes())
    except ValueError as error:
        raise click.BadParameter(f"{path} is no JSON: {error}") from error
    if not isinstance(choices, dict):
        raise click.BadParameter(f"{path} holds no JSON object")
    return choices


def _fields(home: Home, made: Made, path: Path, *, name: str | None, seconds: float) -> Json:
    """What a program may want to know of a build."""
    engine = made.engine
    return {
        "answer": made.answer,
        "seconds": round(seconds, 4),
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
        },
    )
    sys.stdout.flush()
