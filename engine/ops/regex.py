"""RegexFullMatch: RE2 patterns, translated to Python's regular expressions.

The two languages differ in small things: RE2's classes of digits, letters and spaces know ASCII
only, ``$`` is the very end of the text, flags may be set anywhere. Those are translated; what
Python cannot say (Unicode classes, single bytes) and what RE2 lacks (look-around, back references)
is refused. Syntax: github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.operator import Operator, register

__all__ = ["RegexFullMatch", "translate"]

_MOST_REPEATS = 1000  # RE2's limit

#: The insides of character classes, each also negated.
_CLASSES = {
    "d": r"0-9",
    "D": r"\x00-/:-\U0010ffff",
    "w": r"0-9A-Za-z_",
    "W": r"\x00-/:-@\[-\^`{-\U0010ffff",
    "s": r"\t\n\f\r ",
    "S": r"\x00-\x08\x0b\x0e-\x1f!-\U0010ffff",
}
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_FLAGS = re.compile(r"\(\?([ims]*)(?:-([ims]+))?([:)])")
_NAME = re.compile(r"\(\?P?<([A-Za-z_]\w*)>", re.ASCII)
_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_HEX = re.compile(r"\\x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})")
_OCTAL = re.compile(r"\\(0[0-7]{0,2}|[1-7][0-7]{1,2})")


def refuse(pattern: str, what: str) -> ValueError:
    """The error for a pattern that cannot be translated."""
    return ValueError(f"the pattern {pattern!r} holds {what}; expected RE2 syntax without it")


@dataclass(slots=True)
class _Group:
    """An open group: the inline flags set in it, to be set again after every ``|``."""

    multiline: bool
    flags: list[str] = field(default_factory=list)


def translate(pattern: str) -> str:
    """The Python pattern for an RE2 pattern that is to match fully; ValueError if there is none."""
    out: list[str] = []
    groups = [_Group(multiline=False)]
    at = 0
    while at < len(pattern):
        text, at = _next(pattern, at, groups)
        out.append(text)
    if len(groups) != 1:
        raise refuse(pattern, "a parenthesis that is not closed")
    return "".join(out) + ")" * len(groups[0].flags)


def _next(pattern: str, at: int, groups: list[_Group]) -> tuple[str, int]:
    """The translation of one element and the place after it."""
    char, group = pattern[at], groups[-1]
    if char == "\\":
        return _escape(pattern, at)
    if char == "[":
        return _class(pattern, at)
    if char == "(":
        return _open(pattern, at, groups)
    if char == ")":
        if len(groups) == 1:
            raise refuse(pattern, "a parenthesis that was not opened")
        groups.pop()
        return ")" * (len(group.flags) + 1), at + 1
    if char == "|":
        return ")" * len(group.flags) + "|" + "".join(group.flags), at + 1
    if char == "$":
        return ("$" if group.multiline else r"\Z"), at + 1
    if char in "*+?{":
        return _repeat(pattern, at)
    return char, at + 1


def _repeat(pattern: str, at: int) -> tuple[str, int]:
    count = _COUNT.match(pattern, at)
    if pattern[at] == "{" and count is None:
        return r"\{", at + 1
    end = at + 1
    if count is not None:
        end = count.end()
        if max(int(number) for number in count.groups() if number) > _MOST_REPEATS:
            raise refuse(pattern, f"more than {_MOST_REPEATS} repetitions")
    if pattern[end : end + 1] == "?":
        end += 1
    if pattern[end : end + 1] in ("+", "*", "?") or _COUNT.match(pattern, end):
        raise refuse(pattern, "a repetition of a repetition")
    return pattern[at:end], end


def _open(pattern: str, at: int, groups: list[_Group]) -> tuple[str, int]:
    group = groups[-1]
    if not pattern.startswith("(?", at):
        groups.append(_Group(group.multiline))
        return "(", at + 1
    if name := _NAME.match(pattern, at):
        groups.append(_Group(group.multiline))
        return f"(?P<{name[1]}>", name.end()
    found = _FLAGS.match(pattern, at)
    if found is None or found[0] == "(?)":
        raise refuse(pattern, f"the group {pattern[at : at + 4]!r}")
    on, off, kind = found[1], found[2] or "", found[3]
    multiline = ("m" in on or group.multiline) and "m" not in off
    opening = f"(?{on}{'-' + off if off else ''}:"
    if kind == ":":
        groups.append(_Group(multiline))
    else:
        group.multiline = multiline
        group.flags.append(opening)
    return opening, found.end()


def _escape(pattern: str, at: int) -> tuple[str, int]:
    """An escape outside a character class."""
    letter = pattern[at + 1 : at + 2]
    if letter in _CLASSES and letter:
        return f"[{_CLASSES[letter]}]", at + 2
    if letter in ("b", "B"):
        return rf"(?a:\{letter})", at + 2
    if letter == "A":
        return r"\A", at + 2
    if letter == "z":
        return r"\Z", at + 2
    if letter == "Q":
        end = pattern.find(r"\E", at + 2)
        end = len(pattern) if end < 0 else end
        return re.escape(pattern[at + 2 : end]), end + 2
    return _character(pattern, at)


def _character(pattern: str, at: int) -> tuple[str, int]:
    """An escape that stands for one character."""
    letter = pattern[at + 1 : at + 2]
    if number := _HEX.match(pattern, at):
        code = int(number[1] or number[2], 16)
        if code > 0x10FFFF:
            raise refuse(pattern, f"the character {number[0]}")
        return re.escape(chr(code)), number.end()
    if number := _OCTAL.match(pattern, at):
        return re.escape(chr(int(number[1], 8))), number.end()
    if letter and letter in "aftnrv":
        return "\\" + letter, at + 2
    if letter and letter.isascii() and not letter.isalnum() and letter != "_":
        return "\\" + letter, at + 2
    raise refuse(pattern, f"the escape {pattern[at : at + 2]!r}")


def _class(pattern: str, at: int) -> tuple[str, int]:
    """A character class in brackets."""
    out, at = ["["], at + 1
    if pattern[at : at + 1] == "^":
        out.append("^")
        at += 1
    first = True
    while first or pattern[at : at + 1] != "]":
        text, at = _member(pattern, at)
        out.append(text)
        first = False
    return "".join(out) + "]", at + 1


def _member(pattern: str, at: int) -> tuple[str, int]:
    """One element of a character class: a class, a range or a character."""
    letter = pattern[at + 1 : at + 2]
    if pattern.startswith("[:", at):
        end = pattern.find(":]", at)
        inside = _POSIX.get(pattern[at + 2 : end])
        if inside is None:
            raise refuse(pattern, f"the class {pattern[at : end + 2]!r}")
        return inside, end + 2
    if pattern[at : at + 1] == "\\" and letter and letter in _CLASSES:
        return _CLASSES[letter], at + 2
    low, at = _single(pattern, at)
    if pattern[at : at + 1] != "-" or pattern[at + 1 : at + 2] in ("]", ""):
        return low, at
    high, at = _single(pattern, at + 1)
    return f"{low}-{high}", at


def _single(pattern: str, at: int) -> tuple[str, int]:
    """One character of a character class."""
    char = pattern[at : at + 1]
    if not char:
        raise refuse(pattern, "a bracket that is not closed")
    if char == "\\":
        return _character(pattern, at)
    return ("\\" + char if char in "[]&~|-^" else char), at + 1


@lru_cache(maxsize=128)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(translate(pattern))
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from None


@register("RegexFullMatch", since=20)
@dataclass(frozen=True, slots=True)
class RegexFullMatch(Operator):
    """Whether each string matches an RE2 pattern from its first to its last character."""

    pattern: str | None = None

    def infer(self, x: Operand, /) -> Sequence[Type]:
        if self.pattern is None:
            raise ValueError("RegexFullMatch lacks the attribute 'pattern'")
        _compiled(self.pattern)
        return [TensorType(DType.BOOL, x.shape)]

    def meaning(self, x: Array, /) -> Array:
        if self.pattern is None:
            raise ValueError("RegexFullMatch lacks the attribute 'pattern'")
        match = _compiled(self.pattern).fullmatch
        found = [match(item) is not None for item in x.ravel().tolist()]
        return np.array(found, bool).reshape(x.shape)
