"""Forests of decision trees as arrays, walked for all rows and all trees at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.ir.types import Array
from engine.ops.arrays import as_array

__all__ = ["LEAF", "MEMBER", "MODES", "Forest", "Names", "Votes", "forest_of_ids"]

#: The comparison of a node: the numbers of TreeEnsemble's ``nodes_modes``, and one for leaves.
MODES = {
    "BRANCH_LEQ": 0,
    "BRANCH_LT": 1,
    "BRANCH_GTE": 2,
    "BRANCH_GT": 3,
    "BRANCH_EQ": 4,
    "BRANCH_NEQ": 5,
    "BRANCH_MEMBER": 6,
    "LEAF": 7,
}
MEMBER, LEAF = MODES["BRANCH_MEMBER"], MODES["LEAF"]
_COMPARE = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)


@dataclass(frozen=True, slots=True)
class Forest:
    """Nodes by number: what each compares, and the nodes to go to when that is true or false."""

    feature: Array
    mode: Array
    threshold: Array
    when_true: Array
    when_false: Array
    missing_is_true: Array
    roots: Array
    members: dict[int, Array] = field(default_factory=dict)

    def leaves(self, rows: Array) -> Array:
        """The leaf that each row reaches in each tree: (N, F) float64 to (N, trees)."""
        count = len(rows)
        node = np.tile(self.roots, (count, 1))
        row = np.broadcast_to(np.arange(count)[:, None], node.shape)
        for _ in range(len(self.mode) + 1):
            inner = self.mode[node] != LEAF
            if not inner.any():
                return node
            at = node[inner]
            taken = self._decide(at, rows[row[inner], self.feature[at]])
            node[inner] = np.where(taken, self.when_true[at], self.when_false[at])
        raise ValueError("the nodes of a tree form a circle, expected branches that end in leaves")

    def _decide(self, node: Array, value: Array) -> Array:
        taken = np.zeros(len(node), bool)
        mode, threshold = self.mode[node], self.threshold[node]
        for code, compare in enumerate(_COMPARE):
            here = mode == code
            taken[here] = compare(value[here], threshold[here])
        for number, members in self.members.items():
            here = node == number
            taken[here] = np.isin(value[here], members)
        missing = np.isnan(value)
        taken[missing] = self.missing_is_true[node[missing]]
        return taken


@dataclass(frozen=True, slots=True)
class Names:
    """The numbers of nodes that are named (tree id, node id)."""

    tree: Array
    node: Array

    def find(self, tree: Sequence[int] | Array, node: Sequence[int] | Array) -> Array:
        """The number of each name; ValueError for one that does not exist."""
        width = max(int(self.node.max(initial=0)), max(node, default=0)) + 1
        keys = self.tree * width + self.node
        order = np.argsort(keys, kind="stable")
        wanted = as_array(tree, np.int64) * width + as_array(node, np.int64)
        place = np.searchsorted(keys, wanted, sorter=order)
        found = order[np.minimum(place, len(keys) - 1)]
        wrong = np.flatnonzero(keys[found] != wanted)
        if wrong.size:
            names = [int(as_array(ids)[wrong[0]]) for ids in (tree, node)]
            raise ValueError(f"tree {names[0]} has no node {names[1]}, which another part names")
        return found


def forest_of_ids(
    *,
    trees: Sequence[int],
    nodes: Sequence[int],
    features: Sequence[int],
    modes: Sequence[str],
    thresholds: Array,
    when_true: Sequence[int],
    when_false: Sequence[int],
    missing: Sequence[int],
) -> tuple[Forest, Names]:
    """A forest whose nodes are named (tree id, node id), and the numbers of these names.

    The root of a tree is its first node.
    """
    wrong = sorted(set(modes) - set(MODES))
    if wrong:
        raise ValueError(f"nodes_modes holds {wrong[0]!r}, expected one of {', '.join(MODES)}")
    names = Names(np.array(trees, np.int64), np.array(nodes, np.int64))
    mode = np.array([MODES[name] for name in modes], np.int64)
    leaf = mode == LEAF
    own = names.node
    forest = Forest(
        feature=np.array(features, np.int64),
        mode=mode,
        threshold=thresholds.astype(np.float64),
        when_true=names.find(names.tree, np.where(leaf, own, np.array(when_true, np.int64))),
        when_false=names.find(names.tree, np.where(leaf, own, np.array(when_false, np.int64))),
        missing_is_true=np.array(missing or [0] * len(mode), bool),
        roots=np.sort(np.unique(names.tree, return_index=True)[1]),
    )
    return forest, names


@dataclass(frozen=True, slots=True)
class Votes:
    """What the leaves give: entries (node, target, weight)."""

    node: Array
    target: Array
    weight: Array

    def collect(self, leaves: Array, targets: int, function: str) -> Array:
        """The votes of the leaves (N, trees), put together per target: (N, targets) float64.

        ``function`` is SUM, AVERAGE (over the trees), MIN or MAX; a target without votes is 0.
        """
        order = np.argsort(self.node, kind="stable")
        sorted_nodes = self.node[order]
        start = np.searchsorted(sorted_nodes, leaves.ravel(), side="left")
        stop = np.searchsorted(sorted_nodes, leaves.ravel(), side="right")
        counts = stop - start
        shift = np.repeat(start - (np.cumsum(counts) - counts), counts)
        entry = order[np.arange(counts.sum()) + shift]
        row = np.repeat(np.repeat(np.arange(len(leaves)), leaves.shape[1]), counts)
        if self.target.size and (self.target.min() < 0 or self.target.max() >= targets):
            raise ValueError(f"a leaf votes for target {self.target.max()}, of {targets}")
        place = row * targets + self.target[entry]
        weight, size = self.weight[entry].astype(np.float64), len(leaves) * targets
        if function in ("SUM", "AVERAGE"):
            result = np.bincount(place, weight, size)
            result = result / max(leaves.shape[1], 1) if function == "AVERAGE" else result
        elif function in ("MIN", "MAX"):
            extreme = np.minimum if function == "MIN" else np.maximum
            result = np.full(size, np.inf if function == "MIN" else -np.inf)
            extreme.at(result, place, weight)
            result[np.bincount(place, minlength=size) == 0] = 0
        else:
            raise ValueError(
                f"aggregate_function is {function!r}, expected SUM, AVERAGE, MIN or MAX"
            )
        return result.reshape(len(leaves), targets)
