"""Choosing: a pure function from timing records to the candidates of every layer.

A layer of fixed sizes gets one candidate. For a GPU a layer with symbolic sizes gets a list of
cases: where all of its sizes are a tuned point's and a library's call was the fastest there, that
call; then, for each tuned point in rising order, the fastest kernel that takes sizes as arguments,
for all sizes up to the point's; the last case is the greatest point's and has no condition. So
sizes between tuned points are served as the next greater tuned point is.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.cuda.libraries import installed_version
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol, symbols
from engine.ir.types import TensorType
from engine.lower.lowering import Attempt, Case
from engine.lower.updates import shared_operands
from engine.plan.structure import Guard, Symbol
from engine.profile import tuned_points
from engine.tactics import Candidate, candidates, restore
from engine.target import CudaTarget, Target, describe
from engine.tune.isolation import pin
from engine.tune.records import TimingRecord, layer_signature

if TYPE_CHECKING:
    from engine.building import BuildOptions

__all__ = [
    "Choices",
    "Offer",
    "choose",
    "choose_all",
    "identity",
    "offers",
    "points_of",
    "unanswered",
    "usual_point",
]

#: Candidates within this share of the best time are tied (or twice the spread of both, if more).
TIE_SHARE = 0.02
#: Sources whose choices hold at fixed sizes only.
LIBRARIES = ("cublaslt", "cudnn")
#: The records of each layer, by tactic and choice.
Rows = dict[tuple[str, str], TimingRecord]
Table = dict[str, Rows]


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate, and the node at fixed sizes for which it was offered, if it was."""

    candidate: Candidate
    pinned: Node | None = None


#: What is offered for a node at a point, and the layer's signature there.
Memo = dict[tuple[str, tuple[tuple[str, int], ...]], tuple[list[Offer], str]]


@dataclass(frozen=True, slots=True)
class Choices:
    """What `engine.lower.lowering.lower` takes: the last case of each layer, and those before."""

    last: Mapping[str, tuple[Candidate, int]]
    cases: Mapping[str, Sequence[Case]] = field(default_factory=dict)


def usual_point(symbols: Sequence[Symbol]) -> dict[str, int]:
    """The sizes for which an engine is tuned."""
    return {item.name: item.usual[0] for item in symbols}


def points_of(
    options: BuildOptions, symbols: Sequence[Symbol], target: Target
) -> list[dict[str, int]]:
    """The points at which layers are tuned, the usual one first; on a CPU there is no other."""
    if options.level == 0 or not isinstance(target, CudaTarget):
        return [usual_point(symbols)]
    return tuned_points(symbols, options.profile)


def offers(
    node: Node, sources: Sequence[str], point: Mapping[str, int], target: Target
) -> list[Offer]:
    """All candidates for a node at a point; with symbolic sizes those of libraries come last."""
    found, _ = candidates(node, sources, point, target)
    offered = [Offer(candidate) for candidate in found]
    libraries = [name for name in sources if name in LIBRARIES]
    own = _own(node)  # with a size that only contents tell, nothing is known ahead
    if isinstance(target, CudaTarget) and libraries and own and own <= point.keys():
        pinned = pin(node, point)
        fixed, _ = candidates(pinned, libraries, {}, target)
        offered += [Offer(candidate, pinned) for candidate in fixed]
    return offered


def unanswered(
    sources: Sequence[str], rows: Iterable[TimingRecord], target: Target
) -> Sequence[str]:
    """The sources without libraries that need not be asked about a layer any more.

    Asking has a library build what it offers. Where records of the version that is installed here
    tell of a layer, they are the answer.
    """
    if not isinstance(target, CudaTarget):
        return sources
    told = {(r.tactic.split(".")[0], r.choice.get("version")) for r in rows}
    libraries = {name for name, version in told if name in LIBRARIES and version is not None}
    known = {name for name in libraries if (name, installed_version(name)) in told}
    return [name for name in sources if name not in known]


def _own(node: Node) -> frozenset[str]:
    """The symbols that the shapes of a node's tensors depend on."""
    found: set[str] = set()
    for value in (*node.inputs, *node.outputs):
        if value is not None and isinstance(value.type, TensorType) and value.type.shape:
            found = found.union(*(symbols(dim) for dim in value.type.shape))
    return frozenset(found)


