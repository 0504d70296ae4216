"""EngineFarm's compiler and runtime: build a plan from a model, load it, run it.

import engine

plan = engine.build("model.onnx", target="cpu", shapes={"x": ("batch=1..8..32", 3, 224, 224)})
plan.save("model.engine")
net = engine.load("model.engine")
y = net({"x": x})
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine import errors
    from engine.building import build
    from engine.loading import load
    from engine.plan.plan import Plan
    from engine.runtime.context import Context
    from engine.runtime.engine import Engine

__all__ = ["Context", "Engine", "Plan", "build", "errors", "load"]

_HOMES = {
    "build": "engine.building",
    "load": "engine.loading",
    "Plan": "engine.plan.plan",
    "Engine": "engine.runtime.engine",
    "Context": "engine.runtime.context",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that loading a plan imports no compiler."""
    if name == "errors":
        return importlib.import_module("engine.errors")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
