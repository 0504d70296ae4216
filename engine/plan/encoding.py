"""A program as JSON; the same program always gives the same JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.ir.sizes import dim_to_json
from engine.ir.types import MapType, OptionalType, SequenceType, Type, UnknownSize
from engine.kernels.kernel import Kernel
from engine.plan.device import ClearStep, LaunchStep, LibraryStep
from engine.plan.device_json import device_step_to_json, function_to_json
from engine.plan.structure import (
    ChooseStep,
    Guard,
    HostStep,
    KernelStep,
    Layer,
    Program,
    Slot,
    Step,
    Symbol,
    Weight,
)

__all__ = ["program_to_json", "type_to_json"]


def type_to_json(value: Type) -> Any:
    """``[dtype, dims or null]``, or one of sequence, optional, map; an unknown size is null."""
    if isinstance(value, SequenceType):
        return {"sequence": type_to_json(value.element)}
    if isinstance(value, OptionalType):
        return {"optional": type_to_json(value.element)}
    if isinstance(value, MapType):
        return {"map": [value.key.value, type_to_json(value.value)]}
    if value.shape is None:
        return [value.dtype.value, None]
    dims = [None if isinstance(dim, UnknownSize) else dim_to_json(dim) for dim in value.shape]
    return [value.dtype.value, dims]


def kernel_to_json(kernel: Kernel) -> dict[str, Any]:
    """A kernel's own fields under its kind."""
    return {"kind": kernel.kind, "fields": kernel.to_json()}


def _symbol(symbol: Symbol) -> dict[str, Any]:
    return {
        "name": symbol.name,
        "least": symbol.least,
        "usual": list(symbol.usual),
        "greatest": None if symbol.greatest is None else dim_to_json(symbol.greatest),
        "source": list(symbol.source),
    }


def _slot(slot: Slot) -> dict[str, Any]:
    return {
        "type": type_to_json(slot.type),
        "place": slot.place,
        "name": slot.name,
        "alias": slot.alias,
        "offset": dim_to_json(slot.offset),
    }


def _weight(weight: Weight) -> dict[str, Any]:
    return {
        "name": weight.name,
        "dtype": weight.dtype.value,
        "shape": list(weight.shape),
        "tensor": weight.tensor,
        "sources": list(weight.sources),
        "recipe": [
            {"function": step.function, "inputs": list(step.inputs), "arguments": step.arguments}
            for step in weight.recipe
        ],
    }


def _guard(guard: Guard) -> list[Any]:
    return [guard.relation, dim_to_json(guard.left), dim_to_json(guard.right)]


def _step(step: Step) -> dict[str, Any]:
    if isinstance(step, (LaunchStep, LibraryStep, ClearStep)):
        return device_step_to_json(step)
    if isinstance(step, KernelStep):
        return {
            "kernel": step.kernel,
            "operands": [[slot, dim_to_json(offset)] for slot, offset in step.operands],
            "sizes": [dim_to_json(size) for size in step.sizes],
            "layer": step.layer,
        }
    if isinstance(step, HostStep):
        return {
            "function": step.function,
            "operator": step.operator,
            "inputs": list(step.inputs),
            "outputs": list(step.outputs),
            "declares": [list(declared) for declared in step.declares],
            "bodies": [program_to_json(body) for body in step.bodies],
            "layer": step.layer,
        }
    assert isinstance(step, ChooseStep)
    return {
        "cases": [
            {"guards": [_guard(guard) for guard in guards], "steps": [_step(s) for s in steps]}
            for guards, steps in step.cases
        ]
    }


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "nodes": list(layer.nodes),
        "tactic": layer.tactic,
        "choice": _sorted(layer.choice),
        "time_ns": layer.time_ns,
    }


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return value


def program_to_json(program: Program) -> dict[str, Any]:
    """The program as JSON that `program_from_json` reads back to an equal program."""
    functions = [function_to_json(function) for function in program.functions]
    return {
        **({"functions": functions} if functions else {}),
        "symbols": [_symbol(symbol) for symbol in program.symbols],
        "slots": [_slot(slot) for slot in program.slots],
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "kernels": [kernel_to_json(kernel) for kernel in program.kernels],
        "steps": [_step(step) for step in program.steps],
        "layers": [_layer(layer) for layer in program.layers],
        "weights": [_weight(weight) for weight in program.weights],
    }