def choose(
    graph: Graph,
    options: BuildOptions,
    symbols: Sequence[Symbol],
    records: Iterable[TimingRecord],
) -> dict[str, tuple[Candidate, int]]:
    """The candidate of each node that serves where no case does, and its time in nanoseconds."""
    return dict(choose_all(graph, options, symbols, records).last)


def choose_all(
    graph: Graph,
    options: BuildOptions,
    symbols: Sequence[Symbol],
    records: Iterable[TimingRecord],
    failed: Collection[Attempt] = frozenset(),
    *,
    allowed: Collection[str] | None = None,
    memo: Memo | None = None,
) -> Choices:
    """The chosen candidates by node name, with times in nanoseconds.

    Among candidates tied with the fastest the lockfile's choice wins, then the order in which
    tactics offer them. Without records the lockfile's choice is taken, else the first candidate.
    ``failed`` are left out: what was tried for a node and does not compile. ``allowed`` are the
    sources to choose from, all of the options' by default; ``memo`` keeps what is offered between
    calls with the same graph, options and records.
    """
    target = describe(options.target)
    search = _Search(
        options,
        points_of(options, symbols, target),
        target,
        _table(records),
        shared_operands(graph, options.updates) if isinstance(target, CudaTarget) else {},
        frozenset(failed),
        frozenset(options.tactics if allowed is None else allowed),
        {} if memo is None else memo,
    )
    last: dict[str, tuple[Candidate, int]] = {}
    cases: dict[str, tuple[Case, ...]] = {}
    for node in graph.nodes:
        if node.kind == "View":
            continue
        found = search.cases(node)
        if not found:
            continue
        last[node.name] = (found[-1].candidate, found[-1].time_ns)
        if len(found) > 1:
            cases[node.name] = tuple(found[:-1])
    return Choices(last, cases)


def _table(records: Iterable[TimingRecord]) -> Table:
    table: Table = {}
    for record in records:
        rows = table.setdefault(record.signature, {})
        known = rows.get(record.key[1:])
        if known is None or _weight(record) > _weight(known):
            rows[record.key[1:]] = record
    return table


@dataclass(frozen=True, slots=True)
class _Search:
    """Everything on which the choice for a node depends."""

    options: BuildOptions
    points: Sequence[Mapping[str, int]]
    target: Target
    table: Table
    shared: Mapping[str, Sequence[tuple[int, int]]]
    failed: frozenset[Attempt]
    allowed: frozenset[str]
    memo: Memo

    def cases(self, node: Node) -> list[Case]:
        """The cases of a node in order, the last without conditions; none when nothing serves."""
        own = sorted(_own(node))
        usual = {name: self.points[0][name] for name in own if name in self.points[0]}
        projected = [{n: point[n] for n in own if n in point} for point in self.points]
        distinct = sorted({tuple(point.items()): point for point in projected}.items())
        exact: list[Case] = []
        chain: list[Case] = []
        for place, (_, point) in enumerate(distinct):
            found, signature = self._at(node, point)
            best = self._best(found, signature)
            ours = self._best([item for item in found if item.pinned is None], signature)
            if best is None or ours is None:
                continue
            shown = point == usual
            if best[0].pinned is not None:
                guards = tuple(Guard("==", symbol(n), size) for n, size in point.items())
                exact.append(Case(guards, best[0].candidate, best[0].pinned, best[1], shown))
                shown = False
            upto: tuple[Guard, ...] = ()
            if place + 1 < len(distinct):
                upto = tuple(Guard("<=", symbol(n), size) for n, size in point.items())
            chain.append(Case((*upto, *_open(ours[0])), ours[0].candidate, None, ours[1], shown))
        if chain and chain[-1].guards:
            found, signature = self._at(node, distinct[-1][1])
            always = [item for item in found if item.pinned is None and not _open(item)]
            served = self._best(always, signature)
            if served is None:
                return []
            chain.append(Case((), served[0].candidate, None, served[1]))
        return [*exact, *_collapsed(chain)]

    def _at(self, node: Node, point: Mapping[str, int]) -> tuple[list[Offer], str]:
        """What is offered or was measured at a point and compiles, and the layer's signature."""
        key = node.name, tuple(sorted(point.items()))
        if key not in self.memo:
            signature, _ = layer_signature(node, point, self.shared.get(node.name, ()))
            rows = self.table.get(signature, {})
            asked = unanswered(self.options.tactics, rows.values(), self.target)
            found = offers(node, asked, point, self.target)
            found += self._restored(node, point, found, rows)
            self.memo[key] = found, signature
        found, signature = self.memo[key]
        left = [
            item
            for item in found
            if item.candidate.tactic.split(".")[0] in self.allowed
            and (node.name, *identity(item.candidate)) not in self.failed
        ]
        return left, signature

    def _restored(
        self, node: Node, point: Mapping[str, int], offered: Sequence[Offer], rows: Rows
    ) -> list[Offer]:
        """Candidates that were measured and are not offered here, as algorithms of libraries."""
        known = {identity(item.candidate) for item in offered}
        fixed = bool(point) and _own(node) <= point.keys()
        pinned = pin(node, point) if fixed and set(rows) - known else None
        versions = _versions(offered, rows.values())
        found = []
        for key in sorted(set(rows) - known):
            record = rows[key]
            if record.choice.get("version") != versions.get(record.tactic):
                continue  # what another version of a library can, this one refuses to run
            if record.status == "ok" and record.tactic.split(".")[0] in self.options.tactics:
                at = pinned if record.tactic.split(".")[0] in LIBRARIES else None
                candidate = restore(at or node, record.tactic, record.choice, self.target)
                if candidate is not None:
                    found.append(Offer(candidate, at))
        return found

    def _best(self, offered: Sequence[Offer], signature: str) -> tuple[Offer, int] | None:
        """The best candidate, None when there is none that is not known to fail."""
        locked = (self.options.lockfile or {}).get(signature)
        rows = self.table.get(signature, {})
        measured: list[tuple[Offer, TimingRecord]] = []
        untried: list[Offer] = []
        for item in offered:
            record = rows.get(identity(item.candidate))
            if record is None:
                untried.append(item)
            elif record.status == "ok":
                measured.append((item, record))
        if not measured:
            first = next(iter(untried), None)
            chosen = next((c for c in untried if _is_locked(c.candidate, locked)), first)
            return None if chosen is None else (chosen, 0)
        fastest = min((record for _, record in measured), key=lambda r: (r.time_ns, r.spread))
        tied = [(item, int(record.time_ns)) for item, record in measured if ties(record, fastest)]
        return next((item for item in tied if _is_locked(item[0].candidate, locked)), tied[0])


