"""Measuring the candidates of one layer: each checked once for correctness, then timed in turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.ir.graph import Graph, Node
from engine.ir.types import Array, TensorType
from engine.lower.lowering import lower
from engine.plan.recipes import apply
from engine.runtime import blas
from engine.runtime.compilation import find_compiler
from engine.runtime.context import Context
from engine.runtime.engine import Engine
from engine.tactics import Candidate, candidates
from engine.target import describe
from engine.tune.isolation import isolate, random_array

__all__ = ["Measurement", "measure", "prepare_engines"]

SAMPLES = 20
#: Samples of a candidate that has lost all its rivals.
ENOUGH = 4
#: After so many samples a candidate slower than so many times the best so far is dropped.
HOPELESS = {2: 8.0, 5: 2.0, 10: 1.25}
#: Largest error of a candidate, in units of the spread of the expected output.
TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True)
class Measurement:
    """The samples of one candidate in nanoseconds, or the reason of its failure."""

    candidate: Candidate
    samples: tuple[int, ...]
    reason: str = ""

    @property
    def time_ns(self) -> float:
        """The 30th percentile of the samples."""
        return float(np.percentile(self.samples, 30)) if self.samples else float("inf")

    @property
    def spread(self) -> float:
        """Distance between the 10th and 50th percentile, relative to `time_ns`."""
        if not self.samples:
            return 0.0
        low, high = np.percentile(self.samples, [10, 50])
        return float((high - low) / max(self.time_ns, 1.0))


@dataclass(slots=True)
class Rival:
    """A candidate on its way through a measurement."""

    candidate: Candidate
    context: Context | None = None
    samples: list[int] | None = None
    reason: str = ""


def prepare_engines(graph: Graph, offered: Sequence[Candidate]) -> list[Rival]:
    """An engine and context per candidate, compiled; failures keep their reason."""
    rivals = []
    for candidate in offered:
        rival = Rival(candidate)
        try:
            lowered = lower(graph, (), {"layer": (candidate, 0)})
            weights = {
                name: apply(item.recipe, [_constant(value) for value in item.sources])
                for name, item in lowered.packed.items()
            }
            engine = Engine(lowered.program, weights, compile="wait")
            rival.context = engine.create_context()
        except (EngineError, ValueError) as error:
            rival.reason = str(error)
        except KeyError as error:
            rival.reason = f"the size {error} has no value at this point"
        rivals.append(rival)
    return rivals


def _constant(value: Any) -> Array:
    assert value.constant is not None
    return np.asarray(value.constant)


def measure(
    node: Node, offered: Sequence[Candidate], point: Mapping[str, int], *, samples: int = SAMPLES
) -> list[Measurement]:
    """Time candidates of one layer at a shape point, in turns, on random data."""
    graph = isolate(node, point)
    feeds = {
        value.name: random_array(value.tensor, seed)
        for seed, value in enumerate(graph.inputs)
        if isinstance(value.type, TensorType)
    }
    rivals = prepare_engines(graph, _at_fixed_sizes(graph.nodes[0], offered))
    expected = _expected(graph, feeds)
    for rival in rivals:
        if rival.context is not None:
            rival.reason = _check(rival.context, feeds, expected)
            rival.samples = []
    racing = [rival for rival in rivals if rival.context is not None and not rival.reason]
    # Beside compiled kernels NumPy's BLAS is held to one thread, so it is timed with one.
    with blas.single_threaded() if find_compiler() is not None else nullcontext():
        if len(racing) > 1:
            _race(racing, feeds, samples)
        elif racing:
            racing[0].samples = [_time(racing[0], feeds) for _ in range(3)]
    return [
        Measurement(
            rival.candidate, tuple(rival.samples or ()) if not rival.reason else (), rival.reason
        )
        for rival in rivals
    ]


def _at_fixed_sizes(node: Node, offered: Sequence[Candidate]) -> list[Candidate]:
    """The same tactics and choices, offered for the node with numbers in the place of symbols.

    A tactic that does not offer a choice at these sizes keeps the candidate as it was.
    """
    sources = sorted({candidate.tactic.split(".")[0] for candidate in offered})
    again, _ = candidates(node, sources, {}, describe())
    known = {_identity(candidate): candidate for candidate in again}
    return [known.get(_identity(candidate), candidate) for candidate in offered]


def _identity(candidate: Candidate) -> tuple[str, str]:
    return candidate.tactic, json.dumps(dict(candidate.choice), sort_keys=True)


def _expected(graph: Graph, feeds: Mapping[str, Array]) -> list[Array]:
    node = graph.nodes[0]
    inputs = [
        None
        if value is None
        else value.constant
        if value.constant is not None
        else feeds[value.name]
        for value in node.inputs
    ]
    results = node.op.meaning(*inputs)
    return list(results) if isinstance(results, tuple) else [results]


def _check(context: Context, feeds: Mapping[str, Array], expected: Sequence[Array]) -> str:
    """Run once; the reason why the result is wrong, or nothing."""
    try:
        results = list(context.run(feeds).values())
    except EngineError as error:
        return str(error)
    for index, (result, wanted) in enumerate(zip(results, expected)):
        if not isinstance(result, np.ndarray) or result.shape != wanted.shape:
            return f"output {index} has another shape than its meaning"
        if result.dtype.kind != "f":
            if not np.array_equal(result, wanted):
                return f"output {index} differs from its meaning"
            continue
        wanted64 = wanted.astype(np.float64)
        spread = float(np.nanstd(wanted64)) if wanted.size else 0.0
        off = np.abs(result.astype(np.float64) - wanted64)
        if not np.all(off <= TOLERANCE * max(spread, 1e-6)):
            return f"output {index} is off by {float(np.nanmax(off)):.3g} (spread {spread:.3g})"
    return ""


def _time(rival: Rival, feeds: Mapping[str, Array]) -> int:
    """Nanoseconds in the steps alone: what surrounds a run is paid once per network, not here."""
    assert rival.context is not None
    return sum(rival.context.profile(feeds).values())


def _race(racing: list[Rival], feeds: Mapping[str, Array], samples: int) -> None:
    """Interleaved turns; candidates without hope leave early."""
    for turn in range(1, samples + 1):
        for rival in racing:
            assert rival.samples is not None
            rival.samples.append(_time(rival, feeds))
        if turn in HOPELESS:
            best = min(min(rival.samples or [0]) for rival in racing)
            racing = [r for r in racing if min(r.samples or [0]) <= HOPELESS[turn] * best]
        if len(racing) == 1 and turn >= ENOUGH:
            return
