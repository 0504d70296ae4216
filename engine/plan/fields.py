"""Reading hostile JSON: every look says where it is, and refuses what it did not expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from engine.errors import PlanCorruptError

__all__ = [
    "MAX_ITEMS",
    "choice",
    "entries",
    "integer",
    "items",
    "optional",
    "parse",
    "plain",
    "refuse",
    "text",
]

MAX_ITEMS = 1 << 18
MAX_TEXT = 1 << 12
MAX_PLAIN_DEPTH = 8
Value = TypeVar("Value")


def refuse(where: str, what: str) -> NoReturn:
    """Raise PlanCorruptError: the plan, at this place, is not as it should be."""
    raise PlanCorruptError(f"the plan is damaged at {where}: {what}; build or fetch it again")


def brief(value: Any) -> str:
    """A short print of something that may be huge."""
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'dictionary'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"an integer of {value.bit_length()} bits"
    shown = repr(value[:80] if isinstance(value, str) else value)
    return shown if len(shown) <= 90 else shown[:87] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one dictionary")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def parse(data: bytes, where: str) -> Any:
    """JSON without duplicate keys, NaN or infinities; PlanCorruptError for anything else."""
    try:
        document = str(data, "utf-8")
        return json.loads(document, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        refuse(where, "the JSON is nested too deeply")
    except (ValueError, MemoryError) as error:
        refuse(where, f"no readable JSON ({str(error)[:120]})")


def entries(value: Any, where: str, names: Sequence[str]) -> list[Any]:
    """The values of a dictionary that must have exactly these keys."""
    if not isinstance(value, dict):
        refuse(where, f"found {brief(value)}, expected a dictionary")
    for name in names:
        if name not in value:
            refuse(where, f"the field {name!r} is missing")
    if len(value) != len(names):
        extra = min(key for key in value if key not in names)
        refuse(where, f"the field {brief(extra)} is unknown")
    return [value[name] for name in names]


def items(value: Any, where: str, read: Callable[[Any, str], Value]) -> tuple[Value, ...]:
    """A list, each element read by ``read``."""
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        refuse(where, f"found {brief(value)}, expected a list of at most {MAX_ITEMS}")
    return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(value))


def integer(value: Any, where: str, least: int, most: int) -> int:
    """An integer between two bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        refuse(where, f"found {brief(value)}, expected an integer from {least} to {most}")
    return value


def text(value: Any, where: str, *, empty: bool = False) -> str:
    """A string of bounded length, not empty unless ``empty``."""
    if not isinstance(value, str) or len(value) > MAX_TEXT or not (value or empty):
        refuse(where, f"found {brief(value)}, expected a string of at most {MAX_TEXT} characters")
    return value


def choice(value: Any, where: str, choices: Sequence[str]) -> str:
    """A string of a closed set."""
    if not isinstance(value, str) or value not in choices:
        refuse(where, f"found {brief(value)}, expected one of {', '.join(choices)}")
    return value


def optional(value: Any, where: str, read: Callable[[Any, str], Value]) -> Value | None:
    """None, or what ``read`` reads."""
    return None if value is None else read(value, where)


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Any JSON of bounded depth and lengths, handed on as it is."""
    if depth > MAX_PLAIN_DEPTH:
        refuse(where, "the value is nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            plain(item, f"{where}.{key[:80]}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            plain(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, int) and abs(value) >= 1 << 64:
        refuse(where, f"found {brief(value)}, expected at most 64")
    return value
