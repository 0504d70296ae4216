"""Operators of host steps and recipes as JSON, read back through the registry of operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedOperatorError
from engine.ops.operator import Operator, find
from engine.plan.fields import brief, entries, integer, refuse, text

__all__ = ["operator_from_json", "operator_to_json", "read_operator"]


def operator_to_json(operator: Operator) -> dict[str, Any]:
    """What a host step with the function ``meaning`` holds as its operator."""
    return {
        "domain": operator.domain,
        "name": operator.name,
        "since": operator.since,
        "attributes": operator.attributes(),
    }


def operator_from_json(value: Mapping[str, Any]) -> Operator:
    """The operator that `operator_to_json` wrote; PlanCorruptError otherwise."""
    return read_operator(value, "operator")


def read_operator(value: Any, where: str) -> Operator:
    """An operator of the registry with exactly the version and attributes given."""
    domain, name, since, attributes = entries(
        value, where, ("domain", "name", "since", "attributes")
    )
    version = integer(since, f"{where}.since", 1, 1 << 16)
    if not isinstance(attributes, dict):
        refuse(f"{where}.attributes", f"found {brief(attributes)}, expected a dictionary")
    title = text(name, f"{where}.name")
    try:
        cls = find(text(domain, f"{where}.domain", empty=True), title, version)
        if cls.since != version:
            refuse(f"{where}.since", f"{title} has no version {version}")
        return cls.from_attributes(attributes)
    except UnsupportedOperatorError as error:
        refuse(where, str(error)[:200])
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        refuse(f"{where}.attributes", f"{title}: {str(error)[:200]}")
    except RecursionError:
        refuse(f"{where}.attributes", f"{title}: nested too deeply")
