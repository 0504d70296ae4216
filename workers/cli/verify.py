"""`enginefarm verify`: whether an engine file is what a trusted key says it is."""

from __future__ import annotations

from pathlib import Path

import click

from scheduler.statements import trusted_keys, verify_statement
from storage.digest import digest_of_file
from workers.home import statement_path
from workers.output import announced_home, json_option, print_fields, print_json


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--statement",
    type=click.Path(path_type=Path),
    help="The signed statement; beside the engine unless given.",
)
@json_option
def command(engine: Path, statement: Path | None, as_json: bool) -> None:
    """Check an ENGINE file's bytes against its signed statement."""
    home = announced_home()
    digest, nbytes = digest_of_file(engine)
    envelope = (statement or statement_path(engine)).read_bytes()
    found = verify_statement(envelope, digest=digest, trusted=trusted_keys(home.keys))
    definition = found["predicate"]["buildDefinition"]
    models = {item["name"]: item["digest"]["sha256"] for item in definition["resolvedDependencies"]}
    fields = {
        "file": str(engine),
        "digest": digest,
        "size": nbytes,
        "key": definition["internalParameters"]["key"],
        "built": found["predicate"]["runDetails"]["metadata"]["finishedOn"],
        "built_from": models,
    }
    if as_json:
        print_json(fields)
    else:
        shown = {"digest": digest, "key": fields["key"], "built": fields["built"], **models}
        print_fields(f"{engine} is as it was signed", shown)
