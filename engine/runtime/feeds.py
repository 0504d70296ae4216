"""Checking what a caller feeds, and reading symbolic sizes off it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import FeedError
from engine.ir.sizes import evaluate, symbols
from engine.ir.types import Array, DType, MapType, OptionalType, SequenceType, TensorType, Type
from engine.plan.structure import Program, Symbol

__all__ = ["bind_symbols", "check_feeds", "host_array", "owned"]


def host_array(value: Any) -> Array:
    """An array of whatever speaks the array interfaces or DLPack on the host."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    return np.asarray(value)


def owned(value: Any, others: Sequence[Array]) -> Any:
    """The value, with copies of those of its arrays that lie in the memory of ``others``."""
    if isinstance(value, (list, tuple)):
        return [owned(item, others) for item in value]
    if isinstance(value, np.ndarray) and any(np.may_share_memory(value, o) for o in others):
        return value.copy()
    return value


def check_feeds(
    program: Program, feeds: Mapping[str, Any], skipped: Collection[str] = ()
) -> list[Any]:
    """The feeds in the order of the program's inputs, as C-contiguous arrays.

    Those named in ``skipped`` are None. Raises FeedError for a missing or unknown name, a wrong
    dtype or a wrong rank.
    """
    names = [program.slots[index].name for index in program.inputs]
    for name in feeds:
        if name not in names:
            raise FeedError(f"there is no input {name!r}; the engine's inputs are {names}")
    checked: list[Any] = []
    for index in program.inputs:
        slot = program.slots[index]
        if slot.name in skipped:
            checked.append(None)
            continue
        if slot.name not in feeds:
            if isinstance(slot.type, OptionalType):
                checked.append(None)
                continue
            raise FeedError(f"input {slot.name!r} ({slot.type}) is missing")
        checked.append(_checked(slot.name, slot.type, feeds[slot.name]))
    return checked


def _checked(name: str, kind: Type, value: Any) -> Any:
    if isinstance(kind, OptionalType):
        return None if value is None else _checked(name, kind.element, value)
    if isinstance(kind, SequenceType):
        if not isinstance(value, (list, tuple)):
            raise FeedError(
                f"input {name!r} is {kind}; expected a list, found {type(value).__name__}"
            )
        return [_checked(f"{name}[{i}]", kind.element, item) for i, item in enumerate(value)]
    if isinstance(kind, MapType):
        return value
    array = host_array(value)
    if kind.dtype is DType.STRING:
        if array.dtype.kind not in "OUST":
            raise FeedError(f"input {name!r} holds {array.dtype}, expected strings")
        array = array.astype(object)
    elif array.dtype != kind.dtype.numpy:
        raise FeedError(
            f"input {name!r} has dtype {array.dtype}, expected {kind.dtype.numpy}; "
            f"convert it with .astype({str(kind.dtype.numpy)!r})"
        )
    if kind.shape is not None and array.ndim != len(kind.shape):
        raise FeedError(
            f"input {name!r} has {array.ndim} axes (shape {list(array.shape)}), expected "
            f"{len(kind.shape)}: {kind}"
        )
    return np.require(array, requirements=("C", "A"))


def bind_symbols(program: Program, feeds: Sequence[Any]) -> dict[str, int]:
    """The value of every symbol that the shapes of the feeds settle; absent feeds are None.

    Raises FeedError when a size contradicts another one or lies outside the profile.
    """
    values: dict[str, int] = {}
    later = []
    for index, array in zip(program.inputs, feeds):
        slot = program.slots[index]
        if not isinstance(slot.type, TensorType) or slot.type.shape is None or array is None:
            continue
        for axis, (dim, size) in enumerate(zip(slot.type.shape, array.shape)):
            if isinstance(dim, int):
                if dim != size:
                    raise FeedError(
                        f"input {slot.name!r} has size {size} on axis {axis}, expected {dim} "
                        f"(shape {list(array.shape)}, expected {slot.type})"
                    )
            elif str(dim) in symbols(dim):
                known = values.setdefault(str(dim), size)
                if known != size:
                    raise FeedError(
                        f"input {slot.name!r} has size {size} on axis {axis}, but {dim} is {known} "
                        "on another axis of the inputs"
                    )
            else:
                later.append((slot.name, axis, dim, size))
    for name, axis, dim, size in later:
        if symbols(dim) <= set(values) and evaluate(dim, values) != size:
            raise FeedError(
                f"input {name!r} has size {size} on axis {axis}, expected {dim} = "
                f"{evaluate(dim, values)}"
            )
    for symbol in program.symbols:
        _check_range(symbol, values)
    return values


def _check_range(symbol: Symbol, values: Mapping[str, int]) -> None:
    if symbol.source[0] != "input" or symbol.name not in values:
        return
    size = values[symbol.name]
    if size < symbol.least or (isinstance(symbol.greatest, int) and size > symbol.greatest):
        raise FeedError(
            f"{symbol.name} is {size} (axis {symbol.source[2]} of input {symbol.source[1]!r}), "
            f"outside the profile {symbol.least} to {symbol.greatest}; "
            "build with a wider profile for it"
        )
