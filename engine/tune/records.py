"""Timing records, one per candidate measured, and the signature of the layer it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.ir.graph import Node
from engine.ir.sizes import Dim, dim_to_json, substitute, symbol, symbols
from engine.ir.types import TensorType, Type
from engine.plan.operators import operator_to_json

__all__ = ["TimingRecord", "layer_description", "layer_signature"]


@dataclass(frozen=True, slots=True)
class TimingRecord:
    """One measurement of one candidate.

    ``time_ns`` is the 30th percentile of ``samples`` runs, ``spread`` the distance between the
    10th and 50th percentile over it. A failed candidate has the status "failed" and a reason.
    """

    signature: str
    tactic: str
    choice: Mapping[str, Any]
    point: Mapping[str, int]
    target: Mapping[str, Any]
    toolchain: str
    time_ns: float
    spread: float = 0.0
    samples: int = 0
    status: str = "ok"
    reason: str = ""
    layer: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """The record as a flat dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TimingRecord:
        """Read what `to_json` wrote; TypeError for unknown fields."""
        return cls(**{key: fields[key] for key in cls.__dataclass_fields__ if key in fields})

    @property
    def key(self) -> tuple[str, str, str]:
        """What the record is about: layer, tactic and choice, as text that sorts."""
        return self.signature, self.tactic, json.dumps(dict(self.choice), sort_keys=True)


def layer_description(node: Node) -> dict[str, Any]:
    """Everything about a node that its speed may depend on, with symbols numbered by first use."""
    names: dict[str, Dim] = {}
    inputs = [
        None
        if value is None
        else {"type": _type_text(value.type, names), "constant": value.constant is not None}
        for value in node.inputs
    ]
    outputs = [_type_text(value.type, names) for value in node.outputs]
    return {
        "operator": operator_to_json(node.op),
        "inputs": inputs,
        "outputs": outputs,
        "symbols": list(names),
    }


def layer_signature(
    node: Node, points: Mapping[str, int], shared: Sequence[tuple[int, int]] = ()
) -> tuple[str, dict[str, int]]:
    """The digest of a layer at a shape point, and the point of its own symbols.

    ``shared`` lists operands and results of the layer that share their memory.
    """
    description = layer_description(node)
    used = description.pop("symbols")
    if shared:
        description["shared"] = [list(pair) for pair in shared]
    point = {f"s{index}": points[name] for index, name in enumerate(used) if name in points}
    text = json.dumps([description, point], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), point


def _type_text(kind: Type, names: dict[str, Dim]) -> Any:
    if not isinstance(kind, TensorType) or kind.shape is None:
        return str(kind)
    for dim in kind.shape:
        for name in sorted(symbols(dim)):
            names.setdefault(name, symbol(f"s{len(names)}"))
    return [kind.dtype.value, *(dim_to_json(substitute(dim, names)) for dim in kind.shape)]
