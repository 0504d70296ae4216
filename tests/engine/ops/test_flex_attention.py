"""FlexAttention with and without bodies agrees with onnx's backend suite."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from engine.debug.interpret import interpret
from engine.onnx_io.reader import read

NAMES = (
    "test_flexattention",
    "test_flexattention_causal_mask",
    "test_flexattention_prob_mod",
    "test_flexattention_relative_positional",
    "test_flexattention_score_mod",
    "test_flexattention_soft_cap",
)


@cache
def suite() -> dict[str, Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node") if case.name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_bodies_change_scores_and_weights(name: str) -> None:
    case = suite()[name]
    model: ModelProto = case.model
    ((inputs, outputs),) = case.data_sets
    graph = read(model.SerializeToString())
    feeds = {i.name: as_array(v) for i, v in zip(model.graph.input, inputs, strict=True)}
    (found,) = interpret(graph, feeds).values()
    np.testing.assert_allclose(found, as_array(outputs[0]), rtol=case.rtol, atol=1e-6)


def as_array(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else numpy_helper.to_array(value)
