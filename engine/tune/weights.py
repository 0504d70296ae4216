"""Weights as a program stores them, made once for all candidates that share a recipe."""

from __future__ import annotations

import json
from typing import Any

from engine.ir.graph import Value
from engine.ir.types import Array
from engine.lower.builder import PackedWeight
from engine.plan.recipes import apply

__all__ = ["made_weight"]


def made_weight(item: PackedWeight, packed: dict[Any, Array]) -> Array:
    """A weight by its recipe; ``packed`` keeps those made already."""
    steps = [[s.function, list(s.inputs), dict(s.arguments)] for s in item.recipe]
    key = tuple(id(source) for source in item.sources), json.dumps(steps, sort_keys=True)
    if key not in packed:
        packed[key] = apply(item.recipe, [_constant(source) for source in item.sources])
    return packed[key]


def _constant(value: Value) -> Array:
    assert value.constant is not None
    return value.constant
