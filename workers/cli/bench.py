"""`enginefarm bench`: latency, throughput and layers of an engine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storage.records import Json
from workers.cli.options import build_options, read_options
from workers.cli.run import is_compiled
from workers.opening import (
    Found,
    find_plan,
    named_words,
    open_engine,
    read_feeds,
    usual_feeds,
    write_json,
)
from workers.output import json_option, print_fields, print_json, print_table

if TYPE_CHECKING:
    from engine.runtime.engine import Engine
    from workers.bench_timing import Length, Summary

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
@click.option("--contexts", type=click.IntRange(1, 256), default=1, help="Contexts at once.")
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
    from workers.bench_timing import Length, time_contexts

    found = find_plan(what, read_options(**choices))
    peer_model = model or found.model
    if peer is not None and peer_model is None:
        raise click.UsageError("--peer needs the model that it runs: give it with --model FILE")
    _, engine = open_engine(found, compiled=not never_compile, threads=threads)
    feeds = _feeds(engine, inputs, {**_batch(engine, batch), **named_words(sizes, "--size")})
    length = Length(iterations, seconds, warmup)
    summary = time_contexts(engine, feeds, length, contexts)
    fields = _fields(found, engine, feeds, summary, contexts)
    if peer is not None and peer_model is not None:
        fields["peer"] = _beside_peer(engine, feeds, peer_model, rounds, length)
    if layers:
        from workers.bench_layers import layer_costs

        fields["layers"] = [cost.to_json() for cost in layer_costs(engine, feeds, LAYER_RUNS)]
    if export is not None:
        write_json(export, fields)
    if as_json:
        print_json(fields)
    else:
        _print(fields)


def _batch(engine: Engine, batch: int | None) -> dict[str, str]:
    """The symbols of first axes, all of the one size."""
    if batch is None:
        return {}
    axes = engine.program.symbols
    first = [s.name for s in axes if s.source[0] == "input" and s.source[2] == 0]
    if not first:
        raise click.UsageError("no input has a symbolic first axis; build with --shape to get one")
    return {name: str(batch) for name in first}


def _feeds(engine: Engine, archive: Path | None, sizes: Mapping[str, str]) -> dict[str, Any]:
    given = read_feeds({}, archive)
    return {**usual_feeds(engine, 0, sizes, without=given), **given}


def _fields(
    found: Found, engine: Engine, feeds: Mapping[str, Any], summary: Summary, contexts: int
) -> Json:
    """What was measured, times in seconds."""
    from dataclasses import asdict

    return {
        "plan": str(found.plan),
        "model": None if found.model is None else str(found.model),
        "mode": "compiled" if is_compiled(engine) else "numpy",
        "threads": engine.threads,
        "contexts": contexts,
        "inputs": {name: [*getattr(value, "shape", [])] for name, value in feeds.items()},
        "latency": asdict(summary),
    }


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
            "least": _time(latency["least"]),
            "median": _time(latency["median"]),
            "p90": _time(latency["p90"]),
            "p99": _time(latency["p99"]),
            "throughput": f"{latency['per_second']:.2f} runs/s",
        },
    )
    if "peer" in fields:
        peer = fields["peer"]
        print_fields(
            f"beside {peer['name']} {peer['version']}, median of {peer['rounds']} rounds",
            {
                "engine": _time(peer["engine_median"]),
                peer["name"]: _time(peer["peer_median"]),
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
    return (layer["layer"], layer["kind"], layer["tactic"], _time(layer["seconds"]), share, *texts)


def _time(seconds: float) -> str:
    """A time for people."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.3f} s"
