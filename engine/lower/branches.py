"""Independent branches of a graph side by side: which layers run on which lane.

Where the readers of one value do not need each other, each leads a branch: itself and the layers
that need nothing but the branch and what was there before the value. The longest branch stays on
the lane of the value, the others go to auxiliary lanes as far as there are any; where branches
meet, or the program ends, all is back on one lane. The beginning of a program is such a place, too.
Whether it helps is for a measurement of the whole program to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.ir.graph import Graph, Node
from engine.plan.device import LANES
from engine.plan.structure import ChooseStep, HostStep, KernelStep, Step

__all__ = ["LEAST_NS", "Work", "branch_lanes", "on_lane", "runs_on_host"]

#: A branch that takes less is not worth the kernels that no longer begin early around it.
LEAST_NS = 2000


@dataclass(frozen=True, slots=True)
class Work:
    """What a node comes to: nanoseconds on the device (0: not measured), and if it needs the host.

    Nodes that come to no step at all, as views, have none.
    """

    time_ns: int
    host: bool = False


@dataclass(frozen=True, slots=True)
class _Branch:
    members: tuple[int, ...]
    time_ns: int


def branch_lanes(graph: Graph, works: Mapping[str, Work]) -> tuple[dict[str, int], frozenset[str]]:
    """Names of the nodes on auxiliary lanes with their lanes, and of nodes that others wait for.

    ``works`` are the nodes with steps, by name. The second are those whose results are read on
    another lane than their own. Both are empty when nothing is worth to run side by side.
    """
    nodes = [node for node in graph.nodes if node.name in works]
    inputs = _inputs(graph, nodes)
    regions = _Regions(inputs, [works[node.name] for node in nodes])
    for source in range(-1, len(nodes)):
        regions.split(source)
    lanes = regions.lanes
    crossing = {
        nodes[before].name
        for node, needed in enumerate(inputs)
        for before in needed
        if lanes[before] != lanes[node]
    }
    found = {node.name: lane for node, lane in zip(nodes, lanes) if lane}
    return found, frozenset(crossing)


def _inputs(graph: Graph, nodes: Sequence[Node]) -> list[tuple[int, ...]]:
    """For each node those whose results it reads, through nodes that come to no step."""
    position = {id(node): index for index, node in enumerate(nodes)}
    behind: dict[int, frozenset[int]] = {}
    found = []
    for node in graph.nodes:
        needed: frozenset[int] = frozenset()
        for value in node.inputs:
            producer = None if value is None else value.producer
            if producer is not None:
                needed |= behind.get(id(producer), frozenset())
        own = position.get(id(node))
        if own is not None:
            found.append(tuple(sorted(needed)))
            needed = frozenset([own])
        behind[id(node)] = needed
    return found


class _Regions:
    """Finds branches, from first to last, and gives them lanes. Sets of nodes are bits."""

    def __init__(self, inputs: Sequence[tuple[int, ...]], works: Sequence[Work]) -> None:
        self.inputs, self.works = inputs, works
        self.lanes = [0] * len(inputs)
        self.before: list[int] = []
        self.after = [0] * len(inputs)
        self.readers: list[list[int]] = [[] for _ in range(len(inputs) + 1)]
        for node, needed in enumerate(inputs):
            bits = 0
            for other in needed:
                bits |= self.before[other] | 1 << other
                self.readers[other].append(node)
            self.before.append(bits)
            for other in _members(bits):
                self.after[other] |= 1 << node
            if not needed:
                self.readers[-1].append(node)

    def split(self, source: int) -> None:
        """Give lanes to the branches that begin behind a node, or at the beginning (-1)."""
        branches = [item for item in self._branches(source) if self._worthwhile(item)]
        branches.sort(key=lambda item: (-item.time_ns, -len(item.members), item.members))
        if len(branches) < 2:
            return
        base = {self.lanes[node] for item in branches for node in item.members}
        if len(base) > 1:
            return
        free = sorted({*range(1, LANES)} - base - self._lanes_beside(branches))
        for lane, branch in zip(free, branches[1:]):
            for node in branch.members:
                self.lanes[node] = lane

    def _branches(self, source: int) -> Iterator[_Branch]:
        outside = 0 if source < 0 else self.before[source] | 1 << source
        heads = [node for node in self.readers[source] if not self.before[node] & ~outside]
        for head in heads:
            inside = 1 << head
            for node in range(head + 1, len(self.inputs)):
                needed = sum(1 << other for other in self.inputs[node])
                if needed & inside and not needed & ~(inside | outside):
                    inside |= 1 << node
            members = tuple(_members(inside))
            yield _Branch(members, sum(self.works[node].time_ns for node in members))

    def _worthwhile(self, branch: _Branch) -> bool:
        works = [self.works[node] for node in branch.members]
        if any(work.host for work in works):
            return False
        return branch.time_ns >= LEAST_NS or any(work.time_ns == 0 for work in works)

    def _lanes_beside(self, branches: Sequence[_Branch]) -> set[int]:
        """Lanes in use by nodes that may run while one of the branches does."""
        union = beside = 0
        for node in (node for item in branches for node in item.members):
            union |= 1 << node
        others = ((1 << len(self.inputs)) - 1) & ~union
        for node in _members(union):
            beside |= others & ~(self.before[node] | self.after[node])
        return {self.lanes[node] for node in _members(beside)}


def _members(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def on_lane(step: Step, lane: int) -> Step:
    """The step, or all steps of its cases, on a lane."""
    if isinstance(step, ChooseStep):
        cases = ((guards, tuple(on_lane(s, lane) for s in steps)) for guards, steps in step.cases)
        return ChooseStep(tuple(cases))
    assert not isinstance(step, HostStep | KernelStep), "only steps of the device have lanes"
    return replace(step, lane=lane)


def runs_on_host(steps: Sequence[Step]) -> bool:
    """Whether one of the steps, cases included, is none of the device."""
    return any(
        any(runs_on_host(chosen) for _, chosen in step.cases)
        if isinstance(step, ChooseStep)
        else isinstance(step, HostStep | KernelStep)
        for step in steps
    )
