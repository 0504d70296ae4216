"""Networks on a GPU beside PyTorch and ONNX Runtime, point by point, all in one process.

    python -m benchmarks.gpu --models resnet50,gpt2 --batches 1,8,32,128 --out DIR --commit HASH

Each point (a model at a batch) is built, checked and timed in turns with its peers, and one row is
appended to ``DIR/gpu.jsonl``; timing records are kept in ``DIR/timing_records.jsonl`` and used by
later points and runs. ``--resume`` leaves out points that have a row of this commit already.

Inputs and outputs are float16 on the device for everyone (token ids: int64). The error of an
output is its distance from the same network in float32, over the distance of the float32 outputs
of eight inputs from their mean; it may be 1.5 times that of float16 PyTorch at most.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import engine
from benchmarks.gpu_build import built, lines
from benchmarks.gpu_models import MODELS, SEED, export, make
from benchmarks.gpu_peers import PEERS, Runner, milliseconds
from engine.building import BuildOptions
from engine.profile import parse_shapes

CHECKED_INPUTS = 8
LARGEST_ERROR_RATIO = 1.5
ROUNDS = 11
ROUND_MS = 12.0


def main() -> None:
    options = _arguments()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = out / "gpu.jsonl"
    done = {(r["model"], r["batch"]) for r in lines(rows) if r["commit"] == options.commit}
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            batches = [int(part) for part in options.batches.split(",")]
            wanted = [b for b in batches if not (options.resume and (name, b) in done)]
            if wanted and time.monotonic() < deadline:
                for row in _model(name, wanted, options, Path(folder), out, deadline):
                    with rows.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row, sort_keys=True) + "\n")
                    print(_brief(row), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--peers", default=",".join(PEERS), help="of: " + ", ".join(PEERS))
    parser.add_argument("--out", default="benchmarks/results/gpu")
    parser.add_argument("--records", action="append", default=[], help="More timing records.")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--tactics", default="", help="Tactic sources; all by default.")
    parser.add_argument("--commit", required=True, help="What the rows say they were made from.")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seconds", type=float, default=math.inf, help="Start no point after.")
    parser.add_argument("--plans", help="A folder in which to keep the plans.")
    return parser.parse_args()


def _model(
    name: str,
    batches: Sequence[int],
    options: argparse.Namespace,
    folder: Path,
    out: Path,
    deadline: float,
) -> Iterator[dict[str, Any]]:
    module = make(name)
    path = export(name, folder, module=module)
    module = module.cuda()
    exact = make(name, half=False).cuda()
    for batch in batches:
        if time.monotonic() > deadline:
            return
        row = {"model": name, "batch": batch, "commit": options.commit, **_environment()}
        try:
            row |= _point(name, batch, module, exact, path, options, out)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {str(error)[:600]}"
        yield row
        torch.cuda.empty_cache()
    path.unlink()


def _environment() -> dict[str, Any]:
    from engine.jobs import toolchain

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "toolchain": toolchain("cuda"),
        "time": int(time.time()),
    }


def _point(
    name: str,
    batch: int,
    module: torch.nn.Module,
    exact: torch.nn.Module,
    path: Path,
    options: argparse.Namespace,
    out: Path,
) -> dict[str, Any]:
    feeds = _timed_feeds(name, batch)
    ours, facts = _ours(name, batch, path, feeds, options, out)
    row: dict[str, Any] = dict(facts)
    row |= _errors(name, batch, ours, module, exact)
    runners = [ours.runner]
    for peer in filter(None, options.peers.split(",")):
        try:
            runners.append(PEERS[peer](name, module, feeds, path))
        except Exception as error:
            row[f"{peer} failed"] = f"{type(error).__name__}: {str(error)[:200]}"
    row |= _timed(runners)
    ours.close()
    return row


def _timed_feeds(name: str, batch: int) -> dict[str, torch.Tensor]:
    """Inputs to time with; no padding, which lets peers leave the mask out."""
    feeds = MODELS[name].inputs(batch, torch.Generator().manual_seed(SEED))
    if "attention_mask" in feeds:
        feeds["attention_mask"] = torch.ones_like(feeds["attention_mask"])
    return {key: feed.cuda() for key, feed in feeds.items()}


class _Ours:
    """Our engine with its buffers bound."""

    def __init__(self, net: Any, feeds: Mapping[str, torch.Tensor], setup_s: float) -> None:
        self.net = net
        self.stream = torch.cuda.Stream()
        self.context = net.create_context(stream=self.stream.cuda_stream)
        self.feeds = {key: feed.clone() for key, feed in feeds.items()}
        (port,) = net.outputs
        found = self.context.run(self.feeds)[port.name]
        self.result = torch.empty_like(torch.from_dlpack(found))
        for key, feed in self.feeds.items():
            self.context.bind(key, feed)
        self.context.bind(port.name, self.result)
        for _ in range(3):
            self.context.run({})
        self.stream.synchronize()
        self.runner = Runner(
            "ours", lambda: self.context.run({}), self.stream, lambda: self.result, setup_s
        )

    def __call__(self, feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        torch.cuda.synchronize()
        for key, feed in feeds.items():
            self.feeds[key].copy_(feed)
        torch.cuda.synchronize()
        self.context.run({})
        self.stream.synchronize()
        return self.result.clone()

    def close(self) -> None:
        self.context.close()


def _ours(
    name: str,
    batch: int,
    path: Path,
    feeds: Mapping[str, torch.Tensor],
    options: argparse.Namespace,
    out: Path,
) -> tuple[_Ours, dict[str, Any]]:
    build = BuildOptions(
        target="cuda",
        level=options.level,
        tactics=tuple(filter(None, options.tactics.split(","))),
        profile=parse_shapes({key: tuple(feed.shape) for key, feed in feeds.items()}),
    )
    plan, facts = built(path, build, f"{name}_{batch}", options, out)
    return _Ours(engine.load(plan), feeds, facts["build_s"]), facts


def _errors(
    name: str, batch: int, ours: _Ours, module: torch.nn.Module, exact: torch.nn.Module
) -> dict[str, Any]:
    """Errors of our outputs and of PyTorch's in float16, over the spread between eight inputs."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    generator = torch.Generator().manual_seed(SEED + 1)
    found, eager, wanted = [], [], []
    with torch.inference_mode():
        for _ in range(max(1, CHECKED_INPUTS // batch)):
            feeds = MODELS[name].inputs(batch, generator)
            feeds = {key: feed.cuda() for key, feed in feeds.items()}
            wide = [f.float() if f.is_floating_point() else f for f in feeds.values()]
            part = [feed[:CHECKED_INPUTS] for feed in wide]
            found.append(ours(feeds)[:CHECKED_INPUTS].float())
            eager.append(module(*feeds.values())[:CHECKED_INPUTS].float())
            wanted.append(exact(*part))
    truth = torch.cat(wanted)
    spread = (truth - truth.mean(0, keepdim=True)).norm().item()
    norm = truth.norm().item()
    result = {
        "error": (torch.cat(found) - truth).norm().item() / spread,
        "eager_error": (torch.cat(eager) - truth).norm().item() / spread,
        "finite": bool(torch.cat(found).isfinite().all()),
        "norm": norm,
        "spread_over_norm": spread / norm,
    }
    ratio = result["error"] / result["eager_error"]
    result["right"] = bool(
        result["finite"] and norm > 0 and spread > 0 and ratio <= LARGEST_ERROR_RATIO
    )
    return result


def _timed(runners: Sequence[Runner]) -> dict[str, Any]:
    """Medians of samples taken in turns, in milliseconds."""
    launches = {}
    for runner in runners:
        milliseconds(runner, 3)
        launches[runner.name] = max(5, min(200, int(ROUND_MS / milliseconds(runner, 5))))
    samples: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for _ in range(ROUNDS):
        for runner in runners:
            samples[runner.name].append(milliseconds(runner, launches[runner.name]))
    medians = {key: statistics.median(found) for key, found in samples.items()}
    row: dict[str, Any] = {f"{key}_ms": value for key, value in medians.items()}
    row |= {f"{runner.name}_setup_s": runner.setup_s for runner in runners}
    row["samples_ms"] = {key: [round(s, 5) for s in found] for key, found in samples.items()}
    peers = {key: value for key, value in medians.items() if key != "ours"}
    if peers:
        row["best_peer"] = min(peers, key=lambda key: peers[key])
        row["ratio"] = min(peers.values()) / medians["ours"]
    return row


def _brief(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"{row['model']} b{row['batch']}: {row['failed']}"
    times = ", ".join(
        f"{key.removesuffix('_ms')} {value:.4f}"
        for key, value in row.items()
        if key.endswith("_ms") and isinstance(value, float)
    )
    return (
        f"{row['model']} b{row['batch']}: {times} ms; ratio {row.get('ratio', 0):.2f}; error "
        f"{row['error']:.2e} / {row['eager_error']:.2e} {'ok' if row['right'] else 'WRONG'}; "
        f"build {row['build_s']:.1f} s; {row['layers']} layers, {row['launches']} launches; "
        f"{row['tactics']}"
    )


if __name__ == "__main__":
    sys.exit(main())
