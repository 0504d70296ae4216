"""Attention kernels against NumPy and against their twins."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.kernels.attention import Attention, candidates
from engine.kernels.kernel import Array

SETTINGS = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def attend(q: Array, k: Array, v: Array, scale: float, add: Array) -> Array:
    """Attention in float64 over [batch, heads, rows, head] arrays."""
    scores = (q.astype(np.float64) * scale) @ k.astype(np.float64).swapaxes(-1, -2) + add
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    result: Array = (weights / weights.sum(-1, keepdims=True)) @ v.astype(np.float64)
    return result


def heads_of(x: Array, heads: int) -> Array:
    """[batch, rows, heads * head] as [batch, heads, rows, head]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def packed_sizes(batch: int, heads: int, rows: int, head: int, mask: tuple[int, ...]) -> list[int]:
    """Sizes for queries, keys and values side by side in one projection [batch, rows, 3 * d]."""
    d = heads * head
    inside = [rows * 3 * d, head, 3 * d]
    return [batch, heads, 1, rows, rows, 0, *inside * 3, rows * d, head, d, *mask]


@SETTINGS
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    rows=st.sampled_from([1, 2, 15, 33, 64, 130]),
    head=st.sampled_from([4, 16, 24, 64, 80]),
    mask=st.sampled_from(["none", "key", "full"]),
    causal=st.booleans(),
    query_block=st.sampled_from([16, 32, 64]),
)
def test_packed_projections_are_read_in_place(
    check: Any,
    batch: int,
    heads: int,
    rows: int,
    head: int,
    mask: str,
    causal: bool,
    query_block: int,
) -> None:
    rng = np.random.default_rng(rows * head)
    packed = rng.standard_normal((batch, rows, 3 * heads * head), dtype=np.float32)
    kernel = Attention(head, head**-0.5, mask, causal, query_block, 48)
    strides = {"none": (0, 0, 0), "key": (rows, 0, 0), "full": (rows * rows, 0, rows)}[mask]
    sizes = packed_sizes(batch, heads, rows, head, strides)
    flat, d = packed.reshape(-1), heads * head
    operands = [flat, flat[d:], flat[2 * d :]]
    add: Array = np.zeros((batch, 1, 1, 1))
    if mask != "none":
        shape = (batch, 1, rows, rows) if mask == "full" else (batch, 1, 1, rows)
        add = rng.standard_normal(shape).astype(np.float32)
        operands.append(add.reshape(-1))
    operands.append(np.zeros(batch * rows * d, np.float32))
    y = check.agree(kernel, operands, sizes, tolerance=1e-5)
    if causal:
        add = add + np.where(np.tri(rows, dtype=bool), 0, -np.inf)
    q, k, v = (heads_of(part, heads) for part in np.split(packed, 3, axis=-1))
    expected = attend(q, k, v, head**-0.5, add).swapaxes(1, 2)
    np.testing.assert_allclose(
        y.reshape((*expected.shape[:2], d)), expected.reshape(batch, rows, d), rtol=1e-4, atol=1e-5
    )


def test_groups_of_heads_share_keys_and_a_cache_comes_before(
    check: Any, normal: Callable[..., Array]
) -> None:
    q, k, v = normal(1, 1, 6, 3, 16), normal(2, 1, 2, 20, 16), normal(3, 1, 2, 20, 16)
    sizes = [1, 6, 3, 3, 20, 17, 288, 48, 16, 640, 320, 16, 640, 320, 16, 288, 48, 16, 0, 0, 0]
    kernel = Attention(16, 0.25, causal=True)
    y = check.agree(kernel, [q, k, v, np.zeros(288, np.float32)], sizes, tolerance=1e-5)
    visible = np.arange(20) <= np.arange(3)[:, None] + 17
    wide = [np.repeat(x, 3, axis=1) for x in (k, v)]
    expected = attend(q, *wide, 0.25, np.where(visible, 0, -np.inf))
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_hidden_keys_do_not_count_even_when_a_whole_block_is_hidden(
    check: Any, normal: Callable[..., Array]
) -> None:
    x = normal(1, 1, 40, 3 * 16)
    mask = np.zeros(40, np.float32)
    mask[:33] = -np.inf  # two whole blocks of keys
    kernel, flat = Attention(16, 0.25, "key", key_block=16), x.reshape(-1)
    sizes = packed_sizes(1, 1, 40, 16, (40, 0, 0))
    operands = [flat, flat[16:], flat[32:], mask, np.zeros(640, np.float32)]
    y = check.agree(kernel, operands, sizes, tolerance=1e-5)
    q, k, v = (part[:, None] for part in np.split(x, 3, axis=-1))
    expected = attend(q, k[:, :, 33:], v[:, :, 33:], 0.25, np.zeros(1))
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_no_key_gives_nan(check: Any, normal: Callable[..., Array]) -> None:
    flat = normal(1, 4 * 3 * 16).reshape(-1)
    mask = np.full(4, -np.inf, np.float32)
    operands = [flat, flat[16:], flat[32:], mask, np.zeros(64, np.float32)]
    y = check.agree(Attention(16, 1.0, "key"), operands, packed_sizes(1, 1, 4, 16, (4, 0, 0)))
    assert np.isnan(y).all()
    operands[-1] = np.ones(64, np.float32)
    guarded = Attention(16, 1.0, "key", guarded=True)
    assert not check.agree(guarded, operands, packed_sizes(1, 1, 4, 16, (4, 0, 0))).any()


def test_large_scores_do_not_overflow(check: Any) -> None:
    flat = np.full(8 * 3 * 16, 50.0, np.float32)
    operands = [flat, flat[16:], flat[32:], np.zeros(128, np.float32)]
    y = check.agree(Attention(16, 1.0), operands, packed_sizes(1, 1, 8, 16, (0, 0, 0)))
    np.testing.assert_allclose(y, 50.0, rtol=1e-5)


def test_a_kernel_comes_back_from_json_and_refuses_hostile_fields() -> None:
    for kernel in candidates(head_size=64, scale=0.125, mask="key", keys=197):
        fields = json.loads(json.dumps(kernel.to_json()))
        assert Attention.from_json(fields) == kernel
    for name, values in {
        "head_size": (0, 257, True, "64"),
        "scale": (0.5, "nan", "inf", "x" * 100, None),
        "mask": ("some", 1),
        "causal": (1, None),
        "query_block": (0, 17, 1024, True),
        "key_block": (0, 4096),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=r"field|hex|float"):
                Attention.from_json({**fields, name: value})


def test_a_group_of_nothing_is_refused() -> None:
    sizes = [1, 1, 0, 1, 1, 0] + [1] * 15
    with pytest.raises(ValueError, match="group"):
        Attention(16, 1.0).extents(sizes)
