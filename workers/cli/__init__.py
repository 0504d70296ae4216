"""The command line: a group of verbs, each imported only when it is used.

A verb is one module of this folder with a click command named `command`; the table below gives its
one-line help, so that `enginefarm --help` imports none of them.
"""

from __future__ import annotations

import importlib
import sys

import click

VERBS: dict[str, str] = {
    "demo": "Build, run and check a real network, and show what happened.",
    "doctor": "Check this machine: compiler, folders, device, versions.",
    "build": "Build a tuned engine from a model, or find the one built before.",
    "run": "Run an engine on given or random inputs.",
    "bench": "Measure latency and throughput of an engine, layer by layer.",
    "inspect": "Show a model or an engine: layers, fusions and refusals.",
    "compare": "Compare an engine with a reference, per output and per layer.",
    "fetch": "Copy a built engine out of the farm, verified.",
    "verify": "Check an engine's bytes and its signed statement.",
    "explain": "Explain a build: why a hit, what was measured, what won.",
    "engines": "List the engines of this farm.",
    "names": "List, move and remove names such as resnet50:prod.",
    "timings": "List, export and import kernel timings.",
    "ls": "List builds.",
    "status": "Show one build with its jobs.",
    "logs": "Show the events of a build.",
    "cancel": "Cancel builds that are queued or running.",
    "rerun": "Build again what was built, failed or was cancelled.",
    "gc": "Delete files of the farm that nothing refers to.",
}


class VerbGroup(click.Group):
    """A click group which imports a verb's module when the verb is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of a working day."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The click command of one verb, or None when there is no such verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"workers.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of verbs without importing any of them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the distribution's version and leave."""
    if wanted:
        from workers.settings import program_version

        click.echo(f"enginefarm {program_version()}")
        ctx.exit()


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and leave.",
)
def command_line() -> None:
    """EngineFarm turns trained models into tuned inference engines and keeps them."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with the exit code of what happened."""
    from workers.failures import run_guarded
    from workers.output import plain_warnings

    plain_warnings()
    sys.exit(run_guarded(command_line, arguments))
