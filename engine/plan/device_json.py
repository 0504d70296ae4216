"""Device functions and steps as JSON, read back with every field checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from engine.ir.sizes import Dim, dim_to_json
from engine.plan.device import (
    LANES,
    ClearStep,
    DeviceFunction,
    LaunchStep,
    LibraryStep,
    Null,
    Operand,
    Parameter,
    Pointer,
    Scalar,
    ScalarKind,
    TensorMap,
    TensorMapForm,
)
from engine.plan.expressions import read_dim
from engine.plan.fields import (
    MAX_ITEMS,
    brief,
    choice,
    entries,
    integer,
    items,
    plain,
    refuse,
    text,
)

__all__ = [
    "DeviceStep",
    "device_step_from_json",
    "device_step_to_json",
    "function_from_json",
    "function_to_json",
]

DeviceStep = LaunchStep | LibraryStep | ClearStep
Known = frozenset[str]

MAX_THREADS = 1024
MAX_SHARED = 1 << 20
MAX_CLUSTER = 16
#: What a tensor map takes: axes, and elements of a box along one of them.
MAX_AXES = 5
MAX_BOX = 256
MAP_DTYPES = ("float16", "bfloat16", "float32", "int8", "uint8", "float8e4m3fn", "int32")
SWIZZLES = (0, 32, 64, 128)
LIBRARIES = ("cublaslt", "cudnn")


def function_to_json(function: DeviceFunction) -> dict[str, Any]:
    """A device function as JSON."""
    return {
        "tensor": function.tensor,
        "entry": function.entry,
        "threads": function.threads,
        "shared_nbytes": function.shared_nbytes,
        "cluster": function.cluster,
        "maps": [[form.dtype, list(form.box), form.swizzle] for form in function.maps],
        "waits": function.waits,
    }


def function_from_json(value: Any, where: str) -> DeviceFunction:
    """The function that `function_to_json` wrote; PlanCorruptError otherwise."""
    tensor, entry, threads, shared, cluster, maps, waits = entries(
        value, where, ("tensor", "entry", "threads", "shared_nbytes", "cluster", "maps", "waits")
    )
    return DeviceFunction(
        tensor=text(tensor, f"{where}.tensor"),
        entry=text(entry, f"{where}.entry"),
        threads=integer(threads, f"{where}.threads", 1, MAX_THREADS),
        shared_nbytes=integer(shared, f"{where}.shared_nbytes", 0, MAX_SHARED),
        cluster=integer(cluster, f"{where}.cluster", 1, MAX_CLUSTER),
        maps=items(maps, f"{where}.maps", _form),
        waits=_boolean(waits, f"{where}.waits"),
    )


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        refuse(where, f"found {brief(value)}, expected true or false")
    return value


def _list(value: Any, where: str, least: int, most: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        refuse(where, f"found {brief(value)}, expected a list of {least} to {most}")
    return value


def _form(value: Any, where: str) -> TensorMapForm:
    dtype, box, swizzle = _list(value, where, 3, 3)
    if swizzle not in SWIZZLES or isinstance(swizzle, bool):
        refuse(where, f"found the swizzle {brief(swizzle)}, expected one of {SWIZZLES}")
    sizes = _list(box, where, 1, MAX_AXES)
    read = tuple(integer(item, where, 1, MAX_BOX) for item in sizes)
    return TensorMapForm(choice(dtype, where, MAP_DTYPES), read, swizzle)


def device_step_to_json(step: DeviceStep) -> dict[str, Any]:
    """A device step as JSON; its first key tells its kind. The main lane goes without saying."""
    found = _step_to_json(step)
    return {**found, "lane": step.lane} if step.lane else found


def _step_to_json(step: DeviceStep) -> dict[str, Any]:
    if isinstance(step, LaunchStep):
        return {
            "launch": step.function,
            "grid": [dim_to_json(dim) for dim in step.grid],
            "parameters": [_parameter_to_json(item) for item in step.parameters],
            "layer": step.layer,
        }
    if isinstance(step, LibraryStep):
        return {
            "library": step.library,
            "call": dict(step.call),
            "operands": [
                [item.slot, dim_to_json(item.offset), item.writes] for item in step.operands
            ],
            "sizes": [dim_to_json(dim) for dim in step.sizes],
            "workspace": step.workspace,
            "layer": step.layer,
        }
    return {"clear": step.slot, "layer": step.layer}


def _parameter_to_json(item: Parameter) -> list[Any]:
    if isinstance(item, Pointer):
        return ["pointer", item.slot, dim_to_json(item.offset), item.writes]
    if isinstance(item, Scalar):
        value = item.value if isinstance(item.value, float) else dim_to_json(item.value)
        return [item.kind, value]
    if isinstance(item, TensorMap):
        return [
            "map",
            item.slot,
            dim_to_json(item.offset),
            [dim_to_json(dim) for dim in item.sizes],
            [dim_to_json(dim) for dim in item.strides],
            item.form,
            list(item.steps),
            item.writes,
        ]
    return ["null"]


def device_step_from_json(value: dict[str, Any], where: str, known: Known) -> DeviceStep | None:
    """The device step that `device_step_to_json` wrote, None when it is another kind of step."""
    lane = 0
    if "lane" in value:
        lane = integer(value["lane"], f"{where}.lane", 1, LANES - 1)
        value = {name: item for name, item in value.items() if name != "lane"}
    if "launch" in value:
        return _launch(value, where, known, lane)
    if "library" in value:
        return _library(value, where, known, lane)
    if "clear" in value:
        slot, layer = entries(value, where, ("clear", "layer"))
        return ClearStep(_index(slot, f"{where}.clear"), _index(layer, f"{where}.layer"), lane)
    if lane:
        refuse(f"{where}.lane", "only steps of the device run on a lane")
    return None


def _index(value: Any, where: str) -> int:
    return integer(value, where, 0, MAX_ITEMS)


def _dims(value: Any, where: str, known: Known) -> tuple[Dim, ...]:
    return items(value, where, lambda v, at: read_dim(v, at, known))


def _launch(value: Any, where: str, known: Known, lane: int) -> LaunchStep:
    function, grid, parameters, layer = entries(
        value, where, ("launch", "grid", "parameters", "layer")
    )
    x, y, z = _dims(_list(grid, f"{where}.grid", 3, 3), f"{where}.grid", known)
    read: Callable[[Any, str], Parameter] = partial(_parameter, known=known)
    return LaunchStep(
        _index(function, f"{where}.launch"),
        (x, y, z),
        items(parameters, f"{where}.parameters", read),
        _index(layer, f"{where}.layer"),
        lane,
    )


def _parameter(value: Any, where: str, known: Known) -> Parameter:
    parts = _list(value, where, 1, 8)
    kind = choice(parts[0], where, ("pointer", "map", "null", "i32", "i64", "f32"))
    if kind == "null":
        _list(parts, where, 1, 1)
        return Null()
    if kind == "pointer":
        _, slot, offset, writes = _list(parts, where, 4, 4)
        return Pointer(_index(slot, where), read_dim(offset, where, known), _boolean(writes, where))
    if kind == "map":
        _, slot, offset, sizes, strides, form, steps, writes = _list(parts, where, 8, 8)
        return TensorMap(
            _index(slot, where),
            read_dim(offset, where, known),
            _dims(_list(sizes, where, 1, MAX_AXES), where, known),
            _dims(_list(strides, where, 1, MAX_AXES), where, known),
            _index(form, where),
            tuple(integer(item, where, 1, 8) for item in _list(steps, where, 0, MAX_AXES)),
            _boolean(writes, where),
        )
    _, number = _list(parts, where, 2, 2)
    if kind == "f32" and isinstance(number, float) and math.isfinite(number):
        return Scalar("f32", number)
    return Scalar(cast(ScalarKind, kind), read_dim(number, where, known))


def _library(value: Any, where: str, known: Known, lane: int) -> LibraryStep:
    library, call, operands, sizes, workspace, layer = entries(
        value, where, ("library", "call", "operands", "sizes", "workspace", "layer")
    )
    if not isinstance(call, dict):
        refuse(f"{where}.call", f"found {brief(call)}, expected a dictionary")

    def operand(item: Any, at: str) -> Operand:
        slot, offset, writes = _list(item, at, 3, 3)
        return Operand(_index(slot, at), read_dim(offset, at, known), _boolean(writes, at))

    return LibraryStep(
        cast(Any, choice(library, f"{where}.library", LIBRARIES)),
        plain(call, f"{where}.call"),
        items(operands, f"{where}.operands", operand),
        _dims(sizes, f"{where}.sizes", known),
        None if workspace is None else _index(workspace, f"{where}.workspace"),
        _index(layer, f"{where}.layer"),
        lane,
    )
