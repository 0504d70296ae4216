"""`enginefarm compare`: an engine against onnxruntime, or against what its model means."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.errors import RequestError
from storage.records import Json
from workers.cli.options import build_options, read_options
from workers.exit_codes import ExitCode
from workers.opening import Found, find_plan, is_plan, open_engine, usual_feeds
from workers.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from engine.debug.compare import Difference
    from engine.debug.layers import LayerDifference
    from engine.ir.graph import Graph
    from engine.runtime.cuda_engine import CudaEngine
    from engine.runtime.engine import Engine
    from engine.runtime.interface import ProgramInterface

Reference = Callable[[Mapping[str, Any]], Mapping[str, Any]]
TOLERANCE = 1e-3
TOLERANCES = {"float16": 2e-2, "bfloat16": 1e-1}


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--plan", type=click.Path(path_type=Path, exists=True), help="This plan of it.")
@click.option("--samples", type=click.IntRange(1), default=8, show_default=True, help="Inputs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    help="Largest error, in units of an output's spread between the inputs; 1e-3, for an engine "
    "that computes in float16 2e-2, in bfloat16 1e-1.",
)
@click.option(
    "--against",
    type=click.Choice(["onnxruntime", "meaning"]),
    help="The reference; onnxruntime where it is installed and takes the model.",
)
@click.option("--layers", is_flag=True, help="Compare every layer with its meaning too.")
@build_options
@json_option
def command(
    model: Path,
    plan: Path | None,
    samples: int,
    seed: int,
    tolerance: float | None,
    against: str | None,
    layers: bool,
    as_json: bool,
    **choices: Any,
) -> int:
    """Compare an engine of MODEL with a reference on random inputs, output by output.

    Leaves with the code 7 when an error exceeds the tolerance.
    """
    options = read_options(**choices)
    found = Found(plan, model, "plan") if plan is not None else find_plan(str(model), options)
    if is_plan(model):
        raise click.UsageError(f"{model} is a plan; give its model, and the plan by --plan")
    graph = _meaning(model, options)
    _, engine = open_engine(found, compiled=True, threads=None, target=options["target"])
    tolerance = _tolerance(engine) if tolerance is None else tolerance
    title, reference = _reference(model, graph, against)
    feeds = [usual_feeds(engine, seed + index, {}) for index in range(samples)]
    outputs = _compare(engine, reference, feeds)
    differing = [item.name for item in outputs if not item.error <= tolerance]
    fields: Json = {
        "model": str(model),
        "plan": str(found.plan),
        "reference": title,
        "samples": samples,
        "tolerance": tolerance,
        "outputs": [_json(item) for item in outputs],
        "within": not differing,
    }
    if layers:
        fields.update(_layers(engine, model, options, feeds[0], tolerance))
    if as_json:
        print_json(fields)
    else:
        _print(fields)
    if differing or fields.get("first_layer"):
        where = f"output {differing[0]!r}" if differing else f"layer {fields['first_layer']!r}"
        print(f"error: {where} leaves the tolerance of {tolerance:g}", file=sys.stderr)
        return ExitCode.MODEL
    return ExitCode.SUCCESS


def _tolerance(engine: ProgramInterface) -> float:
    """What is taken as equal, by the narrowest float that the engine computes with."""
    from engine.jobs import narrowest

    narrow = narrowest(engine.program)
    return TOLERANCE if narrow is None else TOLERANCES[narrow.value]


def _meaning(model: Path, options: Json) -> Graph:
    """The model's own graph; refused when there is nothing to compare in it."""
    from engine.building import read_model
    from engine.jobs import read_options as engine_options

    graph = read_model(model, engine_options(options))
    chance = next((node for _, node in graph.walk() if not node.op.deterministic), None)
    if chance is not None:
        raise RequestError(
            f"node {chance.name!r} ({chance.kind}) draws random numbers, so no two runs agree"
        )
    return graph


def _reference(model: Path, graph: Graph, against: str | None) -> tuple[str, Reference]:
    """What to compare with and its name; says on stderr why it is not onnxruntime."""
    from engine.debug.interpret import interpret
    from engine.debug.peer import onnxruntime_peer
    from engine.errors import KernelError, MissingExtraError

    if against != "meaning":
        try:
            peer = onnxruntime_peer(model)
            return f"{peer.name} {peer.version}", peer
        except (KernelError, MissingExtraError) as error:
            if against is not None:
                raise
            print(f"comparing with the operators' meanings: {error}", file=sys.stderr)
    return "meaning", lambda feeds: interpret(graph, feeds)


def _compare(
    engine: Engine | CudaEngine, reference: Reference, feeds: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    from engine.debug.compare import over_samples

    found = [engine(item) for item in feeds]
    expected = [reference(item) for item in feeds]
    return [
        over_samples(name, [item[name] for item in found], [item[name] for item in expected])
        for name in engine.output_names
    ]


def _layers(
    engine: Engine | CudaEngine,
    model: Path,
    options: Json,
    feeds: Mapping[str, Any],
    tolerance: float,
) -> Json:
    """Every layer against its meaning on the inputs that the engine itself gave it."""
    from engine.building import optimise, read_model
    from engine.debug.layers import compare_layers
    from engine.jobs import read_options as engine_options

    wanted = engine_options(options)
    graph = optimise(read_model(model, wanted), wanted.precision)
    found: list[LayerDifference] = list(compare_layers(engine, graph, feeds))
    first = next((item.layer for item in found if not item.difference.error <= tolerance), None)
    return {
        "layers": [
            {
                "layer": item.layer,
                "kind": item.kind,
                "tactic": item.tactic,
                **_json(item.difference),
            }
            for item in found
        ],
        "first_layer": first,
    }


def _json(item: Difference) -> Json:
    """A difference as JSON, which has neither infinities nor not-a-numbers."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in item.to_json().items()
    }


def _print(fields: Json) -> None:
    verdict = "within" if fields["within"] else "outside"
    print(
        f"{verdict} a tolerance of {fields['tolerance']:g} of {fields['reference']}, "
        f"{fields['samples']} inputs"
    )
    rows = [(item["name"], *_numbers(item)) for item in fields["outputs"]]
    print_table(("output", "error", "largest", "spread", "note"), rows)
    if "layers" in fields:
        layers = [
            (item["layer"], item["kind"], item["tactic"], *_numbers(item))
            for item in fields["layers"]
        ]
        print_table(("layer", "kind", "tactic", "error", "largest", "spread", "note"), layers)
        if fields["first_layer"]:
            print(f"the first layer outside the tolerance is {fields['first_layer']}")


def _numbers(item: Json) -> tuple[str, str, str, str]:
    keys = ("error", "largest", "spread")
    texts = ["infinite" if item[key] is None else f"{item[key]:.3g}" for key in keys]
    return texts[0], texts[1], texts[2], item["note"]
