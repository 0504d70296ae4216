"""Fused attention and caches: their meanings, and reading them from hostile JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType
from engine.ops.cache_update import CachedAttention, CacheUpdate
from engine.ops.fused_attention import FusedAttention, HeadAccess

ROWS = HeadAccess(0, 24, 4, 8)
CACHE = HeadAccess(0, 40, 20, 4)
DECODE = FusedAttention(
    4,
    0.5,
    (symbol("B"), 2, 3, 5),
    ROWS,
    CACHE,
    CACHE,
    ROWS,
    (symbol("B"), 3, 2, 4),
    ((symbol("B"), 3, 2, 4), (symbol("B"), 2, 5, 4), (symbol("B"), 2, 5, 4), (symbol("B"),)),
    position="batch",
    causal=True,
    past=-1,
    dtype=DType.FLOAT16,
    guarded=True,
)
UPDATE = CacheUpdate(
    4, (symbol("B"), 2, 3), 5, CACHE, ROWS, "one",
    ((symbol("B"), 2, 5, 4), (symbol("B"), 3, 2, 4), (1,)),
)  # fmt: skip
STEP = CachedAttention(DECODE, UPDATE, UPDATE)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def test_each_query_sees_the_keys_up_to_its_own_place() -> None:
    q, k, v = random(2, 3, 2, 4), random(2, 2, 5, 4, seed=1), random(2, 2, 5, 4, seed=2)
    found = DECODE.meaning(q, k, v, np.array([3, 0]))
    assert found.dtype == np.float16
    for batch, position in ((0, 3), (1, 0)):
        for row in range(3):
            seen = min(5, max(0, row + position))
            for head in range(2):
                keys, values = k[batch, head, :seen], v[batch, head, :seen]
                scores = 0.5 * keys.astype(np.float32) @ q[batch, row, head].astype(np.float32)
                powers = np.exp(scores)
                wanted = powers @ values.astype(np.float32) / max(powers.sum(), 1e-9)
                np.testing.assert_allclose(found[batch, row, head], wanted, rtol=2e-3, atol=2e-3)
    assert not found[1, 0].any(), "a guarded query without keys gives zeros"
    with np.errstate(invalid="ignore"):
        plain = replace(DECODE, guarded=False).meaning(q, k, v, np.array([3, 0]))
    assert np.isnan(plain[1, 0]).all()


def test_rows_are_written_to_a_copy() -> None:
    cache, rows = random(2, 2, 5, 4), random(2, 3, 2, 4, seed=1)
    before = cache.copy()
    found = UPDATE.meaning(cache, rows, np.array([-3]))
    np.testing.assert_array_equal(cache, before)
    np.testing.assert_array_equal(found[:, :, 2:], rows.transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(found[:, :, :2], before[:, :, :2])
    for place in (3, -6):
        with pytest.raises(ValueError, match="are written to a cache of 5"):
            UPDATE.meaning(cache, rows, np.array([place]))


@pytest.mark.parametrize("op", [DECODE, UPDATE, STEP], ids=lambda op: type(op).__name__)
def test_operators_come_back_from_json(op: Any) -> None:
    assert type(op).from_attributes(json.loads(json.dumps(op.attributes()))) == op


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        (DECODE, "dtype", "int8"),
        (DECODE, "position", "some"),
        (DECODE, "past", ["nor", 1, 2]),
        (DECODE, "head_size", True),
        (DECODE, "operands", [[1]] * 6),
        (UPDATE, "places", "none"),
        (UPDATE, "accesses", [[0, 0, 0, 0]]),
        (UPDATE, "head_size", 0),
        (UPDATE, "length", ["mod", 3, 0]),
        (STEP, "key", []),
        (STEP, "attention", 3),
    ],
)
def test_hostile_json_is_refused(op: Any, name: str, value: Any) -> None:
    fields = json.loads(json.dumps(op.attributes()))
    with pytest.raises(ValueError, match=r"attention|cache|size expression"):
        type(op).from_attributes({**fields, name: value})
    del fields[name]
    with pytest.raises(ValueError, match="other fields"):
        type(op).from_attributes(fields)
