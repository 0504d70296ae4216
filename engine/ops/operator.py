"""The interface of an operator: attributes, shape rule, meaning; and the registry of all of them.

An operator is a frozen dataclass whose fields are its attributes. One class covers a range of
opset versions of one ONNX operator; a node of a graph holds an instance of it. The meaning is
the constant folder, the oracle of every test and the step of last resort.
"""

from __future__ import annotations

import base64
import importlib
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, TypeVar

import numpy as np

from engine.errors import InvalidModelError, UnsupportedOperatorError
from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.plugins import load_plugins

__all__ = ["DOMAIN", "Operator", "Result", "find", "known", "register"]

#: The domain of operators that only the engine's own passes create.
DOMAIN = "enginefarm"

Result = Any  # an array, or a tuple of arrays, sequences, optionals and maps


@dataclass(frozen=True, slots=True)
class Operator:
    """What an operator means, over types and arrays, without a graph.

    Fields named as the ONNX attributes hold them: ``int``, ``float``, ``str``, ``Array`` (tensor
    attributes), ``tuple[int, ...]`` and so on, with ONNX's defaults; ``None`` means absent. A field
    ``output_count: int = 0`` is filled in with the number of outputs of the node.
    """

    domain: ClassVar[str] = ""
    name: ClassVar[str] = ""
    since: ClassVar[int] = 1
    #: False for operators whose outputs differ from run to run (random numbers).
    deterministic: ClassVar[bool] = True
    #: True when the meaning also works on object arrays of symbolic sizes (shape arithmetic).
    symbolic: ClassVar[bool] = False
    #: Inputs (by position) of which the shape rule needs the contents, not only the type.
    shape_inputs: ClassVar[tuple[int, ...]] = ()

    def infer(self, *operands: Any) -> Sequence[Type]:
        """The types of all outputs, from one `Operand` per input (None where absent).

        An output size may be `UnknownSize` when only a run tells.
        Raises ValueError with the values found and expected when the inputs contradict the rule.
        """
        raise NotImplementedError(type(self).__name__)

    def meaning(self, *inputs: Any) -> Result:
        """The outputs, computed by NumPy: an array, or a tuple for several outputs.

        Absent optional inputs are None. Never changes its inputs; an output may be a view of one.
        """
        raise NotImplementedError(type(self).__name__)

    def attributes(self) -> dict[str, Any]:
        """The attributes that differ from their defaults, as JSON."""
        found = {}
        for item in fields(self):
            value = getattr(self, item.name)
            default = item.default
            if isinstance(value, np.ndarray) or (value is not default and value != default):
                found[item.name] = _to_json(value)
        return found

    @classmethod
    def from_attributes(cls, values: Mapping[str, Any]) -> Operator:
        """An instance from `attributes`' JSON or ONNX attributes; ValueError for wrong ones."""
        hints = _hints(cls)
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise ValueError(f"{cls.name} has no attribute {unknown[0]!r}")
        try:
            return cls(**{key: _coerce(value, hints[key], key) for key, value in values.items()})
        except TypeError as error:
            raise ValueError(f"{cls.name}: {error}") from None

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={_brief(v)}" for k, v in self.attributes().items())
        return f"{self.name}({inner})" if inner else self.name


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: Any) -> dict[str, Any]:
    """The attributes of an operator class and their declared types."""
    if cls not in _HINTS:
        _HINTS[cls] = _declared(cls)
    return _HINTS[cls]


def _declared(cls: type[Operator]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        dtype = DType.of(value.dtype)
        if dtype is DType.STRING:
            return {"dtype": "string", "shape": list(value.shape), "items": value.ravel().tolist()}
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": dtype.value, "shape": list(value.shape), "data": data}
    if isinstance(value, DType):
        return value.value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    if hasattr(value, "to_json"):
        return value.to_json()
    return value


def _array(value: Mapping[str, Any], key: str) -> Array:
    try:
        dtype, shape = DType(value["dtype"]), tuple(int(d) for d in value["shape"])
        if dtype is DType.STRING:
            return np.array([str(s) for s in value["items"]], object).reshape(shape)
        data = base64.b64decode(value["data"], validate=True)
        return np.frombuffer(data, dtype.numpy).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"attribute {key!r} holds no readable tensor: {error}") from None


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """The value as the field's type demands it; ValueError names the attribute."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        choices = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if value is None:
            return None
        return _coerce(value, choices[0], key)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
            raise ValueError(f"attribute {key!r} is {value!r}, expected a list")
        return tuple(_coerce(item, inner, key) for item in value)
    if hint is float and isinstance(value, Mapping) and set(value) == {"float"}:
        return float(str(value["float"]))
    if isinstance(hint, type) and issubclass(hint, DType) and isinstance(value, str):
        return DType(value)
    if hint is bool or hint is int:
        if isinstance(value, (bool, int, np.integer)):
            return hint(value)
    elif hint is float:
        if isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool):
            return float(value)
    elif hint is str:
        if isinstance(value, (str, bytes)):
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    elif isinstance(value, Mapping) and {"dtype", "shape"} <= set(value):
        return _array(value, key)
    elif hasattr(hint, "from_json") and not isinstance(value, hint):
        return hint.from_json(value)
    else:
        return value
    raise ValueError(f"attribute {key!r} is {value!r}, expected {getattr(hint, '__name__', hint)}")


_REGISTRY: dict[tuple[str, str], list[type[Operator]]] = {}
Class = TypeVar("Class", bound=type[Operator])


def register(name: str, *, since: int = 1, domain: str = "") -> Callable[[Class], Class]:
    """Class decorator: this class is the operator's meaning from opset ``since`` on.

    Several versions of one operator are several classes; the newest one not newer than the
    model's opset is used.
    """

    def enter(cls: Class) -> Class:
        cls.domain, cls.name, cls.since = domain, name, since
        versions = _REGISTRY.setdefault((domain, name), [])
        if any(other.since == since for other in versions):
            raise ValueError(f"{domain or 'ai.onnx'}.{name} since {since} is registered twice")
        versions.append(cls)
        versions.sort(key=lambda item: item.since)
        return cls

    return enter


@cache
def _discover() -> None:
    package = importlib.import_module("engine.ops")
    for module in sorted(item.name for item in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"engine.ops.{module}")
    load_plugins()


def known() -> dict[tuple[str, str], list[type[Operator]]]:
    """All registered operators: (domain, name) to its classes, oldest first."""
    _discover()
    return dict(sorted(_REGISTRY.items()))


def find(domain: str, name: str, version: int) -> type[Operator]:
    """The class for an operator at an opset version.

    Raises UnsupportedOperatorError, naming domain and version, for one that is not registered.
    """
    _discover()
    domain = "" if domain == "ai.onnx" else domain
    candidates = [c for c in _REGISTRY.get((domain, name), []) if c.since <= version]
    if not candidates:
        raise UnsupportedOperatorError(
            f"operator {domain or 'ai.onnx'}.{name} at opset {version} has no meaning here"
        )
    return candidates[-1]


def tensor(operand: Operand | None, name: str) -> TensorType:
    """The tensor type of a required input; InvalidModelError when it is absent or no tensor."""
    if operand is None or not isinstance(operand.type, TensorType):
        found = "nothing" if operand is None else str(operand.type)
        raise InvalidModelError(f"input {name!r} must be a tensor, found {found}")
    return operand.type
