"""`enginefarm demo`: a real network built, run, checked, and found again."""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from scheduler.keys import normalise_options
from storage.records import Json
from workers.building import Wish, make_engine
from workers.cli.run import is_compiled
from workers.compiler import load_compiler
from workers.exit_codes import ExitCode
from workers.failures import InfrastructureError
from workers.home import place_engine
from workers.opening import Found, open_engine
from workers.output import announced_home, json_option, print_fields, print_json, size_text

if TYPE_CHECKING:
    from engine.runtime.cuda_engine import CudaEngine
    from engine.runtime.engine import Engine

TOLERANCE = 1e-3


@click.command()
@json_option
def command(as_json: bool) -> int:
    """Build a ShuffleNet, run it, check its outputs against stored ones, and build it again."""
    from workers.demo import network

    home, compiler = announced_home(), load_compiler()
    model = network.write_model(home.folder / "demo")
    wish = Wish(model=model, options=normalise_options(target="cpu"))
    print(
        "building a ShuffleNet of 1.4 million weights; at first this takes a while", file=sys.stderr
    )
    first = make_engine(home, wish, compiler)
    path = place_engine(home, first.engine, None)
    began = time.perf_counter()
    plan, engine = open_engine(Found(path, model, first.answer), compiled=True, threads=None)
    loaded = time.perf_counter() - began
    fields: Json = {
        "model": str(model),
        "engine": str(path),
        "size": first.engine.nbytes,
        "key": first.engine.key,
        "answer": first.answer,
        "seconds": round(first.seconds, 3),
        "layers": len(plan.program.layers),
        "fusions": sum(1 for item in plan.decisions if item.get("made")),
        "load_seconds": round(loaded, 3),
        "mode": "compiled" if is_compiled(engine) else "numpy",
        **_check(engine),
    }
    again = make_engine(home, wish, compiler)
    fields["again"] = {"answer": again.answer, "seconds": round(again.seconds, 3)}
    fields["home"] = str(home.folder)
    if as_json:
        print_json(fields)
    else:
        _print(fields)
    if again.answer != "hit":
        raise InfrastructureError(f"the second build was no hit, its answer was {again.answer}")
    if not fields["error"] <= TOLERANCE:
        print(
            f"error: the outputs are off by {fields['error']:.3g} of their spread", file=sys.stderr
        )
        return ExitCode.INTEGRITY
    return ExitCode.SUCCESS


def _check(engine: Engine | CudaEngine) -> Json:
    """Run the stored images; the error against the stored outputs and the median latency."""
    from engine.debug.compare import error
    from workers.demo import network

    times, found = [], []
    for image in network.images():
        began = time.perf_counter()
        result: Any = engine({network.INPUT: image})[network.OUTPUT]
        times.append(time.perf_counter() - began)
        found.append(result)
    return {
        "images": len(found),
        "classes": [int(result.argmax()) for result in found],
        "median_seconds": statistics.median(times),
        "error": error(found, network.expected()),
        "tolerance": TOLERANCE,
    }


def _print(fields: Json) -> None:
    built = {"hit": "found in {:.2f} s (built before)"}.get(fields["answer"], "built in {:.1f} s")
    kernels = "compiled C" if fields["mode"] == "compiled" else "NumPy (no C compiler)"
    verdict = "the same" if fields["error"] <= TOLERANCE else "DIFFERENT"
    print_fields(
        f"ShuffleNet: {built.format(fields['seconds'])}",
        {
            "layers": f"{fields['layers']} after {fields['fusions']} fusions and rewrites",
            "kernels": f"{kernels}, loaded in {fields['load_seconds']:.2f} s",
            "run": f"{fields['images']} images, {1000 * fields['median_seconds']:.1f} ms each, "
            f"classes {', '.join(map(str, fields['classes']))}",
            "outputs": f"{verdict} as stored: off by {fields['error']:.2g} of their spread",
            "again": f"{fields['again']['answer']} in {fields['again']['seconds']:.2f} s",
            "model": fields["model"],
            "engine": f"{fields['engine']} ({size_text(fields['size'])})",
            "farm": fields["home"],
        },
    )
    print("next: enginefarm bench, inspect or compare with the model above; enginefarm build yours")
