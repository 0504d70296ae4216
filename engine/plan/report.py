"""A plan as text for people, and its choices as a lockfile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.ir.sizes import Dim
from engine.ir.types import TensorType
from engine.plan.device import ClearStep, LaunchStep, LibraryStep, Pointer, TensorMap
from engine.plan.device_json import DeviceStep
from engine.plan.plan import Plan
from engine.plan.structure import (
    ChooseStep,
    FlatStep,
    Guard,
    HostStep,
    KernelStep,
    Layer,
    Program,
    Slot,
    Step,
    Symbol,
)

__all__ = ["layer_steps", "lockfile", "plan_text", "program_text", "read_lockfile", "summary"]

LOCK_FORMAT = 1


def summary(plan: Plan) -> dict[str, Any]:
    """The numbers that describe a plan: layers, steps by sort, bytes of weights, packages."""
    counts = {"kernel": 0, "host": 0, "choice": 0}
    for _, step in _flat(plan.program.steps):
        counts[_sort(step)] = counts.get(_sort(step), 0) + 1
    tactics: dict[str, int] = {}
    for layer in plan.program.layers:
        tactics[layer.tactic] = tactics.get(layer.tactic, 0) + 1
    nbytes = {w.tensor: _nbytes(w.shape) * w.dtype.nbytes for w in plan.program.weights}
    return {
        "layers": len(plan.program.layers),
        "steps": counts,
        "kernels": len(plan.program.kernels) + len(plan.program.functions),
        "tactics": dict(sorted(tactics.items())),
        "weights": len(plan.program.weights),
        "weight_nbytes": sum(nbytes.values()),
        "requires": plan.requires,
        "target": dict(plan.target),
    }


def _sort(step: Step) -> str:
    if isinstance(step, HostStep):
        return "cupy" if step.function == "cupy" else "host"
    return "choice" if isinstance(step, ChooseStep) else "kernel"


def _nbytes(shape: Sequence[int]) -> int:
    elements = 1
    for size in shape:
        elements *= size
    return elements


def plan_text(plan: Plan) -> str:
    """Everything worth knowing about a plan, as lines of text."""
    found = summary(plan)
    by_cupy = f"{found['steps']['cupy']} by CuPy, " if "cupy" in found["steps"] else ""
    lines = [
        "target    " + ", ".join(f"{key} {value}" for key, value in sorted(plan.target.items())),
        f"weights   {found['weights']}, {found['weight_nbytes'] / 1e6:.1f} MB",
        f"steps     {found['steps']['kernel']} kernel, {found['steps']['host']} host, "
        f"{by_cupy}{found['steps']['choice']} choices; {found['kernels']} distinct kernels",
    ]
    if found["requires"]:
        lines.append(f"requires  {', '.join(found['requires'])}")
    lines.append(program_text(plan.program))
    refused = [item for item in plan.decisions if item.get("made") is False]
    if refused:
        lines.append("refused")
        lines += [
            f"  {item.get('rule', '')} at {', '.join(map(str, item.get('nodes', ())))}: "
            f"{item.get('reason', '')}"
            for item in refused
        ]
    return "\n".join(lines) + "\n"


def program_text(program: Program) -> str:
    """A program as text: its interface, its layers, and the steps of each in order."""
    lines = ["sizes"] if program.symbols else []
    lines += [f"  {_symbol(symbol)}" for symbol in program.symbols]
    for title, places in (("inputs", program.inputs), ("outputs", program.outputs)):
        lines.append(title)
        lines += [f"  {_slot(program.slots[i], i)}" for i in places]
    lines.append("layers")
    width = len(str(max(len(program.layers) - 1, 0)))
    lines += [f"  {i:>{width}} {_layer(layer)}".rstrip() for i, layer in enumerate(program.layers)]
    lines.append("steps")
    for depth, step in _flat(program.steps):
        lines += [f"{'  ' * (depth + 1)}{line}" for line in _step(program, step)]
    return "\n".join(lines)


def _flat(steps: Sequence[Step], depth: int = 0) -> Iterator[tuple[int, Step]]:
    """All steps with the depth of the choices around them; a choice before its cases' steps."""
    for step in steps:
        yield depth, step
        for _, chosen in step.cases if isinstance(step, ChooseStep) else ():
            yield from _flat(chosen, depth + 1)


def layer_steps(program: Program) -> dict[int, list[FlatStep]]:
    """The steps of each layer by its index, those of all cases included."""
    found: dict[int, list[FlatStep]] = {}
    for _, step in _flat(program.steps):
        if not isinstance(step, ChooseStep):
            found.setdefault(step.layer, []).append(step)
    return found


def _symbol(symbol: Symbol) -> str:
    usual = ", ".join(map(str, symbol.usual))
    most = "any" if symbol.greatest is None else str(symbol.greatest)
    origin = "from data"
    if symbol.source[0] == "input":
        origin = f"axis {symbol.source[2]} of {symbol.source[1]}"
    return f"{symbol.name}: {symbol.least} to {most}, usually {usual or 'unknown'} ({origin})"


