"""Choosing: a pure function from timing records to one candidate per layer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.ir.graph import Graph, Node
from engine.plan.structure import Symbol
from engine.tactics import Candidate, candidates, restore
from engine.target import Target, describe
from engine.tune.records import TimingRecord, layer_signature

if TYPE_CHECKING:
    from engine.building import BuildOptions

__all__ = ["choose", "usual_point"]

#: Candidates within this share of the best time are tied (or twice the spread, if that is more).
TIE_SHARE = 0.02
#: The records of each layer, by tactic and choice.
Table = dict[str, dict[tuple[str, str], TimingRecord]]


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

    Among candidates tied with the fastest the lockfile's choice wins, then the order in which
    tactics offer them. Without records the lockfile's choice is taken, else the first candidate.
    """
    table: Table = {}
    for record in records:
        rows = table.setdefault(record.signature, {})
        known = rows.get(record.key[1:])
        if known is None or _weight(record) > _weight(known):
            rows[record.key[1:]] = record
    point = usual_point(symbols)
    target = describe(options.target)
    choices = {}
    for node in graph.nodes:
        if node.kind == "View":
            continue
        offered, _ = candidates(node, options.tactics, point, target)
        signature, _ = layer_signature(node, point)
        rows = table.get(signature, {})
        offered += _restored(node, offered, rows, options.tactics, target)
        if not offered:
            continue
        best = _best(offered, rows, (options.lockfile or {}).get(signature))
        if best is not None:
            choices[node.name] = best
    return choices


def _weight(record: TimingRecord) -> tuple[bool, int, float, float]:
    """Which of two records of one candidate counts, in whatever order they come."""
    return record.status == "ok", record.samples, -record.time_ns, -record.spread


def _identity(candidate: Candidate) -> tuple[str, str]:
    return candidate.tactic, json.dumps(dict(candidate.choice), sort_keys=True)


def _restored(
    node: Node,
    offered: Sequence[Candidate],
    rows: Mapping[tuple[str, str], TimingRecord],
    sources: Sequence[str],
    target: Target,
) -> list[Candidate]:
    """Candidates that were measured and are not offered here, as algorithms of libraries."""
    known = {_identity(candidate) for candidate in offered}
    found = []
    for identity in sorted(set(rows) - known):
        record = rows[identity]
        if record.status == "ok" and record.tactic.split(".")[0] in sources:
            candidate = restore(node, record.tactic, record.choice, target)
            if candidate is not None:
                found.append(candidate)
    return found


def _best(
    offered: Sequence[Candidate],
    rows: Mapping[tuple[str, str], TimingRecord],
    locked: Any,
) -> tuple[Candidate, int] | None:
    """The best candidate, None when there is none that is not known to fail."""
    measured: list[tuple[Candidate, TimingRecord]] = []
    untried: list[Candidate] = []
    for candidate in offered:
        record = rows.get(_identity(candidate))
        if record is None:
            untried.append(candidate)
        elif record.status == "ok":
            measured.append((candidate, record))
    if not measured:
        chosen = next((c for c in untried if _is_locked(c, locked)), next(iter(untried), None))
        return None if chosen is None else (chosen, 0)
    fastest = min(record.time_ns for _, record in measured)
    tied = [
        (candidate, int(record.time_ns))
        for candidate, record in measured
        if record.time_ns <= fastest * (1 + max(TIE_SHARE, 2 * record.spread))
    ]
    return next((item for item in tied if _is_locked(item[0], locked)), tied[0])


def _is_locked(candidate: Candidate, locked: Any) -> bool:
    """Whether a lockfile names this candidate."""
    return (
        isinstance(locked, Mapping)
        and locked.get("tactic") == candidate.tactic
        and locked.get("choice") == dict(candidate.choice)
    )
