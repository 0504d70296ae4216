"""Small image networks in float16: residual blocks, a U-Net, depthwise blocks with gates."""

from __future__ import annotations

import numpy as np
import onnx

from engine.ir.types import Array
from tests.engine.small_models import model

__all__ = ["IMAGE_MODELS"]


class Weights:
    """Weights that keep the size of what goes through them, the same each time."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Array:
        fan_in = int(np.prod(shape[1:])) or 1
        return (self.random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float16)

    def norm(self, channels: int) -> dict[str, Array]:
        """Scale, shift, mean and variance of a batch normalisation."""
        scale, shift, mean, variance = self.random.standard_normal((4, channels)) / 4
        return {
            "g": (1 + scale).astype(np.float16),
            "s": shift.astype(np.float16),
            "m": mean.astype(np.float16),
            "u": np.exp(variance).astype(np.float16),
        }


def residual() -> onnx.ModelProto:
    """A first convolution of 7x7, pooling, a residual block and a strided one, a classifier."""
    half = Weights(1)
    return model(
        """(float16[N, 3, 32, 32] x) => (float16[] y) {
            a = Conv <strides = [2, 2], pads = [3, 3, 3, 3]> (x, w0)
            b = BatchNormalization (a, g, s, m, u)
            c = Relu (b)
            d = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (c)
            e = Conv (d, w1, b1) f = Relu (e)
            h = Conv <pads = [1, 1, 1, 1]> (f, w2, b2) i = Relu (h)
            j = Conv (i, w3, b3) k = Add (j, d) l = Relu (k)
            n = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (l, w4, b4) o = Relu (n)
            p = Conv <strides = [2, 2]> (l, w5, b5) q = Add (o, p)
            r = GlobalAveragePool (q) t = Flatten (r) y = Gemm <transB = 1> (t, w6, b6)
        }""",
        weights={
            "w0": half(16, 3, 7, 7),
            **half.norm(16),
            "w1": half(8, 16, 1, 1),
            "b1": half(8),
            "w2": half(8, 8, 3, 3),
            "b2": half(8),
            "w3": half(16, 8, 1, 1),
            "b3": half(16),
            "w4": half(32, 16, 3, 3),
            "b4": half(32),
            "w5": half(32, 16, 1, 1),
            "b5": half(32),
            "w6": half(10, 32),
            "b6": half(10),
        },
    )


def unet() -> onnx.ModelProto:
    """Down, up by a transposed convolution, and joined with what was there before."""
    half = Weights(2)
    return model(
        """(float16[N, 3, 16, 16] x) => (float16[] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) b = Relu (a)
            c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
            d = Conv <pads = [1, 1, 1, 1]> (c, w1, b1) e = Relu (d)
            f = ConvTranspose <strides = [2, 2]> (e, w2, b2)
            h = Concat <axis = 1> (b, f)
            i = Conv <pads = [1, 1, 1, 1]> (h, w3, b3) j = Relu (i)
            y = Conv (j, w4, b4)
        }""",
        weights={
            "w0": half(8, 3, 3, 3),
            "b0": half(8),
            "w1": half(16, 8, 3, 3),
            "b1": half(16),
            "w2": half(16, 8, 2, 2),
            "b2": half(8),
            "w3": half(8, 16, 3, 3),
            "b3": half(8),
            "w4": half(2, 8, 1, 1),
            "b4": half(2),
        },
    )


def gated() -> onnx.ModelProto:
    """An inverted block: widened, depthwise, gated by its own average, narrowed, added."""
    half = Weights(3)
    return model(
        """(float16[N, 3, 16, 16] x) => (float16[] y) {
            a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w0, b0)
            s0 = Sigmoid (a) b = Mul (a, s0)
            c = Conv (b, w1, b1) s1 = Sigmoid (c) d = Mul (c, s1)
            e = Conv <group = 32, pads = [1, 1, 1, 1]> (d, w2, b2) s2 = Sigmoid (e) f = Mul (e, s2)
            h = GlobalAveragePool (f) i = Conv (h, w3, b3) s3 = Sigmoid (i) j = Mul (i, s3)
            k = Conv (j, w4, b4) l = Sigmoid (k) n = Mul (f, l)
            o = Conv (n, w5, b5) p = Add (o, b)
            q = GlobalAveragePool (p) y = Flatten (q)
        }""",
        weights={
            "w0": half(8, 3, 3, 3),
            "b0": half(8),
            "w1": half(32, 8, 1, 1),
            "b1": half(32),
            "w2": half(32, 1, 3, 3),
            "b2": half(32),
            "w3": half(4, 32, 1, 1),
            "b3": half(4),
            "w4": half(32, 4, 1, 1),
            "b4": half(32),
            "w5": half(8, 32, 1, 1),
            "b5": half(8),
        },
    )


IMAGE_MODELS = {"residual": residual, "unet": unet, "gated": gated}
