"""How a weight is made from the model's initialisers, in steps from a closed set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import PlanCorruptError
from engine.ir.types import Array, DType
from engine.kernels.packing import RECIPES, pack
from engine.plan.fields import brief, choice, entries, integer, items, refuse, text
from engine.plan.operators import read_operator

__all__ = ["RecipeStep", "apply", "check_recipe", "read_recipe_step"]

MAX_STEPS = 1 << 10


@dataclass(frozen=True, slots=True)
class RecipeStep:
    """One step: a function of the closed set, the values it takes, its arguments as JSON.

    The values are numbered: the sources first, then the result of each step; the last result is
    the weight.
    """

    function: str
    inputs: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def apply(recipe: Sequence[RecipeStep], sources: Sequence[Array]) -> Array:
    """The weight that a recipe makes of its sources; contiguous.

    Raises PlanCorruptError for a recipe that is none, ValueError when the sources do not fit it.
    """
    check_recipe(recipe, len(sources), "recipe")
    if not sources and not recipe:
        raise ValueError("a recipe without sources and steps makes nothing")
    values = [np.asarray(source) for source in sources]
    for step in recipe:
        function = FUNCTIONS[step.function].run
        values.append(np.asarray(function(step.arguments, *(values[i] for i in step.inputs))))
    return np.ascontiguousarray(values[-1]).reshape(values[-1].shape)


def check_recipe(recipe: Sequence[RecipeStep], sources: int, where: str) -> None:
    """Refuse, with PlanCorruptError, steps that take values which do not exist yet."""
    if len(recipe) > MAX_STEPS:
        refuse(where, f"found {len(recipe)} steps, expected at most {MAX_STEPS}")
    if not recipe and sources > 1:
        refuse(where, f"a recipe without steps has one source at most, found {sources}")
    for index, step in enumerate(recipe):
        at = f"{where}[{index}]"
        if step.function not in FUNCTIONS:
            refuse(at, f"no recipe step is called {brief(step.function)}")
        if any(not 0 <= value < sources + index for value in step.inputs):
            refuse(at, f"it takes values {list(step.inputs)[:8]} of {sources + index}")
        FUNCTIONS[step.function].check(dict(step.arguments), len(step.inputs), at)


def read_recipe_step(value: Any, where: str) -> RecipeStep:
    """A step from hostile JSON; which values exist is for `check_recipe`."""
    function, inputs, arguments = entries(value, where, ("function", "inputs", "arguments"))
    name = choice(function, f"{where}.function", tuple(FUNCTIONS))
    values = items(inputs, f"{where}.inputs", functools.partial(integer, least=0, most=1 << 16))
    if not isinstance(arguments, dict):
        refuse(f"{where}.arguments", f"found {brief(arguments)}, expected a dictionary")
    FUNCTIONS[name].check(arguments, len(values), where)
    return RecipeStep(name, values, arguments)


@dataclass(frozen=True, slots=True)
class _Function:
    """A function of the closed set: what it does, and what its arguments must look like."""

    run: Callable[..., Any]
    check: Callable[[dict[str, Any], int, str], None]


def _count(found: int, expected: int, where: str) -> None:
    if found != expected:
        refuse(f"{where}.inputs", f"found {found} values, expected {expected}")


def _integers(value: Any, where: str, least: int, most: int) -> tuple[int, ...]:
    return items(value, where, functools.partial(integer, least=least, most=most))


def _check_transpose(arguments: dict[str, Any], count: int, where: str) -> None:
    _count(count, 1, where)
    (order,) = entries(arguments, where, ("order",))
    axes = _integers(order, f"{where}.order", 0, 63)
    if sorted(axes) != list(range(len(axes))):
        refuse(f"{where}.order", f"{list(axes)[:8]} is no permutation")


def _check_reshape(arguments: dict[str, Any], count: int, where: str) -> None:
    _count(count, 1, where)
    (shape,) = entries(arguments, where, ("shape",))
    if len(_integers(shape, f"{where}.shape", 0, 1 << 48)) > 63:
        refuse(f"{where}.shape", "the rank passes 63")


def _check_cast(arguments: dict[str, Any], count: int, where: str) -> None:
    _count(count, 1, where)
    (dtype,) = entries(arguments, where, ("dtype",))
    choice(dtype, f"{where}.dtype", tuple(d.value for d in DType if d is not DType.STRING))


def _check_axis(arguments: dict[str, Any], count: int, where: str) -> None:
    (axis,) = entries(arguments, where, ("axis",))
    integer(axis, f"{where}.axis", 0, 63)
    if not count:
        refuse(f"{where}.inputs", "found no values, expected some")


def _check_scale(arguments: dict[str, Any], count: int, where: str) -> None:
    _count(count, 2, where)
    _check_axis(arguments, count, where)


def _check_pack(arguments: dict[str, Any], count: int, where: str) -> None:
    _count(count, 1, where)
    name, numbers = entries(arguments, where, ("name", "numbers"))
    choice(name, f"{where}.name", tuple(RECIPES))
    found = _integers(numbers, f"{where}.numbers", 0, 1 << 32)
    if len(found) != RECIPES[text(name, where)][1]:
        refuse(f"{where}.numbers", f"found {len(found)}, expected {RECIPES[name][1]}")


def _check_meaning(arguments: dict[str, Any], count: int, where: str) -> None:
    (operator,) = entries(arguments, where, ("operator",))
    if not read_operator(operator, f"{where}.operator").deterministic:
        refuse(f"{where}.operator", "an operator with random results makes no weights")


def _cast(arguments: Mapping[str, Any], value: Array) -> Array:
    return value.astype(DType(arguments["dtype"]).numpy)


def _concatenate(arguments: Mapping[str, Any], *values: Array) -> Array:
    return np.concatenate(values, axis=arguments["axis"])


def _scale(arguments: Mapping[str, Any], value: Array, factor: Array) -> Array:
    """Multiply along one axis by a vector, in float64, rounded once (batch-norm folding)."""
    axis = arguments["axis"]
    if axis >= value.ndim or factor.ndim != 1 or factor.shape[0] != value.shape[axis]:
        raise ValueError(f"{factor.shape} cannot scale axis {axis} of {value.shape}")
    wide = factor.astype(np.float64).reshape(-1, *(1,) * (value.ndim - 1 - axis))
    scaled: Array = (value.astype(np.float64) * wide).astype(value.dtype)
    return scaled


def _pack(arguments: Mapping[str, Any], value: Array) -> Array:
    return pack(arguments["name"], value, arguments["numbers"])


def _meaning(arguments: Mapping[str, Any], *values: Array) -> Array:
    result = read_operator(arguments["operator"], "recipe.operator").meaning(*values)
    if isinstance(result, (tuple, list)):
        if len(result) != 1:
            raise PlanCorruptError("an operator in a recipe must have one output")
        result = result[0]
    return np.asarray(result)


FUNCTIONS: Mapping[str, _Function] = {
    "transpose": _Function(lambda a, value: np.transpose(value, a["order"]), _check_transpose),
    "reshape": _Function(lambda a, value: value.reshape(a["shape"]), _check_reshape),
    "cast": _Function(_cast, _check_cast),
    "concatenate": _Function(_concatenate, _check_axis),
    "scale": _Function(_scale, _check_scale),
    "pack": _Function(_pack, _check_pack),
    "meaning": _Function(_meaning, _check_meaning),
}
