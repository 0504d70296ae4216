"""What a check of a machine found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "State"]

State = Literal["fine", "limited", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: fine, worth knowing (works, but slower or with less), or broken."""

    name: str
    state: State
    text: str
