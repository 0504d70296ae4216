"""What a fusion is, the registry, and the loop that applies fusions to a graph."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from engine.errors import EngineError
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ops.operator import Operator
from engine.plugins import load_plugins

__all__ = ["Fusion", "Match", "Refused", "apply_fusions", "constant_number", "fusion", "only_user"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A near miss: the pattern fits, but for this reason it is left alone."""

    reason: str


@dataclass(frozen=True, slots=True)
class Match:
    """What to put in the place of some nodes.

    ``op`` over ``inputs`` makes ``output``'s value, and ``others`` as its further results;
    ``nodes`` are those that it replaces, of which the ones that others still read stay.
    """

    op: Operator
    inputs: Sequence[Value | None]
    output: Value
    nodes: Sequence[Node]
    others: Sequence[Value] = ()


Rule = Callable[[Graph, Node], Match | Refused | None]


@dataclass(frozen=True, slots=True)
class Fusion:
    """A rule: its statement, the operators at which it starts, and the rule itself."""

    statement: str
    anchors: tuple[str, ...]
    stage: str
    rule: Rule


_FUSIONS: dict[str, Fusion] = {}


def fusion(statement: str, *anchors: str, stage: str = "canonical") -> Callable[[Rule], Rule]:
    """Decorator: a rule ``(graph, node) -> Match | Refused | None`` with its statement.

    ``stage`` says when it runs, in this order: "attention" and "projections" (on the model's own
    operators), "canonical" (all others), "layout" (after the layout is chosen).
    """

    def enter(rule: Rule) -> Rule:
        if statement in _FUSIONS:
            raise ValueError(f"two fusions state {statement!r}")
        _FUSIONS[statement] = Fusion(statement, anchors, stage, rule)
        return rule

    return enter


@cache
def _discover() -> None:
    package = importlib.import_module("engine.fusions")
    for module in sorted(item.name for item in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"engine.fusions.{module}")
    load_plugins()


def known(stage: str) -> list[Fusion]:
    """The fusions of one stage, in order of their statements."""
    _discover()
    return [_FUSIONS[key] for key in sorted(_FUSIONS) if _FUSIONS[key].stage == stage]


def apply_fusions(graph: Graph, stage: str) -> bool:
    """Apply every fusion of a stage wherever it fits, until none does."""
    rules = known(stage)
    changed = False
    refused: set[tuple[str, str]] = set()
    for _ in range(8):
        again = False
        for node in list(graph.nodes):
            for item in rules:
                if node.graph is graph and node.kind in item.anchors:
                    again |= _try(graph, node, item, refused)
        changed |= again
        if not again:
            break
    return changed


def _try(graph: Graph, node: Node, item: Fusion, refused: set[tuple[str, str]]) -> bool:
    try:
        found = item.rule(graph, node)
    except (ValueError, ArithmeticError, EngineError) as error:
        found = Refused(str(error))
    if found is None:
        return False
    if isinstance(found, Refused):
        if (item.statement, node.name) not in refused:
            refused.add((item.statement, node.name))
            graph.decide(item.statement, node.sources, False, found.reason)
        return False
    replace(graph, found)
    graph.decide(item.statement, [s for n in found.nodes for s in n.sources], True)
    return True


def replace(graph: Graph, match: Match) -> Node:
    """Carry out a match; returns the new node."""
    last = match.output.producer
    assert last is not None
    sources = dict.fromkeys(source for node in match.nodes for source in node.sources)
    old = [match.output, *match.others]
    results = [graph.value(value.name, value.type) for value in old]
    node = Node(
        match.op, match.inputs, results, name=graph.fresh_name(last.name), sources=tuple(sources)
    )
    graph.insert_before(last, node)
    infer_node(graph, node)
    for value, result in zip(old, results):
        graph.replace_value(value, result)
    _remove_unread(graph, match.nodes)
    return node


def _remove_unread(graph: Graph, nodes: Iterable[Node]) -> None:
    """Remove nodes whose results nobody reads any more, users first."""
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    for node in sorted(nodes, key=lambda item: -position.get(id(item), -1)):
        if node.graph is graph and not any(
            value.uses or graph.is_output(value) for value in node.outputs
        ):
            graph.remove(node)


def only_user(graph: Graph, value: Value) -> Node | None:
    """The one node that reads a value, if there is exactly one and the value is no output."""
    if len(value.uses) != 1 or graph.is_output(value):
        return None
    return value.uses[0][0]


def constant_number(value: Value | None) -> float | None:
    """The number in a constant of one element."""
    if value is None or value.constant is None or value.constant.size != 1:
        return None
    return float(value.constant.reshape(-1)[0])
