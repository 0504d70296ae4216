"""`enginefarm inspect`: what is in a model or in a plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storage.records import Json
from workers.cli.options import build_options, read_options
from workers.opening import is_for_gpu, is_plan, stored_plan
from workers.output import json_option, print_fields, print_json, print_table, size_text

if TYPE_CHECKING:
    from engine.ir.graph import Graph
    from engine.plan.plan import Plan


@click.command()
@click.argument("what", metavar="MODEL|PLAN|NAME")
@click.option("--text", "as_text", is_flag=True, help="The graph or the program as text.")
@click.option("--onnx", type=click.Path(path_type=Path), help="Write the optimised graph as ONNX.")
@build_options
@json_option
def command(what: str, as_text: bool, onnx: Path | None, as_json: bool, **choices: Any) -> None:
    """Show a model as the engine reads and fuses it, or what a built plan holds."""
    options = read_options(**choices)
    path = Path(what)
    if path.is_file() and not is_plan(path):
        _model(path, options, as_text=as_text, onnx=onnx, as_json=as_json)
        return
    if onnx is not None:
        raise click.UsageError("--onnx needs a model; a plan holds a program, no graph")
    _plan(stored_plan(what, options), as_text=as_text, as_json=as_json)


def _model(path: Path, options: Json, *, as_text: bool, onnx: Path | None, as_json: bool) -> None:
    from engine.building import optimise, read_model
    from engine.ir.text import graph_text
    from engine.jobs import read_options as engine_options

    wanted = engine_options(options)
    graph = read_model(path, wanted)
    before = _counts(graph)
    optimise(graph, wanted.precision)
    if onnx is not None:
        _write(graph, onnx)
    if as_json:
        print_json(_model_fields(path, graph, before, onnx, as_text=as_text))
        return
    if as_text:
        print(graph_text(graph))
        return
    print_fields(
        f"{path}: {sum(before.values())} operators, {len(graph.nodes)} after fusing",
        {
            "inputs": ", ".join(map(repr, graph.inputs)),
            "outputs": ", ".join(_outputs(graph)),
            "weights": size_text(_weight_nbytes(graph)),
            "operators": _count_text(before),
            "layers": _count_text(_counts(graph)),
            "written": onnx,
        },
    )
    _print_decisions([item.to_json() for item in graph.decisions])


def _write(graph: Graph, path: Path) -> None:
    from engine.onnx_io import write
    from storage.disk import disk_errors

    with disk_errors(str(path)):
        write(graph, path)


def _counts(graph: Graph) -> dict[str, int]:
    """How many of each operator there are, bodies included, the most frequent first."""
    return dict(Counter(node.kind for _, node in graph.walk()).most_common())


def _weight_nbytes(graph: Graph) -> int:
    constants = {id(value.constant): value.constant for value in graph.constants()}
    return sum(array.nbytes for array in constants.values() if array is not None)


def _outputs(graph: Graph) -> list[str]:
    names = graph.output_names or [value.name for value in graph.outputs]
    return [f"%{name}: {value.type}" for name, value in zip(names, graph.outputs)]


def _count_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _model_fields(
    path: Path, graph: Graph, before: dict[str, int], onnx: Path | None, *, as_text: bool
) -> Json:
    from engine.ir.text import graph_text

    names = graph.output_names or [value.name for value in graph.outputs]
    return {
        "model": str(path),
        "inputs": {value.name: str(value.type) for value in graph.inputs},
        "outputs": {name: str(value.type) for name, value in zip(names, graph.outputs)},
        "operators": before,
        "layers": _counts(graph),
        "weight_nbytes": _weight_nbytes(graph),
        "decisions": [item.to_json() for item in graph.decisions],
        "onnx": None if onnx is None else str(onnx),
        "text": graph_text(graph) if as_text else None,
    }


def _plan(path: Path, *, as_text: bool, as_json: bool) -> None:
    from engine.debug.memory import arena_use
    from engine.plan.plan import open_plan
    from engine.plan.report import plan_text, program_text

    plan = open_plan(path)
    memory = arena_use(plan.program)
    if as_json:
        print_json(_plan_fields(path, plan, as_text=as_text))
        return
    if as_text:
        print(program_text(plan.program))
        return
    print(f"plan      {path} ({size_text(path.stat().st_size)})")
    for use in memory:
        at = ", ".join(f"{name}={size}" for name, size in use.sizes.items())
        print(
            f"arena     {size_text(use.nbytes)}, {use.ratio:.3f} times the lower bound"
            + (f", at {at}" if at else "")
        )
    print(plan_text(plan), end="")
    made = [dict(item) for item in plan.decisions if item.get("made") is not False]
    _print_decisions(made)
    steps = host_steps_of(plan)
    if steps:
        print(f"{len(steps)} steps on the host")
        print_table(("layer", "operator", "cause"), [tuple(step.values()) for step in steps])


def _plan_fields(path: Path, plan: Plan, *, as_text: bool) -> Json:
    from engine.debug.memory import arena_use
    from engine.plan.report import program_text, summary

    slots = plan.program.slots
    return {
        "plan": str(path),
        **summary(plan),
        "codegen": plan.codegen,
        "inputs": {slots[i].name: str(slots[i].type) for i in plan.program.inputs},
        "outputs": {slots[i].name: str(slots[i].type) for i in plan.program.outputs},
        "profile": [
            {
                "name": item.name,
                "least": item.least,
                "usual": list(item.usual),
                "greatest": None if item.greatest is None else str(item.greatest),
            }
            for item in plan.program.symbols
        ],
        "memory": [use.to_json() for use in arena_use(plan.program)],
        "layer_list": [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "nodes": list(layer.nodes),
                "tactic": layer.tactic,
                "choice": dict(layer.choice),
                "time_ns": layer.time_ns,
            }
            for layer in plan.program.layers
        ],
        "host_steps": host_steps_of(plan),
        "decisions": [dict(item) for item in plan.decisions],
        "text": program_text(plan.program) if as_text else None,
    }


def host_steps_of(plan: Plan) -> list[Json]:
    """Every step that runs in Python and ends a run of kernels, with its cause."""
    from engine.plan.plan import host_steps
    from engine.plan.slots import is_fixed

    found: list[Json] = []
    for step in host_steps(plan.program.steps):
        layers, slots = plan.program.layers, plan.program.slots
        ends = (*step.inputs, *step.outputs)
        fixed = all(slot is not None and is_fixed(slots[slot]) for slot in ends)
        if is_for_gpu(plan) and step.function == "copy" and fixed:
            continue  # a copy on the device
        name = step.operator.get("attributes", {}).get("operator") or step.operator.get("name")
        cause = {
            "reference": "no meaning here; onnx's reference evaluator runs it",
            "copy": "an output that is an input, a constant or another output",
            "cupy": "no kernel took it, so its meaning runs on CuPy's arrays, on the GPU",
        }.get(step.function, "no kernel took it, so its meaning runs in NumPy")
        if step.declares:
            cause = "the size of its result is known only after it ran"
        layer = layers[step.layer].name if step.layer < len(layers) else ""
        found.append({"layer": layer, "operator": name or step.function, "cause": cause})
    return found


def _print_decisions(decisions: list[Json]) -> None:
    """Rewrites made, counted by rule; near misses with their reasons."""
    made = Counter(item["rule"] for item in decisions if item["made"])
    if made:
        print(f"{sum(made.values())} fusions and rewrites")
        print_table(("count", "rule"), [(count, rule) for rule, count in made.most_common()])
    refused = [item for item in decisions if not item["made"]]
    if refused:
        print(f"{len(refused)} near misses")
        rows = [(item["rule"], ", ".join(item["nodes"]), item["reason"]) for item in refused]
        print_table(("rule", "at", "reason"), rows)
