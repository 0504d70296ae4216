"""Forests give the answers of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.ir.types import DType
from engine.ops import find
from tests.engine.ops.peer import agrees_with_peer, build, samples

MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]


def forest(trees: int, depth: int, features: int, seed: int, modes: list[str]) -> dict[str, Any]:
    """The attributes of random full trees of one depth."""
    rng = np.random.default_rng(seed)
    inner, total = 2**depth - 1, 2 ** (depth + 1) - 1
    names = ["treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids"]
    nodes: dict[str, list[Any]] = {name: [] for name in [*names, "missing_value_tracks_true"]}
    for tree in range(trees):
        for node in range(total):
            leaf = node >= inner
            nodes["treeids"].append(tree)
            nodes["nodeids"].append(node)
            nodes["featureids"].append(0 if leaf else int(rng.integers(features)))
            nodes["values"].append(0.0 if leaf else float(np.float32(rng.integers(-2, 3))))
            nodes["modes"].append("LEAF" if leaf else str(rng.choice(modes)))
            nodes["truenodeids"].append(0 if leaf else 2 * node + 1)
            nodes["falsenodeids"].append(0 if leaf else 2 * node + 2)
            nodes["missing_value_tracks_true"].append(0 if leaf else int(rng.integers(2)))
    return {f"nodes_{name}": values for name, values in nodes.items()}


def votes(attributes: dict[str, Any], ids: list[int], kind: str, *, low: float) -> dict[str, Any]:
    """One vote per leaf and id."""
    rng = np.random.default_rng(9)
    leaves = [i for i, mode in enumerate(attributes["nodes_modes"]) if mode == "LEAF"]
    pairs = [(leaf, target) for leaf in leaves for target in ids]
    return {
        f"{kind}_treeids": [attributes["nodes_treeids"][leaf] for leaf, _ in pairs],
        f"{kind}_nodeids": [attributes["nodes_nodeids"][leaf] for leaf, _ in pairs],
        f"{kind}_ids": [target for _, target in pairs],
        f"{kind}_weights": rng.uniform(low, 1, len(pairs)).astype(np.float32).tolist(),
    }


def rows(dtype: Any = np.float32) -> Any:
    """Rows of small whole numbers, so that equality happens; floats with some NaN."""
    x = np.random.default_rng(3).integers(-2, 3, (40, 4)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        x[::5, 1] = np.nan
    return x


@pytest.mark.parametrize("mode", [*MODES, "all"])
def test_every_comparison_agrees_with_onnx_runtime(mode: str) -> None:
    nodes = forest(3, 3, 4, 1, MODES if mode == "all" else [mode])
    x = rows()
    if mode in ("BRANCH_NEQ", "all"):
        x = np.nan_to_num(x)  # ONNX Runtime takes NaN as unequal before it looks at the flag
    agrees_with_peer(
        "TreeEnsembleRegressor",
        [x],
        [DType.FLOAT32],
        n_targets=2,
        **nodes,
        **votes(nodes, [0, 1], "target", low=-1),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flag", [0, 1])
def test_a_missing_value_goes_the_way_that_its_node_says(mode: str, flag: int) -> None:
    nodes = forest(1, 1, 1, 1, [mode])
    nodes["nodes_missing_value_tracks_true"][0] = flag
    operator = build(
        "TreeEnsembleRegressor",
        **nodes,
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[1.0, 0.0],
    )
    assert operator.meaning(np.array([[np.nan]], np.float32)).item() == flag


@pytest.mark.parametrize("function", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_aggregation_agrees_with_onnx_runtime(function: str, dtype: type) -> None:
    nodes = forest(4, 2, 4, 2, MODES[:2])
    agrees_with_peer(
        "TreeEnsembleRegressor",
        [rows(dtype)],
        [DType.FLOAT32],
        n_targets=2,
        aggregate_function=function,
        base_values=[0.5, -1.0],
        **nodes,
        **votes(nodes, [0, 1], "target", low=-1),
    )


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_a_classifier_of_three_classes_agrees_with_onnx_runtime(transform: str) -> None:
    nodes = forest(3, 3, 4, 4, MODES[:4])
    agrees_with_peer(
        "TreeEnsembleClassifier",
        [rows()],
        [DType.STRING, DType.FLOAT32],
        classlabels_strings=["a", "b", "c"],
        post_transform=transform,
        **nodes,
        **votes(nodes, [0, 1, 2], "class", low=0),
    )


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
@pytest.mark.parametrize("base", [[], [0.125]])
def test_votes_for_one_of_two_classes_agree_with_onnx_runtime(
    transform: str, base: list[float]
) -> None:
    nodes = forest(2, 2, 4, 5, MODES[:1])
    more = {"base_values": base} if base else {}
    agrees_with_peer(
        "TreeEnsembleClassifier",
        [rows()],
        [DType.INT64, DType.FLOAT32],
        classlabels_int64s=[3, 8],
        post_transform=transform,
        **more,
        **nodes,
        **votes(nodes, [0], "class", low=-1),
    )


def test_votes_that_are_never_negative_need_more_than_a_half() -> None:
    nodes = forest(1, 2, 4, 6, MODES[:1])
    (labels, scores) = agrees_with_peer(
        "TreeEnsembleClassifier",
        [rows()],
        [DType.INT64, DType.FLOAT32],
        classlabels_int64s=[3, 8],
        **nodes,
        **votes(nodes, [0], "class", low=0),
    )
    assert (labels == np.where(scores[:, 1] > 0.5, 8, 3)).all()


def test_thresholds_may_be_doubles() -> None:
    third = 1 / 3  # lies between two neighbouring float32 numbers
    operator = find("ai.onnx.ml", "TreeEnsembleRegressor", 3).from_attributes(
        {
            "nodes_treeids": (0, 0, 0),
            "nodes_nodeids": (0, 1, 2),
            "nodes_featureids": (0, 0, 0),
            "nodes_modes": ("BRANCH_LEQ", "LEAF", "LEAF"),
            "nodes_truenodeids": (1, 0, 0),
            "nodes_falsenodeids": (2, 0, 0),
            "nodes_values_as_tensor": np.array([third, 0, 0]),
            "target_treeids": (0, 0),
            "target_nodeids": (1, 2),
            "target_ids": (0, 0),
            "target_weights_as_tensor": np.array([1.0, 2.0]),
        }
    )
    x = np.array([[third], [np.nextafter(third, 1)]])
    assert operator.meaning(x).ravel().tolist() == [1, 2]


def test_no_rows_reach_no_leaves() -> None:
    nodes = forest(2, 2, 4, 5, MODES[:1])
    operator = build(
        "TreeEnsembleRegressor", n_targets=2, **nodes, **votes(nodes, [0], "target", low=0)
    )
    assert operator.meaning(np.zeros((0, 4), np.float32)).shape == (0, 2)


def test_a_circle_of_nodes_is_refused() -> None:
    nodes = forest(1, 1, 2, 5, MODES[:1])
    nodes["nodes_truenodeids"][0] = nodes["nodes_falsenodeids"][0] = 0
    operator = build("TreeEnsembleRegressor", **nodes, **votes(nodes, [0], "target", low=0))
    with pytest.raises(ValueError, match="circle"):
        operator.meaning(samples(2, 2))


def test_a_branch_to_nowhere_is_refused() -> None:
    nodes = forest(1, 1, 2, 5, MODES[:1])
    nodes["nodes_truenodeids"][0] = 17
    operator = build("TreeEnsembleRegressor", **nodes, **votes(nodes, [0], "target", low=0))
    with pytest.raises(ValueError, match="tree 0 has no node 17"):
        operator.meaning(samples(2, 2))
