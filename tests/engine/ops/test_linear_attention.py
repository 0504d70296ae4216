"""Recurrent attention and rotary positions keep the identities that define them."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ops.linear_attention import LinearAttention, RotaryEmbedding

RANDOM = np.random.default_rng(0)


def inputs(rule: str, steps: int = 6):
    q = RANDOM.standard_normal((2, steps, 4 * 3)).astype(np.float32)
    k = RANDOM.standard_normal((2, steps, 2 * 3)).astype(np.float32)
    v = RANDOM.standard_normal((2, steps, 2 * 5)).astype(np.float32)
    gate = -RANDOM.random((2, steps, 2 * 3)).astype(np.float32) if "gated" in rule else None
    rate = RANDOM.random((2, steps, 2)).astype(np.float32) if "delta" in rule else None
    return [q, k, v, None, gate, rate]


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_a_sequence_in_two_pieces_gives_what_one_gives(rule: str) -> None:
    operator = LinearAttention(q_num_heads=4, kv_num_heads=2, update_rule=rule)
    given = inputs(rule)
    whole, last = operator.meaning(*given)
    pieces, state = [], None
    for cut in (slice(0, 2), slice(2, 6)):
        part = [None if x is None else x[:, cut] for x in given]
        part[3] = state
        out, state = operator.meaning(*part)
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-6)
    assert last.shape == (2, 2, 3, 5)


def test_the_linear_rule_is_causal_attention_without_softmax() -> None:
    q, k, v, *_ = inputs("linear")
    operator = LinearAttention(q_num_heads=4, kv_num_heads=2, scale=0.5, update_rule="linear")
    found, _ = operator.meaning(q, k, v)
    heads = [x.reshape(2, 6, h, -1) for x, h in ((q, 4), (k, 2), (v, 2))]
    k4, v4 = heads[1].repeat(2, axis=2), heads[2].repeat(2, axis=2)
    scores = np.tril(np.einsum("nthd,nshd->nhts", heads[0], k4)) * 0.5
    expected = np.einsum("nhts,nshd->nthd", scores, v4).reshape(2, 6, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_delta_rule_at_full_rate_replaces_what_a_key_stood_for() -> None:
    operator = LinearAttention(q_num_heads=1, kv_num_heads=1, scale=1.0, update_rule="delta")
    key = np.eye(3, dtype=np.float32)[None, [0, 1, 0]]
    value = np.array([[[1], [2], [3]]], np.float32)
    found, _ = operator.meaning(key, key, value, None, None, np.ones((1, 3, 1), np.float32))
    np.testing.assert_array_equal(found, value)


def test_inputs_that_a_rule_does_not_take_are_refused() -> None:
    operator = LinearAttention(q_num_heads=4, kv_num_heads=2, update_rule="gated")
    with pytest.raises(ValueError, match="needs input 'decay'"):
        operator.meaning(*inputs("linear"))
    with pytest.raises(ValueError, match="takes no input 'beta'"):
        operator.meaning(*inputs("gated_delta"))
    with pytest.raises(ValueError, match="update_rule"):
        LinearAttention(q_num_heads=4, kv_num_heads=2, update_rule="x").meaning(*inputs("linear"))


def angles(positions: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    turn = np.outer(np.arange(positions), 1 / 10 ** np.arange(half))
    return np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_products_depend_on_the_distance_of_positions_only(interleaved: int) -> None:
    cos, sin = angles(20, 4)
    operator = RotaryEmbedding(interleaved=interleaved)
    q, k = RANDOM.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def product(i: int, j: int) -> float:
        left = operator.meaning(q, cos, sin, np.array([[i]]))
        right = operator.meaning(k, cos, sin, np.array([[j]]))
        return float((left * right).sum())

    assert product(3, 1) == pytest.approx(product(17, 15), rel=1e-4)


def test_features_beyond_the_rotary_ones_stay() -> None:
    cos, sin = angles(5, 2)
    x = RANDOM.standard_normal((2, 5, 3 * 8)).astype(np.float32)
    position = np.tile(np.arange(5), (2, 1))
    found = RotaryEmbedding(rotary_embedding_dim=4, num_heads=3).meaning(x, cos, sin, position)
    before, after = x.reshape(2, 5, 3, 8), found.reshape(2, 5, 3, 8)
    np.testing.assert_array_equal(after[..., 4:], before[..., 4:])
    norms = [np.square(part[..., :4]).sum(axis=-1) for part in (before, after)]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_caches_of_another_width_are_refused() -> None:
    cos, sin = angles(5, 3)
    with pytest.raises(ValueError, match="angles"):
        RotaryEmbedding().meaning(np.zeros((1, 1, 1, 8)), cos, sin, np.zeros((1, 1), np.int64))
