"""`enginefarm explain`: why a build is a hit or not, what was measured and what won."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scheduler.keys import BuildSpec
from storage.records import Engine, Json
from workers.building import spec_of
from workers.cli.options import build_options, read_options
from workers.compiler import load_compiler
from workers.farm import Farm, open_farm
from workers.output import announced_home, json_option, print_fields, print_json, size_text
from workers.resolving import find_engine


@click.command()
@click.argument("what", metavar="MODEL|KEY|NAME[:TAG]")
@build_options
@json_option
def command(what: str, as_json: bool, **choices: Any) -> None:
    """Explain what a build of MODEL would find, or how an engine was made."""
    farm = open_farm(announced_home())
    options = read_options(**choices)
    compiler = load_compiler()
    if Path(what).is_file():
        spec = spec_of(Path(what), options, compiler)
        engine = farm.engine(spec.key)
        if engine is None:
            _explain_miss(farm, spec, Path(what), as_json=as_json)
            return
    else:
        engine = find_engine(farm, what, options=options, compiler=compiler)
    _explain_engine(farm, engine, as_json=as_json)


def _explain_engine(farm: Farm, engine: Engine, *, as_json: bool) -> None:
    """How an engine was made."""
    with farm.database.reading() as rows:
        build = rows.builds.get(engine.build_id)
        jobs = rows.jobs.of_build(build.id)
    fields: Json = {
        "answer": "hit",
        "key": engine.key,
        "model": engine.model_name,
        "parts": build.spec,
        "graph_digest": engine.graph_digest,
        "same_as": engine.same_as,
        "build_id": build.id,
        "build_seconds": engine.build_seconds,
        "jobs": [{"kind": job.kind, "state": job.state, "losses": job.losses} for job in jobs],
        "report": engine.report,
    }
    if as_json:
        print_json(fields)
        return
    print_fields(
        f"{engine.model_name}: a build with these options is a hit",
        {
            "key": engine.key,
            "options": _words(engine.options),
            "target": _words(engine.target),
            "toolchain": _words(build.spec["toolchain"]),
            "same as": engine.same_as,
            "size": size_text(engine.nbytes),
            "built in": f"{engine.build_seconds:.1f} s by {build.id}",
        },
    )
    for name, value in sorted(engine.report.items()):
        if isinstance(value, dict):
            print_fields(f"  {name}:", {f"  {inner}": item for inner, item in value.items()})
        else:
            print(f"  {name}: {value}")


def _explain_miss(farm: Farm, spec: BuildSpec, model: Path, *, as_json: bool) -> None:
    """What distinguishes a request from the nearest build there was."""
    with farm.database.reading() as rows:
        builds = rows.builds.newest(limit=500)
    wanted = spec.to_json()
    candidates = [
        (differences(build.spec, wanted), build)
        for build in builds
        if build.state == "done"
        and (build.model_name == model.stem or build.spec["model"] == wanted["model"])
    ]
    nearest = min(candidates, key=lambda found: len(found[0]), default=None)
    known = next((build for build in builds if build.key == spec.key), None)
    fields: Json = {
        "answer": "miss",
        "key": spec.key,
        "state": None if known is None else known.state,
        "failure": None if known is None else known.failure,
        "nearest": None if nearest is None else nearest[1].key,
        "differences": None if nearest is None else nearest[0],
    }
    if as_json:
        print_json(fields)
        return
    failure = fields["failure"] or {}
    shown = {"key": spec.key, "last build": fields["state"], "reason": failure.get("message")}
    print_fields(f"{model}: a build with these options is no hit", shown)
    if nearest is None:
        print("  no build of this model or of one with its name is known")
    else:
        print_fields(f"  the nearest engine, {nearest[1].key[:12]}, differs in", nearest[0])


def differences(before: object, after: object, path: str = "") -> dict[str, str]:
    """Where two plain values differ, by path, as `before -> after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: dict[str, str] = {}
        for name in sorted({*before, *after}):
            inner = f"{path}.{name}" if path else str(name)
            found |= differences(before.get(name), after.get(name), inner)
        return found
    return {} if before == after else {path: f"{before} -> {after}"}


def _words(fields: Json) -> str:
    """Plain data on one line."""
    return ", ".join(f"{name}={value}" for name, value in sorted(fields.items()) if value != {})
