"""`enginefarm run`: an engine run once, on given or random inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storage.records import Json
from workers.cli.options import build_options, read_options
from workers.opening import find_plan, named_words, open_engine, read_feeds, usual_feeds
from workers.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from engine.runtime.cuda_engine import CudaEngine
    from engine.runtime.engine import Engine


@click.command()
@click.argument("what", metavar="PLAN|MODEL|NAME")
@click.option("--input", "files", multiple=True, metavar="NAME=FILE.npy", help="One input's array.")
@click.option(
    "--inputs",
    "archive",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A .npz file with arrays by input name.",
)
@click.option("--random", "is_random", is_flag=True, help="Random values for the other inputs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of --random.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help="A symbolic size of them.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the outputs, a .npz file.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@build_options
@json_option
def command(
    what: str,
    files: tuple[str, ...],
    archive: Path | None,
    is_random: bool,
    seed: int,
    sizes: tuple[str, ...],
    output: Path | None,
    threads: int | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Run an engine once and show its outputs; a MODEL is built first when it has to be."""
    paths = {name: Path(path) for name, path in named_words(files, "--input").items()}
    given = read_feeds(paths, archive)
    if not given and not is_random:
        raise click.UsageError("give the inputs by --input or --inputs, or take --random ones")
    options = read_options(**choices)
    found = find_plan(what, options)
    _, engine = open_engine(found, compiled=True, threads=threads, target=options["target"])
    feeds = dict(given)
    if is_random:
        wanted = named_words(sizes, "--size")
        feeds = {**usual_feeds(engine, seed, wanted, without=given), **given}
    results = engine(feeds)
    if output is not None:
        _save(output, results)
    shown = {name: describe(value) for name, value in results.items()}
    if as_json:
        print_json(
            {
                "plan": str(found.plan),
                "answer": found.answer,
                "inputs": {name: describe(value) for name, value in feeds.items()},
                "outputs": shown,
                "output": None if output is None else str(output),
                "compiled": is_compiled(engine),
            }
        )
        return
    print_table(("output", "type", "mean", "deviation", "least", "greatest"), _rows(shown))
    if output is not None:
        print(f"written to {output}")


def is_compiled(engine: Engine | CudaEngine) -> bool:
    """Whether the engine runs compiled kernels; false when NumPy serves in their place."""
    kernels = getattr(engine, "kernels", None)  # those of a GPU are compiled with the plan
    if kernels is None:
        return bool(engine.program.functions)
    return bool(engine.program.kernels) and kernels.addresses is not None


def describe(value: Any) -> Json:
    """A value's dtype, shape and, for numbers, a few statistics; JSON has no not-a-number."""
    import numpy as np

    if not isinstance(value, np.ndarray):
        length = len(value) if isinstance(value, list | tuple | dict) else None
        return {"type": type(value).__name__, "length": length}
    fields: Json = {"dtype": str(value.dtype), "shape": list(value.shape)}
    if value.dtype == object or value.dtype.kind == "c" or value.size == 0:
        return fields
    numbers = value.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    fields["not_finite"] = int(numbers.size - finite.size)
    if finite.size:
        fields["mean"], fields["deviation"] = float(finite.mean()), float(finite.std())
        fields["least"], fields["greatest"] = float(finite.min()), float(finite.max())
    return fields


def _rows(shown: dict[str, Json]) -> list[tuple[object, ...]]:
    rows = []
    for name, fields in shown.items():
        kind = fields.get("type") or f"{fields['dtype']}{fields['shape']}"
        numbers = (fields.get(key) for key in ("mean", "deviation", "least", "greatest"))
        texts = ("" if number is None else f"{number:.6g}" for number in numbers)
        rows.append((name, kind, *texts))
    return rows


def _save(path: Path, results: dict[str, Any]) -> None:
    """Write the outputs that are arrays of numbers; others have no place in such a file."""
    import io
    import zipfile

    import numpy as np

    from storage.disk import disk_errors, write_whole

    unfit = [
        name
        for name, value in results.items()
        if not isinstance(value, np.ndarray) or value.dtype == object
    ]
    if unfit:
        raise click.UsageError(f"output {unfit[0]!r} is no array of numbers; leave --output out")
    buffer = io.BytesIO()
    # What numpy.savez writes, for any name of an output: its own arguments take two of them.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in results.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)
    with disk_errors(str(path)):
        write_whole(path, [buffer.getvalue()])
