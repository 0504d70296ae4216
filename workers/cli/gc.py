"""`enginefarm gc`: delete files of the farm that nothing refers to."""

from __future__ import annotations

import click

from workers.farm import open_farm
from workers.output import announced_home, json_option, print_json, size_text
from workers.sweeping import sweep


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would be deleted.")
@click.option(
    "--grace-hours",
    type=float,
    default=24.0,
    show_default=True,
    help="Keep what was written less than so long ago.",
)
@json_option
def command(dry_run: bool, grace_hours: float, as_json: bool) -> None:
    """Delete blobs, unfinished files and links that nothing refers to."""
    farm = open_farm(announced_home())
    swept = sweep(farm, grace_s=grace_hours * 3600, dry_run=dry_run)
    nbytes = sum(swept.values())
    if as_json:
        print_json({"dry_run": dry_run, "files": swept, "size": nbytes})
        return
    for path in swept:
        print(path)
    word = "would free" if dry_run else "freed"
    print(f"{word} {size_text(nbytes)} in {len(swept)} files")
