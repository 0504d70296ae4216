"""`enginefarm fetch`: a verified copy of an engine that was built before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scheduler.statements import trusted_keys, verify_statement
from storage.blobs import read_blob
from storage.errors import NotFoundError
from workers.cli.options import build_options, read_options
from workers.compiler import load_compiler
from workers.farm import open_farm
from workers.home import place_engine, statement_path
from workers.output import announced_home, json_option, print_fields, print_json, size_text
from workers.resolving import find_engine, why_not_here


@click.command()
@click.argument("what", metavar="NAME[:TAG]|KEY|MODEL")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write the engine.")
@click.option("--any-target", is_flag=True, help="Also fetch an engine for another machine.")
@build_options
@json_option
def command(
    what: str, output: Path | None, any_target: bool, as_json: bool, **choices: Any
) -> None:
    """Copy an engine out of the farm, after checking its signature, its bytes and its target."""
    home = announced_home()
    compiler = load_compiler()
    farm = open_farm(home)
    engine = find_engine(farm, what, options=read_options(**choices), compiler=compiler)
    reason = None if any_target else why_not_here(engine, compiler)
    if reason is not None:
        raise NotFoundError(
            f"engine {engine.key[:12]} does not run on this machine: {reason}; "
            "--any-target fetches it all the same"
        )
    verify_statement(
        read_blob(home.blobs, engine.statement_digest),
        digest=engine.digest,
        trusted=trusted_keys(home.keys),
    )
    path = place_engine(home, engine, output or Path(f"{engine.model_name}.engine"))
    fields = {
        "file": str(path),
        "statement": str(statement_path(path)),
        "key": engine.key,
        "digest": engine.digest,
        "size": engine.nbytes,
    }
    if as_json:
        print_json(fields)
    else:
        print_fields(f"fetched {path} ({size_text(engine.nbytes)})", {"key": engine.key})
