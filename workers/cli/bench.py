"""`enginefarm bench`: latency, throughput and layers of an engine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storage.records import Json
from workers.cli.inspect import host_steps_of
from workers.cli.options import build_options, read_options
from workers.cli.run import is_compiled
from workers.opening import (
    find_plan,
    named_words,
    open_engine,
    read_feeds,
    usual_feeds,
    write_json,
)
from workers.output import duration_text, json_option, print_fields, print_json, print_table

if TYPE_CHECKING:
    from engine.runtime.engine import Engine
    from engine.runtime.interface import ProgramInterface
    from workers.bench_timing import Length

LAYER_RUNS = 11


@click.command()
@click.argument("what", metavar="PLAN|MODEL|NAME")
@click.option("--inputs", type=click.Path(path_type=Path, exists=True), help="A .npz file.")
@click.option("--batch", type=click.IntRange(1), help="Size of the first axis, where symbolic.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help="A symbolic size.")
@click.option("--warmup", type=click.IntRange(0), default=3, show_default=True, help="Runs before.")
@click.option("--seconds", type=click.FloatRange(0.01), default=3.0, show_default=True)
@click.option("--iterations", type=click.IntRange(1), help="Runs to measure, instead of seconds.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine and of the peer.")
@click.option(
    "--contexts",
    "--streams",
    type=click.IntRange(1, 256),
    default=1,
    help="Contexts at once, each in a thread; on a GPU each on a stream of its own.",
)
@click.option("--graph/--no-graph", default=True, help="Of a GPU: launch runs as CUDA graphs.")
@click.option(
    "--transfers/--no-transfers",
    default=False,
    help="Of a GPU: inputs and outputs in host memory, or (without) on the device.",
)
@click.option("--peer", type=click.Choice(["onnxruntime"]), help="Measure this in turns with it.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="The peer's model.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Of turns.")
@click.option("--layers", is_flag=True, help="Measure every layer too.")
@click.option("--numpy", "never_compile", is_flag=True, help="Run on NumPy, without a compiler.")
@click.option("--export", type=click.Path(path_type=Path), help="Write everything to a JSON file.")
@build_options
@json_option
def command(
    what: str,
    inputs: Path | None,
    batch: int | None,
    sizes: tuple[str, ...],
    warmup: int,
    seconds: float,
    iterations: int | None,
    threads: int | None,
    contexts: int,
    graph: bool,
    transfers: bool,
    peer: str | None,
    model: Path | None,
    rounds: int,
    layers: bool,
    never_compile: bool,
    export: Path | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Measure the latency and throughput of an engine, and what each layer takes."""
    from engine.runtime.engine import Engine
    from workers import bench_gpu
    from workers.bench_timing import Length

    options = read_options(**choices)
    found = find_plan(what, options)
    peer_model = model or found.model
    if peer is not None and peer_model is None:
        raise click.UsageError("--peer needs the model that it runs: give it with --model FILE")
    compiled, target = not never_compile, options["target"]
    plan, engine = open_engine(found, compiled=compiled, threads=threads, target=target)
    feeds = _feeds(engine, inputs, {**_batch(engine, batch), **named_words(sizes, "--size")})
    length = Length(iterations, seconds, warmup)
    fields: Json = {
        "plan": str(found.plan),
        "model": None if found.model is None else str(found.model),
        "contexts": contexts,
        "inputs": {name: [*getattr(value, "shape", [])] for name, value in feeds.items()},
    }
    if not isinstance(engine, Engine):
        if peer is not None:
            raise click.UsageError("--peer is for engines of a CPU; leave it out")
        way = bench_gpu.Way(contexts, graph, transfers, layers)
        fields |= {"host_steps": host_steps_of(plan)}
        fields |= bench_gpu.measured(engine, feeds, length, way)
    else:
        fields |= _on_cpu(engine, feeds, length, contexts, layers=layers)
        if peer is not None and peer_model is not None:
            fields["peer"] = _beside_peer(engine, feeds, peer_model, rounds, length)
    if export is not None:
        write_json(export, fields)
    if as_json:
        print_json(fields)
    elif not isinstance(engine, Engine):
        bench_gpu.show(fields)
    else:
        _print(fields)


