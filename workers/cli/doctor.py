"""`enginefarm doctor`: whether this machine can build and run engines."""

from __future__ import annotations

import sys

import click

from storage.records import Json
from workers.exit_codes import ExitCode
from workers.health import Finding, all_findings
from workers.output import json_option, print_json, print_table


@click.command()
@json_option
def command(as_json: bool) -> int:
    """Check this machine: Python, processor, compiler, folders, packages, and a tiny engine.

    Leaves with the code 8 when something essential fails.
    """
    findings = all_findings()
    broken = [item for item in findings if item.state == "broken"]
    if as_json:
        print_json({"healthy": not broken, "findings": [_json(item) for item in findings]})
    else:
        print_table(("check", "state", "found"), [(f.name, f.state, f.text) for f in findings])
    if broken:
        print(f"error: {broken[0].name}: {broken[0].text}", file=sys.stderr)
        return ExitCode.INFRASTRUCTURE
    return ExitCode.SUCCESS


def _json(item: Finding) -> Json:
    return {"check": item.name, "state": item.state, "found": item.text}
