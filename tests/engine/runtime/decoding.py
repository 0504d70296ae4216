"""A decoding step in small: caches as inputs, their updates as outputs, attention over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.engine.small_models import model

BATCH, HEADS, LENGTH, SIZE = 2, 4, 96, 64
UPDATES = {"present_k": "past_k", "present_v": "past_v"}
_HEAD = f"float16[{BATCH}, {HEADS}, 1, {SIZE}]"
_CACHE = f"float16[{BATCH}, {HEADS}, {LENGTH}, {SIZE}]"
BODY = f"""({_HEAD} q, {_HEAD} k, {_HEAD} v, int64[1] place, {_CACHE} past_k, {_CACHE} past_v)
    => ({_HEAD} y, {_CACHE} present_k, {_CACHE} present_v) {{
    row = Reshape (place, one_by_one)
    before_k = Transpose <perm = [2, 0, 1, 3]> (past_k)
    rows_k = Transpose <perm = [2, 0, 1, 3]> (k)
    after_k = ScatterND (before_k, row, rows_k)
    present_k = Transpose <perm = [1, 2, 0, 3]> (after_k)
    before_v = Transpose <perm = [2, 0, 1, 3]> (past_v)
    rows_v = Transpose <perm = [2, 0, 1, 3]> (v)
    after_v = ScatterND (before_v, row, rows_v)
    present_v = Transpose <perm = [1, 2, 0, 3]> (after_v)
    joined = Reshape (present_k, matrices)
    across = Transpose <perm = [0, 2, 1]> (joined)
    turned = Reshape (across, turned_shape)
    products = MatMul (q, turned)
    scaled = Mul (products, scale)
    seen = LessOrEqual (rows, place)
    mask = Where (seen, zero, low)
    scores = Add (scaled, mask)
    weights = Softmax <axis = -1> (scores)
    y = MatMul (weights, present_v) }}"""


def decoding_model() -> onnx.ModelProto:
    """Attention of one query over all rows up to the place, as PyTorch exports it."""
    weights: dict[str, Any] = {
        "one_by_one": np.array([1, 1], np.int64),
        "matrices": np.array([-1, LENGTH, SIZE], np.int64),
        "turned_shape": np.array([BATCH, HEADS, SIZE, LENGTH], np.int64),
        "zero": np.array(0, np.float16),
        "scale": np.array(SIZE**-0.5, np.float16),
        "rows": np.arange(LENGTH, dtype=np.int64).reshape(1, 1, 1, LENGTH),
        "low": np.array(-np.inf, np.float16),
    }
    return model(BODY, opset=20, weights=weights)


def new_rows(step: int) -> dict[str, Any]:
    """Query, key and value of one step, and its place."""
    random = np.random.default_rng(step)
    found: dict[str, Any] = {
        name: random.standard_normal((BATCH, HEADS, 1, SIZE)).astype(np.float16) for name in "qkv"
    }
    return found | {"place": np.array([step], np.int64)}


class Truth:
    """The same in float64."""

    def __init__(self) -> None:
        self.keys = np.zeros((BATCH, HEADS, LENGTH, SIZE))
        self.values = np.zeros((BATCH, HEADS, LENGTH, SIZE))

    def step(self, rows: dict[str, Any]) -> np.ndarray:
        """What the step gives."""
        place = int(rows["place"][0])
        self.keys[:, :, place] = rows["k"][:, :, 0]
        self.values[:, :, place] = rows["v"][:, :, 0]
        scores = rows["q"].astype(np.float64) @ self.keys[:, :, : place + 1].swapaxes(2, 3)
        scores *= SIZE**-0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found: np.ndarray = weights @ self.values[:, :, : place + 1]
        return found