def _batch(engine: ProgramInterface, batch: int | None) -> dict[str, str]:
    """The symbols of first axes, all of the one size."""
    if batch is None:
        return {}
    axes = engine.program.symbols
    first = [s.name for s in axes if s.source[0] == "input" and s.source[2] == 0]
    if not first:
        raise click.UsageError("no input has a symbolic first axis; build with --shape to get one")
    return {name: str(batch) for name in first}


def _feeds(
    engine: ProgramInterface, archive: Path | None, sizes: Mapping[str, str]
) -> dict[str, Any]:
    given = read_feeds({}, archive)
    return {**usual_feeds(engine, 0, sizes, without=given), **given}


def _on_cpu(
    engine: Engine, feeds: Mapping[str, Any], length: Length, contexts: int, *, layers: bool
) -> Json:
    """What was measured on a CPU, times in seconds."""
    from dataclasses import asdict

    from workers.bench_layers import layer_costs
    from workers.bench_timing import time_contexts

    summary = time_contexts(engine, feeds, length, contexts)
    fields: Json = {
        "mode": "compiled" if is_compiled(engine) else "numpy",
        "threads": engine.threads,
        "latency": asdict(summary),
    }
    if layers:
        fields["layers"] = [cost.to_json() for cost in layer_costs(engine, feeds, LAYER_RUNS)]
    return fields


def _beside_peer(
    engine: Engine, feeds: Mapping[str, Any], model: Path, rounds: int, length: Length
) -> Json:
    """Engine and onnxruntime in turns, on as many threads each."""
    from engine.debug.peer import onnxruntime_peer
    from workers.bench_timing import take_turns

    peer = onnxruntime_peer(model, engine.threads)
    with engine.create_context() as context:
        ours, theirs = take_turns((lambda: context.run(feeds), lambda: peer(feeds)), rounds, length)
    return {
        "name": peer.name,
        "version": peer.version,
        "threads": engine.threads,
        "rounds": rounds,
        "engine_median": statistics.median(ours),
        "peer_median": statistics.median(theirs),
        "speed_ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
    }


def _print(fields: Json) -> None:
    latency = fields["latency"]
    where = f"{fields['threads']} threads, {fields['contexts']} contexts"
    shapes = ", ".join(f"{name}{shape}" for name, shape in fields["inputs"].items())
    print_fields(
        f"{latency['runs']} runs, {fields['mode']}, {where}, {shapes}",
        {
            "least": duration_text(latency["least"]),
            "median": duration_text(latency["median"]),
            "p90": duration_text(latency["p90"]),
            "p99": duration_text(latency["p99"]),
            "throughput": f"{latency['per_second']:.2f} runs/s",
        },
    )
    if "peer" in fields:
        peer = fields["peer"]
        print_fields(
            f"beside {peer['name']} {peer['version']}, median of {peer['rounds']} rounds",
            {
                "engine": duration_text(peer["engine_median"]),
                peer["name"]: duration_text(peer["peer_median"]),
                "ratio": f"{peer['speed_ratio']:.3f} times the speed of {peer['name']}",
            },
        )
    if "layers" in fields:
        header = ("layer", "kind", "tactic", "time", "share", "GFLOP/s", "GB/s")
        print_table(header, [_row(layer) for layer in fields["layers"]])


def _row(layer: Json) -> tuple[object, ...]:
    seconds = max(layer["seconds"], 1e-9)
    rates = (layer[key] for key in ("flops", "nbytes"))
    texts = ("" if work is None else f"{work / seconds / 1e9:.1f}" for work in rates)
    share = f"{100 * layer['share']:.1f} %"
    spent = duration_text(layer["seconds"])
    return (layer["layer"], layer["kind"], layer["tactic"], spent, share, *texts)