def _slot(slot: Slot, index: int) -> str:
    alias = "" if slot.alias is None else f", a view of %{slot.alias} from byte {slot.offset}"
    return f"%{index} {slot.name}: {_type(slot)}{alias}"


def _type(slot: Slot) -> str:
    if not isinstance(slot.type, TensorType) or slot.type.shape is None:
        return str(slot.type)
    dims = ", ".join(str(d) if isinstance(d, Dim) else "?" for d in slot.type.shape)
    return f"{slot.type.dtype.value}[{dims}]"


def _layer(layer: Layer) -> str:
    time = f"  {layer.time_ns / 1000:.1f} us" if layer.time_ns else ""
    choice = ", ".join(f"{key}={value}" for key, value in sorted(layer.choice.items()))
    others = [node for node in layer.nodes if node != layer.name]
    covers = f"  covers {', '.join(others)}" if others else ""
    return f"{layer.name}  {layer.kind}  {layer.tactic}({choice}){time}{covers}"


def _step(program: Program, step: Step) -> list[str]:
    if isinstance(step, ChooseStep):
        cases = [" and ".join(map(_guard, guards)) or "otherwise" for guards, _ in step.cases]
        return ["choose: " + "; ".join(cases)]
    if isinstance(step, KernelStep):
        operands = ", ".join(
            f"%{slot}+{offset}" if offset != 0 else f"%{slot}" for slot, offset in step.operands
        )
        sizes = ", ".join(map(str, step.sizes))
        kind = program.kernels[step.kernel].kind
        return [f"{step.layer}: {kind}.{step.kernel}({operands}) sizes {sizes}"]
    if isinstance(step, (LaunchStep, LibraryStep, ClearStep)):
        return [_device_step(program, step)]
    name = step.operator.get("attributes", {}).get("operator") or step.operator.get("name")
    inputs = ", ".join("-" if slot is None else f"%{slot}" for slot in step.inputs)
    outputs = ", ".join(f"%{slot}" for slot in step.outputs)
    place = "by CuPy on the device, between graphs" if step.function == "cupy" else "on the host"
    lines = [f"{step.layer}: {outputs} = {name or step.function}({inputs}) {place}"]
    lines += [f"  declares {symbol}" for symbol, _, _ in step.declares]
    for body in step.bodies:
        lines += ["  body", *(f"    {line}" for line in program_text(body).splitlines())]
    return lines


def _device_step(program: Program, step: DeviceStep) -> str:
    lane = f" on lane {step.lane}" if step.lane else ""
    return f"{step.layer}: {_device_work(program, step)}{lane}"


def _device_work(program: Program, step: DeviceStep) -> str:
    if isinstance(step, ClearStep):
        return f"clear %{step.slot}"
    if isinstance(step, LibraryStep):
        operands = ", ".join(f"%{item.slot}" for item in step.operands)
        return f"{step.library}({operands})"
    function = program.functions[step.function]
    used = ", ".join(
        f"%{item.slot}" for item in step.parameters if isinstance(item, (Pointer, TensorMap))
    )
    grid = " x ".join(map(str, step.grid))
    return f"{function.entry}.{step.function}({used}) grid {grid}"


def _guard(guard: Guard) -> str:
    return f"{guard.left} {guard.relation} {guard.right}"


def lockfile(program: Program, target: Mapping[str, Any] | None = None) -> str:
    """The choices of a program in readable form: JSON, a line per layer, sorted keys, no times."""
    lines = [
        json.dumps(
            {
                "name": layer.name,
                "kind": layer.kind,
                "nodes": list(layer.nodes),
                "tactic": layer.tactic,
                "choice": dict(layer.choice),
            },
            sort_keys=True,
        )
        for layer in program.layers
    ]
    head = json.dumps(dict(target or {}), sort_keys=True)
    body = ",\n    ".join(lines)
    opened, closed = ("[\n    ", "\n  ]") if lines else ("[", "]")
    return (
        f'{{\n  "format": {LOCK_FORMAT},\n  "target": {head},\n'
        f'  "layers": {opened}{body}{closed}\n}}\n'
    )


def read_lockfile(content: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Layer names to (tactic, choice) from a lockfile; ValueError says what is wrong with it."""
    document = json.loads(content)
    if not isinstance(document, dict) or document.get("format") != LOCK_FORMAT:
        raise ValueError(f"found no lockfile of format {LOCK_FORMAT}")
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise ValueError("the lockfile lists no layers")
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for index, layer in enumerate(layers):
        fields = layer if isinstance(layer, dict) else {}
        name, tactic, choice = fields.get("name"), fields.get("tactic"), fields.get("choice")
        if not (isinstance(name, str) and isinstance(tactic, str) and isinstance(choice, dict)):
            raise ValueError(f"layer {index} of the lockfile has no name, tactic and choice")
        if name in found:
            raise ValueError(f"the lockfile lists layer {name!r} twice")
        found[name] = (tactic, choice)
    return found
