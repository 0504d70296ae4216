"""The child of `engine.tune.measuring_process`: python -m engine.tune.measuring_child 0 FACTORY."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from engine.errors import DeviceError, EngineError
from engine.tune.measuring_process import receive, send

__all__ = ["main"]


def main(index: int, factory: str) -> None:
    """Answer contests until standard input ends."""
    # Whatever a library prints must not mix with messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def say(kind: str, value: Any = None) -> None:
        send(answers, (kind, value))

    measure: Callable[..., Any] | None = None
    while True:
        try:
            contest = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if measure is None:
                measure = _measurer(index, factory)
            say("outcomes", measure(contest, lambda place: say("touching", place)))
        except (DeviceError, EngineError) as error:
            say("fault", str(error))
            return


def _measurer(index: int, factory: str) -> Callable[..., Any]:
    module, _, name = factory.partition(":")
    measure: Callable[..., Any] = getattr(importlib.import_module(module), name)(index).measure
    return measure


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
