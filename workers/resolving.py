"""Finding an engine by what a user types: a model's path, a name, a key or the beginning of one."""

from __future__ import annotations

import re
from pathlib import Path

from scheduler.names import parse_name
from storage.errors import NotFoundError
from storage.records import Engine, Json
from workers.building import spec_of
from workers.compiler import Compiler
from workers.farm import Farm

_HEXADECIMAL = re.compile(r"[0-9a-f]{8,64}")


def find_engine(farm: Farm, words: str, *, options: Json, compiler: Compiler) -> Engine:
    """The engine that the words mean; raises NotFoundError with what was looked for.

    A file is a model, whose key is computed with the options; then names; then keys.
    """
    path = Path(words)
    if path.is_file():
        spec = spec_of(path, options, compiler)
        engine = farm.engine(spec.key)
        if engine is None:
            raise NotFoundError(
                f"there is no engine for {words} with these options (key {spec.key[:12]}); "
                f"`enginefarm explain {words}` tells why, `enginefarm build {words}` builds it"
            )
        return engine
    with farm.database.reading() as rows:
        if _HEXADECIMAL.fullmatch(words):
            return rows.engines.find(words)
        if path.suffix:
            raise FileNotFoundError(2, "No such file or directory", words)
        name = parse_name(words)
        pointer = rows.engines.named(name.name, name.tag)
        return rows.engines.get(pointer.key, pointer.generation)


def why_not_here(engine: Engine, compiler: Compiler) -> str | None:
    """The reason why an engine does not fit this machine, or None when it does."""
    from engine.errors import DeviceError, MissingExtraError, TargetMismatchError
    from engine.target import check_target

    try:
        if engine.target.get("vendor") == "cuda":  # its description says nothing of what is here
            words = dict(engine.target)
            words.pop("device_class", None)  # the farm's own
            check_target(words)
            return None
        here = compiler.describe(engine.options["target"]).target
    except (DeviceError, MissingExtraError, TargetMismatchError) as error:
        return str(error)
    differing = [
        f"{field} is {engine.target.get(field)!r} there and {here.get(field)!r} here"
        for field in sorted({*here, *engine.target})
        if here.get(field) != engine.target.get(field)
    ]
    return "; ".join(differing) or None
