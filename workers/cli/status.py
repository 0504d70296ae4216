"""`enginefarm status`: one build, its jobs and their attempts."""

from __future__ import annotations

from dataclasses import asdict

import click

from workers.farm import open_farm
from workers.output import (
    announced_home,
    json_option,
    print_fields,
    print_json,
    print_table,
    time_text,
)


@click.command()
@click.argument("build_id", metavar="BUILD|KEY")
@json_option
def command(build_id: str, as_json: bool) -> None:
    """Show a build with its jobs and the attempts at them."""
    farm = open_farm(announced_home())
    with farm.database.reading() as rows:
        build = rows.builds.find(build_id)
        submissions = rows.builds.submissions(build.id)
        jobs = rows.jobs.of_build(build.id)
        attempts = {job.id: rows.jobs.attempts(job.id) for job in jobs}
    if as_json:
        print_json(
            {
                **asdict(build),
                "submissions": [asdict(item) for item in submissions],
                "jobs": [
                    {
                        **asdict(job),
                        "attempts": [asdict(attempt) for attempt in attempts[job.id]],
                    }
                    for job in jobs
                ],
            }
        )
        return
    failure = build.failure or {}
    print_fields(
        f"build {build.id}: {build.state}",
        {
            "model": build.model_path or build.model_name,
            "key": build.key,
            "submitted": time_text(build.created_at),
            "by": ", ".join(sorted({item.user for item in submissions})),
            "reason": failure.get("message"),
        },
    )
    print_table(
        ("job", "state", "attempts"),
        [
            (
                f"{job.kind} {job.ordinal}",
                job.state,
                " ".join(attempt.state for attempt in attempts[job.id]),
            )
            for job in jobs
        ],
    )
