"""Run onnx's backend suite through the public API and write which cases fail, and why.

    python -m benchmarks.backend_suite                    both totals, all cases
    python -m benchmarks.backend_suite --no-reference     only without the reference step
    python -m benchmarks.backend_suite --filter softmax   only cases with this in their name
    python -m benchmarks.backend_suite --peer             onnxruntime instead
    python -m benchmarks.backend_suite --target cuda -j 16                on the GPU
    python -m benchmarks.backend_suite --target cuda --tactics nvrtc,triton,numpy
    python -m benchmarks.backend_suite --target cuda:sm90                 only assembled

Each case is built, saved, loaded and run. Every case runs without the reference step first; what
fails may then use it. The result goes to ``benchmarks/results/backend_suite.json``, that of a GPU
to ``backend_suite_cuda.json``, with what ran where. For a GPU that is only described, a case passes
when its plan is assembled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import backend_cases, isolated

RESULTS = Path(__file__).parent / "results"
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Setting:
    """For what cases are built, and by which sources of tactics (all when none is given)."""

    target: str = "cpu"
    tactics: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether the target is here, and not only described."""
        return not self.target.startswith("cuda:") or self.target[5:].isdigit()

    def options(self, reference: bool) -> dict[str, Any]:
        """The options of a build."""
        found: dict[str, Any] = {"target": self.target, "level": 0, "reference": reference}
        return {**found, "tactics": self.tactics} if self.tactics else found


