"""Images over NHWC resized in height and width; made by the layout pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.operator import DOMAIN, Operator, find, register
from engine.ops.resize import scaled_size

__all__ = ["ResizePixels"]


@register("ResizePixels", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class ResizePixels(Operator):
    """Height and width times ``scales``, or to ``sizes`` where they are given; see ONNX Resize.

    ``mode`` is "nearest" or "linear", ``coordinates`` and ``rounding`` as in ONNX; the rounding
    "before_11" is that of Upsample.
    """

    mode: str = "nearest"
    coordinates: str = "asymmetric"
    rounding: str = "floor"
    scales: tuple[float, ...] = (1.0, 1.0)
    sizes: tuple[int, ...] = ()

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        (x,) = operands
        assert x is not None
        images, height, width, channels = x.tensor.dims
        if self.sizes:
            return [TensorType(x.dtype, (images, *self.sizes, channels))]
        high, wide = (scaled_size(n, s) for n, s in zip((height, width), self.scales, strict=True))
        return [TensorType(x.dtype, (images, high, wide, channels))]

    def meaning(self, *inputs: Array) -> Array:
        x = inputs[0]
        scales = np.array([1.0, *self.scales, 1.0], np.float32)
        if self.rounding == "before_11":
            return as_array(
                find("", "Upsample", 9).from_attributes({"mode": self.mode}).meaning(x, scales)
            )
        fields = {
            "mode": self.mode,
            "coordinate_transformation_mode": self.coordinates,
            "nearest_mode": self.rounding,
        }
        op = find("", "Resize", 18).from_attributes(fields)
        if not self.sizes:
            return as_array(op.meaning(x, None, scales, None))
        sizes = np.array([x.shape[0], *self.sizes, x.shape[3]], np.int64)
        return as_array(op.meaning(x, None, None, sizes))
