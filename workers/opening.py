"""From what a user names (a plan, a model, a name, a key) to a loaded engine."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storage.records import Json
from workers.compiler import load_compiler
from workers.home import Home, place_engine

if TYPE_CHECKING:
    from engine.plan.plan import Plan
    from engine.runtime.cuda_engine import CudaEngine
    from engine.runtime.engine import Engine
    from engine.runtime.interface import ProgramInterface

__all__ = [
    "Found",
    "find_plan",
    "is_for_gpu",
    "is_plan",
    "named_words",
    "open_engine",
    "read_feeds",
    "stored_plan",
    "usual_feeds",
    "write_json",
]

_LONGEST_HEADER = 1 << 30


@dataclass(frozen=True, slots=True)
class Found:
    """A plan file, and the model that it was built from when the user named one.

    ``answer`` says how it was come by: `plan` (the file itself), `farm` (by name or key), or what
    building the model answered (`hit`, `built`, `attached`, `same`).
    """

    plan: Path
    model: Path | None
    answer: str


def is_plan(path: Path) -> bool:
    """Whether a file begins as a plan does: a length of 8 bytes, then a JSON object."""
    with path.open("rb") as file:
        head = file.read(9)
    return (
        len(head) == 9
        and head[8:] == b"{"
        and int.from_bytes(head[:8], "little") < (_LONGEST_HEADER)
    )


def find_plan(what: str, options: Json) -> Found:
    """The plan file that the words mean; a model is built when it was not built before.

    Raises FileNotFoundError or NotFoundError when there is no such thing.
    """
    path = Path(what)
    if path.is_file() and is_plan(path):
        return Found(path, None, "plan")
    from workers.output import announced_home

    home = announced_home()
    if path.is_file():
        from workers.building import Wish, make_engine

        made = make_engine(home, Wish(model=path, options=options), load_compiler())
        return Found(place_engine(home, made.engine, None), path, made.answer)
    return Found(_stored(home, what, options), None, "farm")


def stored_plan(what: str, options: Json) -> Path:
    """A plan file, or the farm's file for a name or key; builds nothing."""
    path = Path(what)
    if path.is_file():
        return path
    from workers.output import announced_home

    return _stored(announced_home(), what, options)


def _stored(home: Home, what: str, options: Json) -> Path:
    from workers.farm import open_farm
    from workers.resolving import find_engine

    engine = find_engine(open_farm(home), what, options=options, compiler=load_compiler())
    return place_engine(home, engine, None)


def open_engine(
    found: Found, *, compiled: bool, threads: int | None, target: str = "cpu"
) -> tuple[Plan, Engine | CudaEngine]:
    """The plan and its engine, kernels ready: compiled, or served by NumPy for good.

    A plan for a GPU runs on the one that ``target`` names, on the first one unless it names one.
    Raises UsageError for what only a CPU has.
    """
    from engine.jobs import device_index
    from engine.loading import load
    from engine.plan.plan import open_plan

    plan = open_plan(found.plan)
    if is_for_gpu(plan):
        if not compiled or threads is not None:
            option = "--numpy" if not compiled else "--threads"
            raise click.UsageError(f"{option} is for engines of a CPU; {found.plan} runs on a GPU")
        return plan, load(plan, device=device_index(target))
    return plan, load(plan, compile="wait" if compiled else "never", threads=threads)


def is_for_gpu(plan: Plan) -> bool:
    """Whether a plan was built for an NVIDIA GPU."""
    return plan.target.get("vendor") == "cuda"


def usual_feeds(
    engine: ProgramInterface,
    seed: int,
    sizes: Mapping[str, str],
    *,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Random inputs at the sizes for which the engine is tuned, or at the sizes given by name.

    Inputs named in ``without`` are given otherwise; they need no random values.
    """
    from engine.debug.compare import sample_feeds

    try:
        return dict(sample_feeds(engine, seed, sizes=_sizes(engine, sizes), without=without))
    except ValueError as error:
        raise click.UsageError(f"{error}; give it with --input NAME=FILE.npy") from error


def _sizes(engine: ProgramInterface, wanted: Mapping[str, str]) -> dict[str, int]:
    known = list(engine.profile)
    for name, text in wanted.items():
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "every size of it is fixed"
            raise click.UsageError(f"the engine has no symbolic size {name!r}; {there}")
        if not text.isdigit():
            raise click.UsageError(f"size {name} is {text!r}, expected a number")
    return {name: int(text) for name, text in wanted.items()}


def read_feeds(files: Mapping[str, Path], archive: Path | None) -> dict[str, Any]:
    """Arrays by input name from .npy files and one .npz file; no pickles."""
    import numpy as np

    feeds: dict[str, Any] = {}
    try:
        if archive is not None:
            with np.load(archive, allow_pickle=False) as held:
                feeds.update({name: held[name] for name in held.files})
        for name, path in files.items():
            feeds[name] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise click.UsageError(f"the arrays cannot be read: {error}") from error
    except AttributeError as error:
        raise click.UsageError(f"{archive} is no .npz file; --input takes a .npy file") from error
    return feeds


def named_words(words: tuple[str, ...], option: str) -> dict[str, str]:
    """NAME=VALUE words of an option as a dictionary."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise click.UsageError(f"{option} {word!r}: expected NAME=VALUE")
        found[name] = value
    return found


def write_json(path: Path, fields: object) -> None:
    """One JSON document as a file for people and programs, written whole."""
    from storage.disk import disk_errors, write_whole

    with disk_errors(str(path)):
        write_whole(path, [json.dumps(fields, indent=1).encode() + b"\n"])
