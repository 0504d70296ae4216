"""Choosing: a pure function from timing records to one candidate per layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from engine.ir.graph import Graph, Node
from engine.plan.structure import Symbol
from engine.tactics import Candidate, candidates
from engine.tune.records import TimingRecord, layer_signature

if TYPE_CHECKING:
    from engine.building import BuildOptions

__all__ = ["choose", "usual_point"]

#: Candidates within this share of the best time are tied (or twice the spread, if that is more).
TIE_SHARE = 0.02


def usual_point(symbols: Sequence[Symbol]) -> dict[str, int]:
    """The sizes for which an engine is tuned."""
    return {item.name: item.usual[0] for item in symbols}


def choose(
    graph: Graph,
    options: BuildOptions,
    symbols: Sequence[Symbol],
    records: Iterable[TimingRecord],
) -> dict[str, tuple[Candidate, int]]:
    """The chosen candidate and its time in nanoseconds, by node name.

    Among candidates tied with the fastest, the order in which tactics offer them decides. Without
    records the first candidate is taken.
    """
    table: dict[tuple[str, str, str], TimingRecord] = {}
    for record in records:
        known = table.get(record.key)
        if known is None or (record.samples, -record.time_ns) > (known.samples, -known.time_ns):
            table[record.key] = record
    point = usual_point(symbols)
    choices = {}
    for node in graph.nodes:
        offered, _ = candidates(node, options.tactics, point)
        if offered:
            choices[node.name] = _best(node, offered, table, point)
    return choices


def _best(
    node: Node,
    offered: Sequence[Candidate],
    table: Mapping[tuple[str, str, str], TimingRecord],
    point: Mapping[str, int],
) -> tuple[Candidate, int]:
    import json

    signature, _ = layer_signature(node, point)
    measured: list[tuple[Candidate, TimingRecord]] = []
    for candidate in offered:
        key = signature, candidate.tactic, json.dumps(dict(candidate.choice), sort_keys=True)
        record = table.get(key)
        if record is not None and record.status == "ok":
            measured.append((candidate, record))
    if not measured:
        return offered[0], 0
    fastest = min(record.time_ns for _, record in measured)
    for candidate, record in measured:
        if record.time_ns <= fastest * (1 + max(TIE_SHARE, 2 * record.spread)):
            return candidate, int(record.time_ns)
    raise AssertionError("the fastest candidate is tied with itself")
