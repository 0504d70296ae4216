"""The options which decide what is built, shared by the verbs that compute a key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from scheduler.keys import DEFAULT_LEVEL, PRECISIONS, normalise_options
from storage.records import Json

Verb = TypeVar("Verb", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--target",
        default="cpu",
        show_default=True,
        metavar="cpu|cuda|cuda:N|cuda:smNN",
        help="The device to build for: this CPU, the first or the N-th NVIDIA GPU here, or one "
        "that is only described (sm80, sm86, sm89, sm90, sm100; with --level 0 or timing records).",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="The arithmetic to use.",
    ),
    click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=SPEC",
        help="Dimensions of one input, for example x=batch=1..8..32,3,224,224.",
    ),
    click.option(
        "--level",
        type=click.IntRange(0, 5),
        default=DEFAULT_LEVEL,
        show_default=True,
        help="How much to measure; 0 measures nothing.",
    ),
    click.option(
        "--tactics",
        metavar="LIST",
        help="The tactic sources allowed: for a CPU c,numpy,plugin; for a GPU triton,nvrtc,"
        "cublaslt,cudnn,cupy,numpy,plugin. All when not given.",
    ),
    click.option(
        "--update",
        "updates",
        multiple=True,
        metavar="OUTPUT=INPUT",
        help="An output that updates an input in place, as a cache does.",
    ),
    click.option("--no-reference", is_flag=True, help="Refuse steps of the reference evaluator."),
    click.option(
        "--lockfile",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Choices that win ties between tactics.",
    ),
)


def build_options(verb: Verb) -> Verb:
    """Give a verb the options that enter the build key."""
    for option in reversed(_OPTIONS):
        verb = option(verb)
    return verb


def read_options(
    *,
    target: str,
    precision: str,
    shapes: tuple[str, ...],
    level: int,
    tactics: str | None,
    updates: tuple[str, ...],
    no_reference: bool,
    lockfile: Path | None,
) -> Json:
    """The normalised options of a command line."""
    return normalise_options(
        target=target,
        precision=precision,
        shapes=dict(_shape(text) for text in shapes),
        level=level,
        tactics=None if tactics is None else [part.strip() for part in tactics.split(",")],
        updates=dict(_update(text) for text in updates),
        reference=not no_reference,
        lockfile=None if lockfile is None else _read_lockfile(lockfile),
    )


def _shape(text: str) -> tuple[str, str]:
    """Input name and dimensions of one --shape."""
    name, equals, dimensions = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r}; expected NAME=DIMENSION,DIMENSION,...")
    return name, dimensions


def _update(text: str) -> tuple[str, str]:
    """Output and input of one --update."""
    output, equals, given = text.partition("=")
    if not equals or not output or not given:
        raise click.BadParameter(f"{text!r}; expected OUTPUT=INPUT")
    return output, given


def _read_lockfile(path: Path) -> Json:
    """The choices of a lockfile."""
    try:
        choices = json.loads(path.read_bytes())
    except ValueError as error:
        raise click.BadParameter(f"{path} is no JSON: {error}") from error
    if not isinstance(choices, dict):
        raise click.BadParameter(f"{path} holds no JSON object")
    return choices