CPU = Setting()
#: Kinds and tactics of the layers of a plan.
Layers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: why it fails without the reference step and with it; None means that it passes."""

    name: str
    kind: str
    without_reference: str | None
    with_reference: str | None
    layers: tuple[tuple[str, str], ...] = ()


def attempt(
    implementation: Any,
    case: backend_cases.Case,
    *,
    reference: bool,
    setting: Setting = CPU,
    layers: Layers | None = None,
) -> str | None:
    """Build, save, load and run one case; the reason why it fails, or None.

    ``layers`` is filled with the layers of the plan.
    """
    try:
        with (
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
            tempfile.TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")
            plan = implementation.build(case.model(), **setting.options(reference))
            if layers is not None:
                layers += [(layer.kind, layer.tactic) for layer in plan.program.layers]
            path = Path(folder) / "case.engine"
            plan.save(path)
            if not setting.runs:
                return None
            network = implementation.load(path, compile="wait")
            for inputs, expected in case.data():
                case.check(network(inputs), expected)
    except Exception as error:
        return reason(error).replace(os.path.basename(folder) + os.sep, "")
    return None


def reason(error: BaseException) -> str:
    """One line about an error: its class, its message, and the innermost line of the engine."""
    text = " ".join(str(error).split())[:300]
    text = text.replace(tempfile.gettempdir() + os.sep, "")
    root = str(Path(__file__).parent.parent)
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(os.path.join(root, "engine"))
    ]
    place = f" ({os.path.relpath(ours[-1].filename, root)}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {text}{place}"


def run(
    cases: Sequence[backend_cases.Case],
    implementation: Any,
    *,
    processes: int,
    only_without: bool = False,
    setting: Setting = CPU,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """The outcome of every case, in the order given."""
    on_gpu = setting.target != "cpu"
    layers: dict[int, Layers] = {}

    def perform(index: int, reference: bool) -> Any:
        found: Layers | None = [] if on_gpu else None
        reason = attempt(
            implementation, cases[index], reference=reference, setting=setting, layers=found
        )
        answer = reason, found or []
        # After a fault nothing runs any more on the GPU in that process.
        return isolated.Last(answer) if on_gpu and reason is not None else answer

    def phase(chosen: Sequence[int], reference: bool) -> dict[int, str | None]:
        reasons: dict[int, str | None] = {}
        work = isolated.run(
            lambda index: perform(index, reference), chosen, processes=processes, limit_s=LIMIT_S
        )
        for index, answer, lost in work:
            reasons[index] = lost
            if answer is not None:
                reasons[index], layers[index] = answer
            progress(len(reasons), len(chosen))
        return reasons

    without = phase(range(len(cases)), False)
    failed = [index for index, found in without.items() if found is not None]
    again = {} if only_without else phase(failed, True)
    return [
        Outcome(
            case.name, case.kind, without[i], again.get(i, without[i]), tuple(layers.get(i, ()))
        )
        for i, case in enumerate(cases)
    ]


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What is stored: totals, totals by kind, and each failing case with its reasons."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    good = Counter(outcome.kind for outcome in outcomes if outcome.with_reference is None)
    alone = Counter(outcome.kind for outcome in outcomes if outcome.without_reference is None)
    return {
        "onnx": onnx.__version__,
        "cases": len(outcomes),
        "passed": good.total(),
        "passed_without_reference": alone.total(),
        "kinds": {
            kind: {"cases": n, "passed": good[kind], "passed_without_reference": alone[kind]}
            for kind, n in sorted(kinds.items())
        },
        "failures": {
            outcome.name: {
                "kind": outcome.kind,
                "without_reference": outcome.without_reference,
                "with_reference": outcome.with_reference,
            }
            for outcome in sorted(outcomes, key=lambda outcome: outcome.name)
            if outcome.without_reference is not None
        },
    }


def places(outcomes: Sequence[Outcome], setting: Setting) -> dict[str, Any]:
    """What is stored of a GPU beside: layers by tactic, and which operators ran on the host."""
    tactics = Counter(tactic for outcome in outcomes for _, tactic in outcome.layers)
    on_host = [
        {kind for kind, tactic in outcome.layers if tactic.split(".")[0] == "numpy"}
        for outcome in outcomes
    ]
    cases = Counter(kind for kinds in on_host for kind in kinds)
    return {
        "target": setting.target,
        "tactic_sources": list(setting.tactics),
        "run": setting.runs,
        "layers": dict(sorted(tactics.items())),
        "cases_without_host_layers": sum(not kinds for kinds in on_host),
        "cases_by_operator_on_host": dict(cases.most_common()),
    }


def show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backend_suite")
    parser.add_argument("--no-reference", action="store_true", help="never the reference step")
    parser.add_argument("--filter", default="", help="part of the names of the cases to run")
    parser.add_argument("-j", type=int, default=2, dest="processes", help="processes, usually 2")
    parser.add_argument("--peer", action="store_true", help="run onnxruntime instead")
    parser.add_argument("--implementation", default="engine", help="a module with build and load")
    parser.add_argument("--target", default="cpu", help="cpu, cuda, cuda:1, cuda:sm90, ...")
    parser.add_argument("--tactics", default="", help="sources of tactics, with commas")
    parser.add_argument("--output", type=Path, help="the file for the result")
    parser.add_argument("-v", action="store_true", dest="verbose", help="print each failing case")
    options = parser.parse_args(arguments)
    name = "benchmarks.onnxruntime_peer" if options.peer else options.implementation
    # Each process takes one core, and each case is small.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    begin = time.monotonic()
    setting = Setting(options.target, tuple(filter(None, options.tactics.split(","))))
    cases = [case for case in backend_cases.load_cases() if options.filter in case.name]
    outcomes = run(
        cases,
        importlib.import_module(name),
        processes=options.processes,
        only_without=options.no_reference or options.peer,
        setting=setting,
        progress=show_progress,
    )
    result = summary(outcomes)
    stored = "backend_suite.json"
    if setting.target != "cpu":
        result |= places(outcomes, setting) | {"seconds": round(time.monotonic() - begin, 1)}
        stored = "backend_suite_cuda.json"
    # A part of the suite, or another subject, must not replace the stored result of the whole.
    whole = name == "engine" and not options.filter and not options.no_reference
    whole = whole and setting.runs and not setting.tactics
    output = options.output or (RESULTS / stored if whole else None)
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {output}")
    report(result, verbose=options.verbose, seconds=time.monotonic() - begin)
    return 0 if cases else 2


def report(result: dict[str, Any], *, verbose: bool, seconds: float) -> None:
    if verbose:
        for name, failure in result["failures"].items():
            print(f"{name}: {failure['with_reference'] or failure['without_reference']}")
    for kind, row in result["kinds"].items():
        print(f"{kind:18} {row['passed_without_reference']:5} {row['passed']:5} of {row['cases']}")
    if "layers" in result:
        print(f"layers: {result['layers']}")
        print(
            f"{result['cases_without_host_layers']} cases without layers on the host; on it: "
            f"{dict(list(result['cases_by_operator_on_host'].items())[:20])}"
        )
    print(
        f"without the reference step {result['passed_without_reference']}, with it "
        f"{result['passed']}, of {result['cases']} cases ({seconds:.0f} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
