"""What counts on a GPU beside the time of a run: loading, shapes, streams, memory, building.

    python -m benchmarks.gpu_other --out DIR --work DIR --commit HASH
    python -m benchmarks.gpu_other --only load,imports --resume ...

Each part appends its rows to ``DIR/gpu_other.jsonl``; ``--resume`` leaves out parts that have rows
of this commit. Everything that is timed runs in a process of its own, cold parts with empty cache
folders. Models, plans and timing records are made in the work folder and used again. ``--plans``
names a folder of plans that `benchmarks.gpu` kept: those are what arenas and two streams are
measured on; without them, plans built without tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_other_tasks import unseen_batches

__all__ = ["PARTS", "Bench", "main"]

ROOT = Path(__file__).parent.parent
IMAGE = [3, 224, 224]
MODELS = (
    *("resnet50", "bert_base", "vit_b_16", "gpt2"),
    *("mobilenet_v2", "efficientnet_b0", "unet"),
)
LEAST, USUAL, GREATEST = 1, 8, 32
UNSEEN = 20
#: Batches for which engines of their own are built, to compare with.
COMPARED = (3, 12, 27)
LIMIT_S = 400.0

Row = dict[str, Any]


@dataclass(slots=True)
class Bench:
    """Where things are, and how tasks are run."""

    work: Path
    plans: Path | None = None
    level: int = 2
    repeats: int = 3
    records: tuple[str, ...] = ()

    def task(self, name: str, /, *, cache: Path | None = None, **options: Any) -> Any:
        """What a task answers, run in a process of its own; RuntimeError with its words."""
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu_other_tasks", name, json.dumps(options)],
            cwd=ROOT,
            env=self.environment(cache or self.work / "cache"),
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr.strip()[-1500:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def environment(self, cache: Path) -> dict[str, str]:
        """Every cache of ours and of the compilers lies in one folder."""
        paths = {
            "ENGINEFARM_CACHE": cache,
            "ENGINEFARM_HOME": cache / "home",
            "TRITON_CACHE_DIR": cache / "triton",
            "CUDA_CACHE_PATH": cache / "driver",
        }
        return {
            **os.environ,
            **{key: str(path) for key, path in paths.items()},
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])]),
        }

    def model(self, name: str) -> Path:
        """An exported model of the benchmark, made once."""
        path = self.work / f"{name}.onnx"
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=self.work) as folder:
                made = self.task("export", name=name, folder=folder)
                Path(made["model"]).replace(path)
        return path

    def plan(self, name: str, shapes: dict[str, list[Any]], title: str, **options: Any) -> Path:
        """A plan of a model, built once; without tuning unless a level is given."""
        path = self.work / f"{title}.engine"
        if not path.is_file():
            partial = path.with_suffix(".partial")
            model = str(self.model(name))
            self.task("build", model=model, plan=str(partial), shapes=shapes, **options)
            partial.replace(path)
        return path

    def kept_plan(self, name: str, batch: int) -> Path | None:
        """A plan that `benchmarks.gpu` kept."""
        path = None if self.plans is None else self.plans / f"{name}_{batch}.engine"
        return path if path is not None and path.is_file() else None


def row(name: str, value: float, unit: str, **limits: Any) -> Row:
    """A measured value with the limit to reach: ``most`` or ``least``; the rest is detail."""
    most, least = limits.pop("most", None), limits.pop("least", None)
    reached = (most is None or value <= most) and (least is None or value >= least)
    found = {"name": name, "value": value, "unit": unit, "reached": reached, "detail": limits}
    return {
        **found,
        **({} if most is None else {"most": most}),
        **({"least": least} if least else {}),
    }


def part_imports(bench: Bench) -> Iterator[Row]:
    """Imports for running an engine."""
    found = [bench.task("import") for _ in range(bench.repeats + 1)][1:]  # the first reads files
    seconds = statistics.median(item["seconds"] for item in found)
    yield row("imports for running a CUDA engine", seconds, "s", most=0.5, runs=found)


def part_load(bench: Bench) -> Iterator[Row]:
    """A ResNet-50 plan to its first output, without libraries and with cuDNN."""
    shapes = {"x": [1, *IMAGE]}
    plain = bench.plan("resnet50", shapes, "resnet50_plain", tactics=["triton", "nvrtc"])
    options = {"plan": str(plain), "shape": shapes["x"]}
    found = [bench.task("first_output", **options) for _ in range(bench.repeats)]
    yield _first("ResNet-50 to first output, triton,nvrtc", found, 0.3)
    library = bench.plan("resnet50", shapes, "resnet50_cudnn", tactics=["cudnn", "nvrtc"])
    options = {"plan": str(library), "shape": shapes["x"], "library": "cudnn"}
    cold = []
    with tempfile.TemporaryDirectory(dir=bench.work) as folder:
        for turn in range(2):
            cold.append(bench.task("first_output", cache=Path(folder) / f"{turn}", **options))
        cache = Path(folder) / "0"
        warm = [bench.task("first_output", cache=cache, **options) for _ in range(bench.repeats)]
    yield _first("ResNet-50 to first output, cuDNN with its cache warm", warm, 0.5)
    yield _first("ResNet-50 to first output, cuDNN with its cache cold", cold, 1.5)


def _first(name: str, found: Sequence[dict[str, Any]], most: float) -> Row:
    seconds = statistics.median(item["seconds"] for item in found)
    assert all(item["finite"] for item in found), f"{name}: the output is not finite"
    return row(name, seconds, "s", most=most, runs=list(found))


def part_shapes(bench: Bench) -> Iterator[Row]:
    """First runs at unseen batches of one engine, and how fast it runs there."""
    profile = {"x": [f"batch={LEAST}..{USUAL}..{GREATEST}", *IMAGE]}
    shared = {"level": bench.level, "records": list(bench.records)}
    plan = bench.plan("resnet50", profile, f"resnet50_dynamic_{bench.level}", **shared)
    batches = list(dict.fromkeys([*COMPARED, *unseen_batches(LEAST, GREATEST, USUAL, UNSEEN)]))
    found = bench.task(
        "unseen",
        plan=str(plan),
        shape=IMAGE,
        batches=batches[:UNSEEN],
        usual=USUAL,
        timed=list(COMPARED),
    )
    extra = found["extra_ms"]
    name = "first run of an unseen batch over launching it, worst of 20"
    yield row(name, max(extra.values()), "ms", most=10, by_batch=extra)
    ratios = {}
    for batch in COMPARED:
        title = f"resnet50_{batch}_{bench.level}"
        own = bench.plan("resnet50", {"x": [batch, *IMAGE]}, title, **shared)
        alone = bench.task("steady", plan=str(own), shape=[batch, *IMAGE])["run_ms"]
        ratios[str(batch)] = found["run_ms"][str(batch)] / alone
    name = "run at an unseen batch over an engine built for it, worst"
    yield row(name, max(ratios.values()), "", most=1.3, ratios=ratios, run_ms=found["run_ms"])


def part_streams(bench: Bench) -> Iterator[Row]:
    """Two contexts at once."""
    plan = bench.kept_plan("resnet50", 1)
    title = "tuned" if plan else "not tuned"
    shapes = {"x": [1, *IMAGE]}
    plan = plan or bench.plan("resnet50", shapes, "resnet50_plain", tactics=["triton", "nvrtc"])
    found = bench.task("two", plan=str(plan), shape=shapes["x"])
    name = f"throughput of two contexts over one, ResNet-50 b1, {title}"
    yield row(name, found["ratio"], "", least=1.5, **found)


def part_arena(bench: Bench) -> Iterator[Row]:
    """Memory of contexts over what is alive at once, for every plan that was kept."""
    kept = [(model, b) for model in MODELS for b in (1, 8, 32, 128) if bench.kept_plan(model, b)]
    ratios = {
        f"{model} b{batch}": bench.task("arena", plan=str(bench.kept_plan(model, batch)))["ratio"]
        for model, batch in kept
    }
    if not ratios:
        plan = bench.plan(
            "resnet50", {"x": [1, *IMAGE]}, "resnet50_plain", tactics=["triton", "nvrtc"]
        )
        ratios["resnet50 b1"] = bench.task("arena", plan=str(plan))["ratio"]
    name = f"arena over the lower bound, worst of {len(ratios)} plans"
    yield row(name, max(ratios.values()), "", most=1.05, ratios=ratios)


def part_build(bench: Bench) -> Iterator[Row]:
    """ResNet-50 b32 at level 3 from nothing, then with the timing records of that build."""
    model = str(bench.model("resnet50"))
    shapes = {"x": [32, *IMAGE]}
    with tempfile.TemporaryDirectory(dir=bench.work) as name:
        folder = Path(name)
        records = str(folder / "records.jsonl")
        shared = {"model": model, "shapes": shapes, "level": 3}
        for title, most, given in (("cold", 40, []), ("with timing records", 4, [records])):
            found = bench.task(
                "build",
                cache=folder / title,
                plan=str(folder / f"{title}.engine"),
                records=given,
                keep=str(records) if not given else "",
                **shared,
            )
            yield row(
                f"build of ResNet-50 b32, level 3, {title}",
                found["seconds"],
                "s",
                most=most,
                **found,
            )


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "imports": part_imports,
    "load": part_load,
    "streams": part_streams,
    "arena": part_arena,
    "build": part_build,
    "shapes": part_shapes,
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_other")
    parser.add_argument("--only", default=",".join(PARTS), help="parts with commas")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    parser.add_argument("--work", type=Path, required=True, help="models, plans and caches")
    parser.add_argument("--plans", type=Path, help="plans that benchmarks.gpu kept")
    parser.add_argument("--level", type=int, default=2, help="of the part shapes")
    parser.add_argument("--records", action="append", default=[], help="files of timing records")
    parser.add_argument("--commit", required=True, help="what the rows say they were made from")
    parser.add_argument("--resume", action="store_true", help="leave out parts that have rows")
    options = parser.parse_args(words)
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        options.work.resolve(),
        options.plans and options.plans.resolve(),
        options.level,
        records=tuple(str(Path(path).resolve()) for path in options.records),
    )
    path = options.out / "gpu_other.jsonl"
    known = path.read_text("utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in known]
    done = {item["part"] for item in rows if item["commit"] == options.commit}
    failed = 0
    for name in options.only.split(","):
        if not (options.resume and name in done):
            failed += not _measured(name, bench, path, options.commit)
    return 1 if failed else 0


def _measured(part: str, bench: Bench, path: Path, commit: str) -> bool:
    """Run a part and keep its rows, all of them or none; whether every limit was reached."""
    begin = time.monotonic()
    try:
        found = list(PARTS[part](bench))
    except (RuntimeError, AssertionError, subprocess.TimeoutExpired) as error:
        print(f"{part}: {error}", flush=True)
        return False
    facts = {"part": part, "commit": commit, "time": int(time.time())}
    with path.open("a", encoding="utf-8") as file:
        for item in found:
            file.write(json.dumps({**facts, **item}, sort_keys=True) + "\n")
    for item in found:
        limit = f"most {item['most']:g}" if "most" in item else f"least {item['least']:g}"
        verdict = "reached" if item["reached"] else "NOT reached"
        print(f"{item['name']}: {item['value']:.3f} {item['unit']} ({limit}) {verdict}")
    print(f"{part} took {time.monotonic() - begin:.0f} s", flush=True)
    return all(item["reached"] for item in found)


if __name__ == "__main__":
    sys.exit(main())
