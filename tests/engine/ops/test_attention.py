"""Attention weighs values as its definition says, with masks, caches, windows and shared heads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from engine.ops.attention import Attention, attention_weights

RANDOM = np.random.default_rng(0)


def tensors(heads: int = 4, shared: int = 2, queries: int = 3, keys: int = 5):
    q = RANDOM.standard_normal((2, heads, queries, 8))
    k = RANDOM.standard_normal((2, shared, keys, 8))
    return q, k, RANDOM.standard_normal((2, shared, keys, 6))


def by_definition(q, k, v, bias):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scores = np.einsum("nhld,nhsd->nhls", q, k) / np.sqrt(q.shape[-1]) + bias
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("nhls,nhsd->nhld", powers / powers.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_heads_share_keys_in_order(shared: int) -> None:
    q, k, v = tensors(shared=shared)
    np.testing.assert_allclose(Attention().meaning(q, k, v)[0], by_definition(q, k, v, 0))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1), st.integers(-1, 3), st.integers(-1, 2), st.integers(0, 4), st.booleans())
def test_what_may_be_seen_is_what_the_definition_allows(
    causal: int, left: int, right: int, past: int, masked: bool
) -> None:
    q, k, v = tensors(queries=4, keys=4)
    before = RANDOM.standard_normal((2, 2, past, 8)), RANDOM.standard_normal((2, 2, past, 6))
    mask = RANDOM.random((4, past + 4)) > 0.3 if masked else None
    allowed = np.ones((4, past + 4), bool) if mask is None else mask.copy()
    for i, j in np.ndindex(*allowed.shape):
        place = past + i
        allowed[i, j] &= not causal or j <= place
        allowed[i, j] &= left < 0 or j >= place - left
        allowed[i, j] &= right < 0 or j <= place + right
    operator = Attention(is_causal=causal, left_window_size=left, right_window_size=right)
    y, keys, values, weights = operator.meaning(q, k, v, mask, *before)
    np.testing.assert_array_equal(keys[:, :, :past], before[0])
    with np.errstate(all="ignore"):
        bias = np.where(allowed, 0, -np.inf)
        expected = np.nan_to_num(by_definition(q, keys, values, bias), nan=0.0)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
    assert weights.shape == (2, 4, 4, past + 4)


def test_caches_from_outside_hide_what_is_not_filled() -> None:
    q, k, v = tensors(queries=2, keys=6)
    y, *_ = Attention(is_causal=1).meaning(q, k, v, None, None, None, np.array([3, 1]))
    first = by_definition(q[:1], k[:1, :, :3], v[:1, :, :3], np.array([[0, 0, -np.inf], [0] * 3]))
    np.testing.assert_allclose(y[:1], first)
    assert (y[1, :, 0] == 0).all()
    np.testing.assert_allclose(y[1, :, 1], v[1, :, 0].repeat(2, axis=0))


def test_packed_heads_are_the_same_heads() -> None:
    q, k, v = tensors()
    packed = [x.transpose(0, 2, 1, 3).reshape(2, x.shape[2], -1) for x in (q, k, v)]
    flat = Attention(q_num_heads=4, kv_num_heads=2).meaning(*packed)[0]
    whole = Attention().meaning(q, k, v)[0]
    np.testing.assert_allclose(flat, whole.transpose(0, 2, 1, 3).reshape(2, 3, -1))


def test_the_stages_of_the_scores_follow_each_other() -> None:
    q, k, v = tensors()
    mask = RANDOM.standard_normal((3, 5))
    raw, capped, biased, weights = (
        Attention(qk_matmul_output_mode=mode, softcap=0.7).meaning(q, k, v, mask)[3]
        for mode in range(4)
    )
    np.testing.assert_allclose(capped, 0.7 * np.tanh(raw / 0.7))
    np.testing.assert_allclose(biased, capped + mask)
    np.testing.assert_allclose(weights.sum(axis=-1), 1)
    np.testing.assert_allclose(weights, attention_weights(biased))


def test_a_short_mask_hides_the_keys_behind_it() -> None:
    q, k, v = tensors()
    short = Attention().meaning(q, k, v, np.ones((3, 2), bool))[0]
    np.testing.assert_allclose(short, by_definition(q, k[:, :, :2], v[:, :, :2], 0))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("version", [23, 24, 25])
def test_narrow_floats_are_rounded_once(dtype: type, version: int) -> None:
    inputs = [x.astype(dtype) for x in tensors()]
    operator = find("", "Attention", version)()
    wide = operator.meaning(*(x.astype(np.float32) for x in inputs))
    for found, expected in zip(operator.meaning(*inputs), wide, strict=True):
        np.testing.assert_array_equal(found, expected.astype(dtype))


def test_symbolic_lengths_add_up() -> None:
    def operand(*shape: object) -> Operand:
        return Operand(TensorType(DType.FLOAT32, shape))  # type: ignore[arg-type]

    n, length, past = symbol("n"), symbol("l"), symbol("p")
    q, k = operand(n, length, 32), operand(n, length, 16)
    cache = operand(n, 2, past, 8)
    operator = Attention(q_num_heads=4, kv_num_heads=2)
    types = operator.infer(q, k, k, None, cache, cache)
    assert [kind.shape for kind in types] == [
        (n, length, 32),
        (n, 2, past + length, 8),
        (n, 2, past + length, 8),
        (n, 4, length, past + length),
    ]


@pytest.mark.parametrize(
    ("operator", "shapes", "message"),
    [
        (Attention(), [(2, 3, 8)] * 3, "numbers of heads"),
        (Attention(), [(2, 4, 3, 8), (2, 4, 3, 6), (2, 4, 3, 6)], "size of a head"),
        (Attention(softmax_precision=7), [(2, 4, 3, 8)] * 3, "softmax_precision"),
    ],
)
def test_contradictions_are_refused(operator, shapes, message) -> None:
    with pytest.raises(ValueError, match=message):
        operator.infer(*(Operand(TensorType(DType.FLOAT32, shape)) for shape in shapes))