def ties(record: TimingRecord, fastest: TimingRecord) -> bool:
    """Whether a record is as good as the fastest, as far as the steadier of the two can tell."""
    noise = 2 * min(record.spread, fastest.spread)
    return record.time_ns <= fastest.time_ns * (1 + max(TIE_SHARE, noise))


def _versions(offered: Sequence[Offer], rows: Iterable[TimingRecord]) -> dict[str, Any]:
    """The version of its library for each tactic that names one: as here, or else the latest."""
    found: dict[str, Any] = {}
    for record in rows:
        version = record.choice.get("version")
        if isinstance(version, int):
            found[record.tactic] = max(version, found.get(record.tactic, version))
    for item in offered:
        if "version" in item.candidate.choice:
            found[item.candidate.tactic] = item.candidate.choice["version"]
    return found


def _open(offer: Offer) -> tuple[Guard, ...]:
    """The conditions of a candidate over symbols."""
    return tuple(
        guard for guard in offer.candidate.holds if symbols(guard.left) | symbols(guard.right)
    )


def _collapsed(chain: Sequence[Case]) -> list[Case]:
    """The chain without cases that the next one serves in the same way."""
    kept = [
        case
        for case, following in itertools.pairwise(chain)
        if identity(case.candidate) != identity(following.candidate)
    ]
    return [*kept, *chain[-1:]]


def _weight(record: TimingRecord) -> tuple[bool, int, float, float]:
    """Which of two records of one candidate counts, in whatever order they come."""
    return record.status == "ok", record.samples, -record.time_ns, -record.spread


def identity(candidate: Candidate) -> tuple[str, str]:
    """What tells a candidate from the others of its layer: tactic, and choice as JSON."""
    return candidate.tactic, json.dumps(dict(candidate.choice), sort_keys=True)


def _is_locked(candidate: Candidate, locked: Any) -> bool:
    """Whether a lockfile names this candidate."""
    return (
        isinstance(locked, Mapping)
        and locked.get("tactic") == candidate.tactic
        and locked.get("choice") == dict(candidate.choice)
    )
