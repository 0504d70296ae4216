"""Small models on which each fusion fires, or just does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["CONV", "NORM", "PROJECTIONS", "SAMPLES", "Sample", "attention_body", "weight"]

RNG = np.random.default_rng(11)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@dataclass
class Sample:
    """A model, and how often a rule fires on it."""

    body: str
    fires: int = 1
    weights: dict[str, Any] = field(default_factory=dict)
    opset: int = 23


HEADS = "int64[4] split = {0, 0, 2, 4}, int64[3] join = {0, 0, 8}, float scale = {2}"


def attention_body(
    inputs: str = "float[B, L, 8] x", middle: str = "d = Div (s, scale) p = Softmax <axis = -1> (d)"
) -> str:
    """Two heads of four out of projections of x, as exporters write them."""
    return f"""({inputs}) => (float[] y) <{HEADS}> {{
        q0 = MatMul (x, wq) q1 = Reshape (q0, split) q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k0 = MatMul (x, wk) k1 = Reshape (k0, split) k = Transpose <perm = [0, 2, 3, 1]> (k1)
        v0 = MatMul (x, wv) v1 = Reshape (v0, split) v = Transpose <perm = [0, 2, 1, 3]> (v1)
        s = MatMul (q, k)
        {middle}
        o = MatMul (p, v) t = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (t, join)
    }}"""


PROJECTIONS = {"wq": weight(8, 8), "wk": weight(8, 8), "wv": weight(8, 8)}
CONV = {"w": weight(6, 3, 3, 3), "b": weight(6)}
NORM = {"g": weight(6), "m": weight(6), "v": np.abs(weight(6)) + 1}
MASKED = "float[B, L, 8] x, float[B, 1, 1, L] mask"

#: A mask of samples, taken by two indices of which the first is the place in the batch.
PAIRS = """(bool[B, 5] x) => (bool[] y) <int64 zero = {0}, int64 one = {1}, int64[1] first = {0},
    int64[1] next = {1}, int64[1] end = {4}, int64[3] apart = {1, 2, 3},
    int64[1, 1, 1, 5] columns = {0, 1, 2, 3, 4}> {
        s = Shape (x) n = Gather (s, zero) r = Range (zero, n, one) b = Unsqueeze (r, apart)
        c = Max (b, columns) both = Shape (c) i = Expand (b, both) j = Expand (columns, both)
        p = Unsqueeze (i, end) q = Unsqueeze (j, end) at = Concat <axis = -1> (p, q)
        g = GatherND (x, at) y = Not (g) }"""
FLAT = """(bool[B, 5] x) => (bool[] y) <int64 zero = {0}, int64 one = {1}, int64[1] width = {5},
    int64[1] whole = {-1}, int64[2] apart = {1, 2}, int64[1, 1, 5] columns = {0, 1, 2, 3, 4}> {
        s = Shape (x) n = Gather (s, zero) r = Range (zero, n, one) b = Unsqueeze (r, apart)
        f = Reshape (x, whole) m = Mul (b, width) at = Add (columns, m)
        g = Gather (f, at) y = Not (g) }"""
#: A step of decoding: one new row of keys and values, and a query that sees up to it.
DECODING = """(float[B, 24] x, float[B, 2, 6, 4] k, float[B, 2, 6, 4] v, int64[B] at)
    => (float[] y, float[] kn, float[] vn) <int64[3] apart = {1, 2, 3},
    int64[4] shape = {0, 2, 1, 4}, float low = {-65504}, float nothing = {0}, float scale = {0.5}> {
        q0, k0, v0 = Split <axis = 1, num_outputs = 3> (x)
        q = Reshape (q0, shape) k1 = Reshape (k0, shape) v1 = Reshape (v0, shape)
        kn = TensorScatter (k, k1, at) vn = TensorScatter (v, v1, at)
        t = Transpose <perm = [0, 1, 3, 2]> (kn) s0 = MatMul (q, t) s = Mul (s0, scale)
        i = Unsqueeze (at, apart) c = LessOrEqual (index, i)
        m = Where (c, nothing, low) d = Add (s, m)
        p0 = Softmax <axis = -1> (d) bad = IsNaN (p0) p = Where (bad, nothing, p0)
        o = MatMul (p, vn) y = Relu (o) }"""

SAMPLES: dict[str, list[Sample]] = {
    "softmax(q @ k^T * scale + mask) @ v => attention(q, k, v, mask)": [
        Sample(attention_body(), 1, PROJECTIONS),
        Sample(
            attention_body(
                MASKED, "d = Div (s, scale) m = Add (d, mask) p = Softmax <axis = -1> (m)"
            ),
            1,
            PROJECTIONS,
        ),
        Sample(
            attention_body(
                "float[B, L, 8] x, float[L, L] mask",
                "d = Mul (s, scale) m = Add (mask, d) p = Softmax <axis = 3> (m)",
            ),
            1,
            PROJECTIONS,
        ),
        Sample(attention_body(middle="p = Softmax <axis = -1> (s)"), 1, PROJECTIONS),
        Sample(
            """(float[H, L, 4] q, float[H, 4, M] k, float[H, M, 4] v) => (float[] y) {
                s = MatMul (q, k) p = Softmax <axis = -1> (s) y = MatMul (p, v) }""",
            0,
        ),
        Sample(
            """(float[H, L, 4] q, float[H, M, 4] k, float[H, M, 4] v) => (float[] y) {
                t = Transpose <perm = [0, 2, 1]> (k)
                s = MatMul (q, t) p = Softmax <axis = -1> (s) y = MatMul (p, v) }""",
        ),
    ],
    "Attention(q, k, v, mask) => attention(q, k, v, mask)": [
        Sample(
            "(float[B, 2, L, 4] q, float[B, 2, M, 4] k, float[B, 2, M, 4] v) => (float[] y)"
            "{ y = Attention (q, k, v) }"
        ),
        Sample(
            """(float[B, L, 16] q, float[B, M, 8] k, float[B, M, 8] v, float[L, M] m)
            => (float[] y) {
            y = Attention <q_num_heads = 4, kv_num_heads = 2, scale = 0.3> (q, k, v, m) }"""
        ),
        Sample(
            """(float[B, L, 8] q) => (float[] y) {
            y = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, q, q) }"""
        ),
        Sample(
            """(float[B, 2, L, 4] q, float[B, 2, M, 4] k, float[B, 2, K, 4] v) => (float[] y)
            { y = Attention (q, k, v) }""",
            0,
        ),
    ],
    "GatherND(x, (range(batch), range(n))) => view(x)": [Sample(PAIRS)],
    "Gather(flat x, range(batch) * n + range(n)) => view(x)": [Sample(FLAT)],
    "transpose(ScatterND(transpose(cache), place, new)) => cache_update": [
        Sample(
            """(float[B, 2, 6, 4] k, float[1, B, 2, 4] new, int64[1, 1] place) => (float[] y) {
            t = Transpose <perm = [2, 0, 1, 3]> (k) s = ScatterND (t, place, new)
            y = Transpose <perm = [1, 2, 0, 3]> (s) }"""
        ),
        Sample(
            """(float[6, B, 2, 4] k, float[1, B, 2, 4] new, int64[1, 1] place) => (float[] y) {
            y = ScatterND (k, place, new) }"""
        ),
        Sample(
            """(float[6, B, 2, 4] k, float[1, B, 2, 4] new, int64[1, 1] place) => (float[] y) {
            y = ScatterND <reduction = "add"> (k, place, new) }""",
            0,
        ),
    ],
    "ScatterElements(cache, expand(place), new) => cache_update": [
        Sample(
            """(float[B, 6, 2, 4] k, float[B, 1, 2, 4] new, int64[B, 1, 1, 1] place)
            => (float[] y) { size = Shape (new) at = Expand (place, size)
            y = ScatterElements <axis = 1> (k, at, new) }"""
        ),
        Sample(
            """(float[B, 6, 2, 4] k, float[B, 1, 2, 4] new, int64[B, 1, 2, 4] at) => (float[] y) {
            y = ScatterElements <axis = 1> (k, at, new) }""",
            0,
        ),
    ],
    "TensorScatter(cache, new, place) => cache_update": [
        Sample(
            """(float[B, 2, 6, 4] k, float[B, 2, 3, 4] new, int64[B] place) => (float[] y) {
            y = TensorScatter (k, new, place) }""",
            opset=24,
        ),
    ],
    "attention(q, cache_update(k), cache_update(v)) => cached_attention": [
        Sample(DECODING, 1, {"index": np.arange(6).reshape(1, 1, 1, 6)}, opset=24),
        Sample(DECODING.replace("float[] kn, ", ""), 1, {"index": np.arange(6)}, opset=24),
        Sample(
            DECODING.replace("float[] kn, ", "float[] z, ").replace(
                "o = MatMul", "z = Neg (kn) o = MatMul"
            ),
            0,
            {"index": np.arange(6)},
            opset=24,
        ),
    ],
    "q, k, v = x @ wq, x @ wk, x @ wv => qkv = x @ w": [
        Sample(attention_body(), 1, PROJECTIONS),
    ],
    "batch_norm(conv(x, w) + b) => conv(x, w * s) + t": [
        Sample(
            """(float[N, 3, 6, 6] x) => (float[] y) {
            a = Conv (x, w, b) y = BatchNormalization (a, g, b, m, v) }""",
            1,
            {**CONV, **NORM},
        ),
        Sample(
            """(float[N, 3, 6, 6] x) => (float[] y) { a = Conv <group = 3> (x, w)
            y = BatchNormalization <epsilon = 0.1> (a, g, b, m, v) }""",
            1,
            {**NORM, "w": weight(6, 1, 3, 3), "b": weight(6)},
        ),
        Sample(
            """(float[N, 3, 6, 6] x) => (float[] y, float[] a) {
            a = Conv (x, w, b) y = BatchNormalization (a, g, b, m, v) }""",
            0,
            {**CONV, **NORM},
        ),
    ],
    "batch_norm(x) => x * s + t": [
        Sample(
            """(float[N, 6, 4] x) => (float[] y) { y = BatchNormalization (x, g, b, m, v) }""",
            1,
            {**NORM, "b": weight(6)},
        ),
        Sample(
            """(float[N, 6] x) => (float[] z) {
            r = Relu (x) y = BatchNormalization (r, g, b, m, v) z = Exp (y) }""",
            1,
            {**NORM, "b": weight(6)},
        ),
    ],
    "reshape(swap(reshape(x))) => channel_shuffle(x)": [
        Sample(
            """(float[N, 6, 4, 4] x) => (float[] y) <int64[5] a = {0, 3, 2, 4, 4},
            int64[4] b = {0, 6, 4, 4}> { s = Reshape (x, a)
            t = Transpose <perm = [0, 2, 1, 3, 4]> (s) y = Reshape (t, b) }"""
        ),
    ],
    "conv1d(x, w) => view(conv2d(view(x), view(w)))": [
        Sample(
            """(float[N, 4, L] x) => (float[] y) {
            a = Conv <pads = [1, 1], strides = [2]> (x, w, b) y = Relu (a) }""",
            1,
            {"w": weight(6, 4, 3), "b": weight(6)},
        ),
        Sample(
            """(float[N, 4, 9] x) => (float[] y) {
            y = Conv <auto_pad = "SAME_LOWER", strides = [2]> (x, w, b) }""",
            1,
            {"w": weight(6, 4, 3), "b": weight(6)},
        ),
    ],
    "conv(pad(x, 0), w) => conv(x, w)": [
        Sample(
            """(float[N, 3, 6, 6] x) => (float[] y) <int64[8] p = {0, 0, 1, 2, 0, 0, 0, 3}> {
            a = Pad (x, p) y = Conv <pads = [1, 0, 0, 1]> (a, w, b) }""",
            1,
            CONV,
        ),
        Sample(
            """(float[N, 3, 6, 6] x) => (float[] y) <int64[8] p = {0, 0, 1, 2, 0, 0, 0, 3},
            float one = {1}> { a = Pad (x, p, one) y = Conv (a, w, b) }""",
            0,
            CONV,
        ),
    ],
    "gemm(a, b, c) => a @ b + c": [
        Sample(
            "(float[N, 5] x) => (float[] y) { y = Gemm <alpha = 0.5, beta = 2.0> (x, w, c) }",
            1,
            {"w": weight(5, 7), "c": weight(7)},
        ),
        Sample(
            "(float[N, 5] x, float[N, 7] c) => (float[] y) { y = Gemm <transB = 1> (x, w, c) }",
            1,
            {"w": weight(7, 5)},
        ),
        Sample(
            "(float[5, N] x) => (float[] y) { y = Gemm <transA = 1> (x, w) }",
            0,
            {"w": weight(5, 7)},
        ),
    ],
    "matmul(a, b) => a @ b with an epilogue": [
        Sample("(float[B, M, K] x, float[B, K, N] w) => (float[] y) { y = MatMul (x, w) }"),
        Sample("(float[M, 4] x, float[4] w) => (float[] y) { y = MatMul (x, w) }", 0),
        Sample("(double[M, 4] x, double[4, 3] w) => (double[] y) { y = MatMul (x, w) }", 0),
    ],
    "f(contraction, operands) => contraction with epilogue f": [
        Sample(
            """(float[N, 5] x, float[N, 7] r) => (float[] y) {
            a = MatMul (x, w) b = Add (a, c) d = Relu (b) y = Add (d, r) }""",
            1,
            {"w": weight(5, 7), "c": weight(7)},
        ),
        Sample(
            """(float[N, 3, 6, 6] x) => (float[] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b) s = Sigmoid (a) y = Mul (a, s) }""",
            1,
            CONV,
        ),
        Sample(
            """(float[N, 5] x) => (float[] y, float[] a) { a = MatMul (x, w) y = Relu (a) }""",
            0,
            {"w": weight(5, 7)},
        ),
    ],
    "conv_transpose(x, w) => depth_to_space(conv(x, w))": [
        Sample(
            """(float[N, 6, H, 5] x) => (float[] y) {
            y = ConvTranspose <strides = [2, 2]> (x, w, b) }""",
            1,
            {"w": weight(6, 3, 2, 2), "b": weight(3)},
        ),
        Sample(
            """(float[N, 6, H, 5] x) => (float[] y) {
            y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b) }""",
            1,
            {"w": weight(6, 3, 4, 4), "b": weight(3)},
        ),
        Sample(
            """(float[N, 6, H, 5] x) => (float[] y) {
            y = ConvTranspose <strides = [2, 3], pads = [1, 0, 0, 1], group = 2,
            output_padding = [1, 0]> (x, w, b) }""",
            1,
            {"w": weight(6, 2, 3, 4), "b": weight(4)},
        ),
        Sample(
            """(float[N, 6, H, 5] x) => (float[] y) {
            y = ConvTranspose <strides = [2, 2], dilations = [2, 2]> (x, w) }""",
            0,
            {"w": weight(6, 3, 3, 3)},
        ),
    ],
    "conv_transpose1d(x, w) => view(conv_transpose2d(view(x), view(w)))": [
        Sample(
            """(float[N, 4, L] x) => (float[] y) {
            y = ConvTranspose <strides = [3], pads = [1, 2], output_padding = [1]> (x, w, b) }""",
            1,
            {"w": weight(4, 6, 5), "b": weight(6)},
        ),
    ],
    "concat(split(x), y) => concat(x, y)": [
        Sample(
            """(float[N, 6] x, float[N, 2] z) => (float[] y, float[] e) {
            a, b, c = Split <axis = 1> (x) e = Exp (b) y = Concat <axis = 1> (z, a, b, c, e) }"""
        ),
        Sample(
            """(float[N, 6] x) => (float[] y) {
            a, b = Split <axis = 1> (x) y = Concat <axis = -1> (a, b) }"""
        ),
        Sample(
            """(float[N, 6] x) => (float[] y) {
            a, b = Split <axis = 1> (x) y = Concat <axis = 1> (b, a) }""",
            0,
        ),
        Sample(
            """(float[6, N] x) => (float[] y) {
            a, b = Split <axis = 0> (x) y = Concat <axis = 1> (a, b) }""",
            0,
        ),
    ],
    "pool1d(x) => view(pool2d(view(x)))": [
        Sample(
            """(float[N, 4, L] x) => (float[] y) {
            y = MaxPool <kernel_shape = [3], strides = [2], pads = [1, 1]> (x) }"""
        ),
        Sample(
            """(float[N, 4, 9] x) => (float[] y) {
            y = AveragePool <kernel_shape = [2], auto_pad = "SAME_UPPER"> (x) }"""
        ),
        Sample(
            """(float[N, 4, L] x) => (float[] y, int64[] i) {
            y, i = MaxPool <kernel_shape = [3]> (x) }""",
            0,
        ),
    ],
}
