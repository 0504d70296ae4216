"""Small networks in float16 whose branches may run side by side."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tests.engine.image_models import Weights
from tests.engine.small_models import model

__all__ = ["BRANCH_MODELS"]


def bottleneck() -> onnx.ModelProto:
    """Two blocks of residual networks, each with a convolution beside the three of its block."""
    half = Weights(11)
    return model(
        """(float16[N, 3, 24, 24] x) => (float16[] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0) b = Relu (a)
            c = Conv (b, w1) d = Relu (c)
            e = Conv <pads = [1, 1, 1, 1]> (d, w2) f = Relu (e)
            h = Conv (f, w3) g = Conv (b, w4) i = Add (h, g) j = Relu (i)
            k = Conv (j, v1) l = Relu (k)
            m = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (l, v2) n = Relu (m)
            p = Conv (n, v3) o = Conv <strides = [2, 2]> (j, v4) q = Add (p, o) r = Relu (q)
            s = GlobalAveragePool (r) t = Flatten (s) y = Gemm <transB = 1> (t, w5)
        }""",
        weights={
            "w0": half(16, 3, 3, 3),
            "w1": half(16, 16, 1, 1),
            "w2": half(16, 16, 3, 3),
            "w3": half(32, 16, 1, 1),
            "w4": half(32, 16, 1, 1),
            "v1": half(16, 32, 1, 1),
            "v2": half(16, 16, 3, 3),
            "v3": half(64, 16, 1, 1),
            "v4": half(64, 32, 1, 1),
            "w5": half(16, 64),
        },
    )


def inception() -> onnx.ModelProto:
    """Three branches of convolutions that are joined along channels, and one of pooling."""
    half = Weights(12)
    return model(
        """(float16[N, 3, 16, 16] x) => (float16[] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0) b = Relu (a)
            c = Conv (b, w1) d = Relu (c)
            e = Conv (b, w2) f = Relu (e) g = Conv <pads = [1, 1, 1, 1]> (f, w3) h = Relu (g)
            i = Conv (b, w4) j = Relu (i) k = Conv <pads = [2, 2, 2, 2]> (j, w5) l = Relu (k)
            m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b)
            n = Conv (m, w6) o = Relu (n)
            p = Concat <axis = 1> (d, h, l, o)
            q = Conv (p, w7) r = Relu (q)
            s = GlobalAveragePool (r) t = Flatten (s) y = Gemm <transB = 1> (t, w8)
        }""",
        weights={
            "w0": half(16, 3, 3, 3),
            "w1": half(16, 16, 1, 1),
            "w2": half(8, 16, 1, 1),
            "w3": half(24, 8, 3, 3),
            "w4": half(8, 16, 1, 1),
            "w5": half(8, 8, 5, 5),
            "w6": half(16, 16, 1, 1),
            "w7": half(32, 64, 1, 1),
            "w8": half(16, 32),
        },
    )


def heads() -> onnx.ModelProto:
    """Products from one value to two outputs, and from another input to a third of them."""
    half = Weights(13)
    return model(
        """(float16[N, 24] x, float16[N, 32] z) => (float16[] y, float16[] u) {
            a = MatMul (x, w0) b = Softmax (a)
            c = MatMul (b, w1) d = Softmax (c) y = MatMul (d, w2)
            e = MatMul (z, w3) f = Softmax (e)
            g = MatMul (b, w4) h = Softmax (g) i = MatMul (h, w5) u = Add (i, f)
        }""",
        weights={
            "w0": half(24, 40),
            "w1": half(40, 48),
            "w2": half(48, 16),
            "w3": half(32, 24),
            "w4": half(40, 24),
            "w5": half(24, 24),
        },
    )


BRANCH_MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "bottleneck": bottleneck,
    "inception": inception,
    "heads": heads,
}
