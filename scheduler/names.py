"""Names of engines: NAME or NAME:TAG, such as resnet50:prod."""

from __future__ import annotations

import re
from dataclasses import dataclass

from scheduler.errors import RequestError

DEFAULT_TAG = "latest"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class EngineName:
    """A name and a tag; prints as name:tag."""

    name: str
    tag: str = DEFAULT_TAG

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


def parse_name(text: str) -> EngineName:
    """Read NAME or NAME:TAG; raises RequestError for anything else."""
    name, colon, tag = text.partition(":")
    if not colon:
        tag = DEFAULT_TAG
    for part in (name, tag):
        if not _PART.fullmatch(part):
            raise RequestError(
                f"{text!r} is no engine name; expected NAME or NAME:TAG of letters, digits, "
                "dots, dashes and underscores, beginning with a letter or digit"
            )
    return EngineName(name, tag)
