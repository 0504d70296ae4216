"""Every operator that ONNX defines has a class that takes its attributes and inputs."""

from __future__ import annotations

import inspect
from collections import defaultdict
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import onnx
import pytest

from engine.errors import UnsupportedOperatorError
from engine.ops import DOMAIN, Operator, find, known
from engine.ops.exclusions import EXCLUSIONS

OLDEST_OPSET = 7
OWN_FIELDS = {"output_count", "formal"}
VARIADIC = 2**31 - 1

Key = tuple[str, str]


def schemas() -> dict[Key, list[Any]]:
    """The schemas in force at opset 7 or later, oldest first; deprecated ones are left out."""
    history: dict[Key, list[Any]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        history[schema.domain, schema.name].append(schema)
    result = {}
    for key, found in sorted(history.items()):
        found.sort(key=lambda schema: schema.since_version)
        if key[0] == "":
            old = [s for s in found if s.since_version <= OLDEST_OPSET]
            found = old[-1:] + found[len(old) :]
        found = [s for s in found if not s.deprecated]
        if found:
            result[key] = found
    return result


SCHEMAS = schemas()
COVERED = [key for key in SCHEMAS if key not in EXCLUSIONS]


def name_of(key: Key) -> str:
    return ".".join(filter(None, key))


def served() -> dict[type[Operator], list[Any]]:
    """The schemas that each registered class stands for."""
    result: dict[type[Operator], list[Any]] = defaultdict(list)
    for key in COVERED:
        for schema in SCHEMAS[key]:
            try:
                result[find(*key, version(schema))].append(schema)
            except UnsupportedOperatorError:
                continue
    return result


def version(schema: Any) -> int:
    oldest = OLDEST_OPSET if schema.domain == "" else 1
    return max(schema.since_version, oldest)


SERVED = sorted(served().items(), key=lambda item: (item[0].domain, item[0].name, item[0].since))
CLASSES = [pytest.param(*item, id=f"{item[0].name}-{item[0].since}") for item in SERVED]


def test_every_version_of_every_operator_has_a_class() -> None:
    missing = []
    for key in COVERED:
        for schema in SCHEMAS[key]:
            try:
                find(*key, version(schema))
            except UnsupportedOperatorError:
                missing.append(f"{name_of(key)}-{schema.since_version}")
    assert not missing, f"{len(missing)}: {', '.join(missing)}"


def test_every_registered_operator_is_one_of_onnx_or_our_own() -> None:
    strange = [name_of(key) for key in known() if key not in SCHEMAS and key[0] != DOMAIN]
    assert not strange


def test_every_exclusion_is_an_operator_of_onnx_without_a_class_and_has_a_reason() -> None:
    for key, reason in EXCLUSIONS.items():
        assert key in SCHEMAS, f"{name_of(key)} is no operator of ONNX"
        assert key not in known(), f"{name_of(key)} is registered all the same"
        assert len(reason.split()) > 5, f"{name_of(key)}: {reason!r} is no reason"


def test_a_class_begins_with_a_version_of_its_schema() -> None:
    wrong = []
    for key, classes in known().items():
        if key not in SCHEMAS or key in EXCLUSIONS:
            continue
        versions = {schema.since_version for schema in SCHEMAS[key]}
        for cls in classes:
            if cls.since not in versions and cls.since > min(versions):
                wrong.append(f"{cls.name} since {cls.since}, versions are {sorted(versions)}")
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize(("cls", "stands_for"), CLASSES)
def test_a_class_has_the_attributes_of_its_schemas(
    cls: type[Operator], stands_for: list[Any]
) -> None:
    own = {item.name: item for item in fields(cls)}
    every = set().union(*map(attributes_of, stands_for))
    assert set(own) - OWN_FIELDS == every
    for schema in stands_for:
        for attribute in attributes_of(schema).values():
            check_default(attribute, own[attribute.name].default)


def attributes_of(schema: Any) -> dict[str, Any]:
    """The attributes of a schema that an operator holds; bodies belong to the node."""
    graph = onnx.defs.OpSchema.AttrType.GRAPH
    return {name: item for name, item in schema.attributes.items() if item.type != graph}


def check_default(attribute: Any, found: Any) -> None:
    assert attribute.required or found is not MISSING, f"{attribute.name} may be absent"
    if not attribute.default_value.type:
        return
    expected = onnx.helper.get_attribute_value(attribute.default_value)
    if isinstance(expected, bytes):
        expected = expected.decode()
    if isinstance(expected, list):
        expected = tuple(v.decode() if isinstance(v, bytes) else v for v in expected)
    assert found is not MISSING, f"{attribute.name} has no default, expected {expected!r}"
    if isinstance(expected, float):
        assert np.float32(found) == np.float32(expected), attribute.name
    elif found is not None:  # None stands for a default that depends on the inputs
        assert found == expected, attribute.name


@pytest.mark.parametrize(("cls", "stands_for"), CLASSES)
def test_a_class_takes_the_inputs_of_its_schemas(
    cls: type[Operator], stands_for: list[Any]
) -> None:
    for function in (cls.infer, cls.meaning):
        parameters = list(inspect.signature(function).parameters.values())[1:]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        named = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
        least = sum(p.default is p.empty for p in named)
        most = VARIADIC if variadic else len(named)
        for schema in stands_for:
            text = f"{function.__qualname__} of {schema.name}-{schema.since_version}"
            assert least <= schema.min_input, f"{text} needs {least} inputs"
            assert most >= schema.max_input, f"{text} takes only {most} inputs"
