"""An operator at one set of sizes: its symbolic attributes replaced by numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from engine.ir.sizes import Dim, Size, substitute

__all__ = ["fix_sizes"]


def fix_sizes(value: Any, point: Mapping[str, Dim]) -> Any:
    """The value with every symbolic size in it replaced by its number; itself without one."""
    if isinstance(value, Size):
        return substitute(value, point)
    if isinstance(value, tuple):
        fixed = tuple(fix_sizes(item, point) for item in value)
        return value if all(a is b for a, b in zip(fixed, value)) else fixed
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            item.name: fix_sizes(getattr(value, item.name), point)
            for item in dataclasses.fields(value)
            if item.init
        }
        same = all(changed[name] is getattr(value, name) for name in changed)
        return value if same else dataclasses.replace(value, **changed)
    return value
