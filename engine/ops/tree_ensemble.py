"""TreeEnsemble, TreeEnsembleRegressor and TreeEnsembleClassifier (ai.onnx.ml)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType, Type
from engine.ops.linear_models import two_scores
from engine.ops.operator import Operator, register
from engine.ops.score_transforms import (
    ML,
    classified,
    count_of,
    pick_labels,
    rows_of,
    scored,
    transform_scores,
)
from engine.ops.trees import LEAF, MEMBER, Forest, Votes, forest_of_ids

__all__ = [
    "TreeEnsemble",
    "TreeEnsembleClassifier",
    "TreeEnsembleClassifier1",
    "TreeEnsembleRegressor",
    "TreeEnsembleRegressor1",
]

_FUNCTIONS = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def numbers(values: Sequence[float], tensor: Array | None = None) -> Array:
    """Attribute values as float64: from a tensor of doubles if given, else float32 ones."""
    exact = np.array(values, np.float32) if tensor is None else tensor.reshape(-1)
    return exact.astype(np.float64)


@dataclass(frozen=True, slots=True)
class NodesById(Operator):
    """The attributes of nodes named by tree and node, which regressor and classifier share."""

    base_values: tuple[float, ...] = ()
    nodes_falsenodeids: tuple[int, ...] = ()
    nodes_featureids: tuple[int, ...] = ()
    nodes_hitrates: tuple[float, ...] = ()
    nodes_missing_value_tracks_true: tuple[int, ...] = ()
    nodes_modes: tuple[str, ...] = ()
    nodes_nodeids: tuple[int, ...] = ()
    nodes_treeids: tuple[int, ...] = ()
    nodes_truenodeids: tuple[int, ...] = ()
    nodes_values: tuple[float, ...] = ()
    post_transform: str = "NONE"

    def double(self, name: str) -> Array | None:
        """The attribute that gives ``name`` as a tensor of doubles, in versions that have it."""
        found: Array | None = getattr(self, f"{name}_as_tensor", None)
        return found

    def base(self) -> Array:
        """The values added to the aggregated votes, as float64."""
        return numbers(self.base_values, self.double("base_values"))

    def votes(
        self,
        x: Array,
        trees: Sequence[int],
        nodes: Sequence[int],
        targets: Sequence[int],
        weights: Array,
        count: int,
        function: str = "SUM",
    ) -> Array:
        """The aggregated votes of all trees: (N, count)."""
        forest, names = forest_of_ids(
            trees=self.nodes_treeids,
            nodes=self.nodes_nodeids,
            features=self.nodes_featureids,
            modes=self.nodes_modes,
            thresholds=numbers(self.nodes_values, self.double("nodes_values")),
            when_true=self.nodes_truenodeids,
            when_false=self.nodes_falsenodeids,
            missing=self.nodes_missing_value_tracks_true,
        )
        leaf = names.find(trees, nodes)
        given = Votes(leaf, np.array(targets, np.int64), weights)
        return given.collect(forest.leaves(rows_of(x)), count, function)


@register("TreeEnsembleRegressor", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class TreeEnsembleRegressor1(NodesById):
    """The aggregated weights of the leaves that each row reaches: (N, n_targets) in float32."""

    aggregate_function: str = "SUM"
    n_targets: int = 1
    target_ids: tuple[int, ...] = ()
    target_nodeids: tuple[int, ...] = ()
    target_treeids: tuple[int, ...] = ()
    target_weights: tuple[float, ...] = ()

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return [scored(x, self.n_targets)]

    def meaning(self, x: Array, /) -> Array:
        scores = self.votes(
            x,
            self.target_treeids,
            self.target_nodeids,
            self.target_ids,
            numbers(self.target_weights, self.double("target_weights")),
            self.n_targets,
            self.aggregate_function,
        )
        base = self.base()
        shifted = scores + base if base.size else scores
        return transform_scores(shifted, self.post_transform).astype(np.float32)


@register("TreeEnsembleRegressor", since=3, domain=ML)
@dataclass(frozen=True, slots=True)
class TreeEnsembleRegressor(TreeEnsembleRegressor1):
    """As version 1, with thresholds and weights that may be doubles."""

    base_values_as_tensor: Array | None = None
    nodes_hitrates_as_tensor: Array | None = None
    nodes_values_as_tensor: Array | None = None
    target_weights_as_tensor: Array | None = None


@register("TreeEnsembleClassifier", since=1, domain=ML)
@dataclass(frozen=True, slots=True)
class TreeEnsembleClassifier1(NodesById):
    """The class with the greatest sum of votes, and the scores (N, classes) in float32.

    When all votes are for the first of two classes, their sum s is the score of the second one,
    which is chosen where s > 0.5 (weights all >= 0) or s > 0; the scores are then 1 - s (or -s)
    and s, or what the transform makes of -s and s. The specification leaves this case open; the
    rule is that of ONNX Runtime.
    """

    class_ids: tuple[int, ...] = ()
    class_nodeids: tuple[int, ...] = ()
    class_treeids: tuple[int, ...] = ()
    class_weights: tuple[float, ...] = ()
    classlabels_int64s: tuple[int, ...] = ()
    classlabels_strings: tuple[str, ...] = ()

    @property
    def _classes(self) -> int:
        return max(len(self.classlabels_int64s), len(self.classlabels_strings), 1)

    def infer(self, x: Operand, /) -> Sequence[Type]:
        return classified(x, self.classlabels_strings, self._classes)

    def meaning(self, x: Array, /) -> tuple[Array, Array]:
        weights = numbers(self.class_weights, self.double("class_weights"))
        raw = self.votes(
            x, self.class_treeids, self.class_nodeids, self.class_ids, weights, self._classes
        )
        strings, integers = self.classlabels_strings, self.classlabels_int64s
        base = self.base()
        if self._classes == 2 and set(self.class_ids) == {0}:
            score = raw[:, :1] + (base[0] if base.size else 0)
            positive = bool((weights >= 0).all())
            chosen = score[:, 0] > (0.5 if positive else 0.0)
            scores = two_scores(score, self.post_transform, complement=float(positive))
        else:
            score = raw + base if base.size else raw
            scores = transform_scores(score, self.post_transform)
            if self._classes == 1:
                strings, integers = ("", *strings) if strings else (), (0, *(integers or (1,)))
                chosen = score[:, 0] > 0
            else:
                chosen = np.argmax(score, axis=1)
        labels = pick_labels(chosen.astype(np.int64), strings, integers)
        return labels, scores.astype(np.float32)


@register("TreeEnsembleClassifier", since=3, domain=ML)
@dataclass(frozen=True, slots=True)
class TreeEnsembleClassifier(TreeEnsembleClassifier1):
    """As version 1, with thresholds and weights that may be doubles."""

    base_values_as_tensor: Array | None = None
    class_weights_as_tensor: Array | None = None
    nodes_hitrates_as_tensor: Array | None = None
    nodes_values_as_tensor: Array | None = None


@register("TreeEnsemble", since=5, domain=ML)
@dataclass(frozen=True, slots=True)
class TreeEnsemble(Operator):
    """The aggregated weights of the leaves that each row reaches: (N, F) to (N, n_targets).

    Inner nodes and leaves are numbered apart; a node may also test membership of a set.
    """

    leaf_targetids: tuple[int, ...]
    leaf_weights: Array
    nodes_falseleafs: tuple[int, ...]
    nodes_falsenodeids: tuple[int, ...]
    nodes_featureids: tuple[int, ...]
    nodes_modes: Array
    nodes_splits: Array
    nodes_trueleafs: tuple[int, ...]
    nodes_truenodeids: tuple[int, ...]
    tree_roots: tuple[int, ...]
    aggregate_function: int = 1
    membership_values: Array | None = None
    n_targets: int = 1
    nodes_hitrates: Array | None = None
    nodes_missing_value_tracks_true: tuple[int, ...] = ()
    post_transform: int = 0

    def infer(self, x: Operand, /) -> Sequence[Type]:
        count = count_of(x)
        return [TensorType(x.dtype, None if count is None else (count, self.n_targets))]

    def meaning(self, x: Array, /) -> Array:
        if not 0 <= self.aggregate_function < len(_FUNCTIONS):
            raise ValueError(f"aggregate_function is {self.aggregate_function}, expected 0 to 3")
        if not 0 <= self.post_transform < len(_TRANSFORMS):
            raise ValueError(f"post_transform is {self.post_transform}, expected 0 to 4")
        count = len(self.leaf_targetids)
        votes = Votes(
            len(self.nodes_modes) + np.arange(count),
            np.array(self.leaf_targetids, np.int64),
            self.leaf_weights.reshape(-1),
        )
        leaves = self._forest(count).leaves(rows_of(x))
        scores = votes.collect(leaves, self.n_targets, _FUNCTIONS[self.aggregate_function])
        return transform_scores(scores, _TRANSFORMS[self.post_transform]).astype(x.dtype)

    def _forest(self, leaves: int) -> Forest:
        """All nodes, the leaves after the inner ones."""
        inner = len(self.nodes_modes)
        ends = np.arange(inner, inner + leaves)

        def targets(ids: Sequence[int], is_leaf: Sequence[int]) -> Array:
            moved = np.array(ids, np.int64) + inner * np.array(is_leaf, np.int64)
            return np.concatenate([moved, ends])

        def padded(values: Array, filler: float) -> Array:
            return np.concatenate([values, np.full(leaves, filler, values.dtype)])

        missing = self.nodes_missing_value_tracks_true or (0,) * inner
        return Forest(
            feature=padded(np.array(self.nodes_featureids, np.int64), 0),
            mode=padded(self.nodes_modes.astype(np.int64), LEAF),
            threshold=padded(self.nodes_splits.astype(np.float64), 0),
            when_true=targets(self.nodes_truenodeids, self.nodes_trueleafs),
            when_false=targets(self.nodes_falsenodeids, self.nodes_falseleafs),
            missing_is_true=padded(np.array(missing, bool), 0),
            roots=np.array(self.tree_roots, np.int64),
            members=self._members(),
        )

    def _members(self) -> dict[int, Array]:
        """The set of each membership node: runs of values, each ended by a NaN."""
        nodes = np.flatnonzero(self.nodes_modes == MEMBER)
        values = numbers((), self.membership_values)
        ends = np.flatnonzero(np.isnan(values))
        sets = [run[~np.isnan(run)] for run in np.split(values, ends + 1)]
        if sets and not sets[-1].size:
            sets.pop()
        if len(sets) != len(nodes):
            raise ValueError(f"{len(sets)} sets of members for {len(nodes)} membership nodes")
        return dict(zip(nodes.tolist(), sets, strict=True))
