"""The build key: the only place that computes it.

A key is the SHA-256 of the canonical JSON of everything that decides what is built: the model's
files as given, the normalised options, the target, the toolchain, the integer `codegen`, a schema
number and a salt. Equal keys are one build.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from scheduler.errors import RequestError
from storage.digest import digest_of_json
from storage.records import Json

KEY_SCHEMA = 1
"""Bumped when the meaning of the key document changes; every older key is then out of reach."""

PRECISIONS = ("fp32", "fp16")
LEVELS = range(6)
DEFAULT_LEVEL = 3
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?(?:\.\.(\d+))?")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: its name relative to the model's folder, digest and length."""

    name: str
    digest: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """Everything that decides what is built."""

    files: tuple[ModelFile, ...]
    options: Json
    target: Json
    toolchain: Json
    codegen: int
    salt: str = ""
    key_schema: int = field(default=KEY_SCHEMA)

    @property
    def key(self) -> str:
        """The build key: 64 hexadecimal digits."""
        return digest_of_json(self.to_json())

    @property
    def context_digest(self) -> str:
        """The digest of all but the model's files: two exports of one graph share it."""
        document = self.to_json()
        del document["model"]
        return digest_of_json(document)

    def to_json(self) -> Json:
        """The key document as plain data."""
        files = sorted(self.files, key=lambda file: file.name)
        return {
            "key_schema": self.key_schema,
            "codegen": self.codegen,
            "model": {
                "files": [
                    {"name": file.name, "digest": file.digest, "size": file.nbytes}
                    for file in files
                ]
            },
            "options": self.options,
            "target": self.target,
            "toolchain": self.toolchain,
            "salt": self.salt,
        }

    @classmethod
    def from_json(cls, document: Json) -> BuildSpec:
        """The spec of a key document that `to_json` wrote."""
        return cls(
            files=tuple(
                ModelFile(file["name"], file["digest"], file["size"])
                for file in document["model"]["files"]
            ),
            options=document["options"],
            target=document["target"],
            toolchain=document["toolchain"],
            codegen=document["codegen"],
            salt=document["salt"],
            key_schema=document["key_schema"],
        )


def normalise_options(
    *,
    target: str,
    precision: str = "fp32",
    shapes: dict[str, str] | None = None,
    level: int = DEFAULT_LEVEL,
    tactics: list[str] | None = None,
    reference: bool = True,
    lockfile: Json | None = None,
    updates: dict[str, str] | None = None,
) -> Json:
    """The options of a build in their one form; raises RequestError naming a wrong one.

    `shapes` maps input names to comma-separated dimensions, each a number, a symbol, or
    SYMBOL=LEAST..USUAL..GREATEST (or SYMBOL=LEAST..GREATEST, or SYMBOL=SIZE). `updates` maps names
    of outputs to names of the inputs that they update in place.
    """
    if precision not in PRECISIONS:
        raise RequestError(f"precision {precision!r} is unknown; expected {', '.join(PRECISIONS)}")
    if level not in LEVELS:
        raise RequestError(f"level {level} is out of range; expected 0 to {LEVELS[-1]}")
    options: dict[str, Any] = {
        "target": target,
        "precision": precision,
        "level": level,
        "reference": reference,
        "shapes": {name: parse_shape(name, text) for name, text in (shapes or {}).items()},
    }
    if tactics is not None:
        options["tactics"] = sorted(set(tactics))
    if lockfile is not None:
        options["lockfile"] = lockfile
    if updates:
        options["updates"] = dict(sorted(updates.items()))
    return options


def parse_shape(name: str, text: str) -> list[int | str]:
    """The dimensions of one input: integers, symbols, and symbols with their range."""
    dimensions = [part.strip() for part in text.split(",")] if text.strip() else []
    return [_dimension(name, part) for part in dimensions]


def _dimension(name: str, text: str) -> int | str:
    """One dimension in its one form."""
    if text.isdecimal():
        return int(text)
    symbol, equals, sizes = text.partition("=")
    symbol = symbol.strip()
    if _SYMBOL.fullmatch(symbol) and not equals:
        return symbol
    matched = _RANGE.fullmatch(sizes.strip())
    if not _SYMBOL.fullmatch(symbol) or matched is None:
        raise RequestError(
            f"shape of {name!r}: {text!r} is no dimension; expected a number, a symbol, or "
            "SYMBOL=LEAST..USUAL..GREATEST"
        )
    numbers = [int(number) for number in matched.groups() if number is not None]
    if numbers != sorted(numbers):
        raise RequestError(
            f"shape of {name!r}: {text!r} must not decrease; expected LEAST..USUAL..GREATEST"
        )
    return f"{symbol}={'..'.join(map(str, numbers))}"
