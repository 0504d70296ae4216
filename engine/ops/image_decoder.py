"""ImageDecoder: pixels from an encoded image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import MissingExtraError
from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.operator import Operator, register
from engine.ops.shapes import unknown

__all__ = ["ImageDecoder"]

_MODES = {"RGB": "RGB", "BGR": "RGB", "Grayscale": "L"}


@register("ImageDecoder", since=20)
@dataclass(frozen=True, slots=True)
class ImageDecoder(Operator):
    """The bytes of an image file to (height, width, channels) of uint8.

    A stream that cannot be decoded gives an empty image, as the specification asks. Decoding is
    Pillow's (the extra "image").
    """

    pixel_format: str = "RGB"

    @property
    def channels(self) -> int:
        """The number of channels that the pixel format has."""
        if self.pixel_format not in _MODES:
            raise ValueError(
                f"pixel_format is {self.pixel_format!r}, expected one of {', '.join(_MODES)}"
            )
        return 1 if self.pixel_format == "Grayscale" else 3

    def infer(self, stream: Operand, /) -> Sequence[Type]:
        return [TensorType(DType.UINT8, (unknown(), unknown(), self.channels))]

    def meaning(self, stream: Array, /) -> Array:
        try:
            from PIL import Image
        except ImportError:
            raise MissingExtraError("pillow", "image", "the operator ImageDecoder") from None
        channels = self.channels
        try:
            with Image.open(io.BytesIO(stream.tobytes())) as image:
                pixels = np.array(image.convert(_MODES[self.pixel_format]))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return np.zeros((0, 0, channels), np.uint8)
        pixels = pixels.reshape((*pixels.shape[:2], channels))
        return pixels[..., ::-1].copy() if self.pixel_format == "BGR" else pixels
