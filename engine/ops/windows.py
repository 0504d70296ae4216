"""Window functions and the mel filter bank: constants of signal processing, made from a size.

Everything is computed in float64 and rounded once to the type that ``output_datatype`` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.ir.types import Array, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.dtype_codes import dtype_of_code
from engine.ops.operator import Operator, register
from engine.ops.shapes import unknown

__all__ = ["BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"]


@dataclass(frozen=True, slots=True)
class CosineWindow(Operator):
    """A sum of cosines over one period: ``size`` points of it, or of size - 1 when symmetric."""

    shape_inputs: ClassVar[tuple[int, ...]] = (0,)
    #: The factors of cos(0), cos(x), cos(2 x), ...
    coefficients: ClassVar[tuple[float, ...]] = ()

    output_datatype: int = 1
    periodic: int = 1

    def infer(self, size: Operand, /) -> Sequence[Type]:
        length = size.sizes[0] if size.sizes else unknown()
        return [TensorType(dtype_of_code(self.output_datatype), (length,))]

    def meaning(self, size: Array, /) -> Array:
        count = int(size.reshape(-1)[0])
        if count < 0:
            raise ValueError(f"the size of a window is {count}, expected at least 0")
        dtype = dtype_of_code(self.output_datatype).numpy
        period = count if self.periodic else count - 1
        if period < 1:  # a symmetric window of one point is its peak
            return np.ones(count, dtype)
        angle = 2 * np.pi * np.arange(count) / period
        terms = [factor * np.cos(n * angle) for n, factor in enumerate(self.coefficients)]
        return as_array(np.sum(terms, axis=0)).astype(dtype)


@register("HannWindow", since=17)
@dataclass(frozen=True, slots=True)
class HannWindow(CosineWindow):
    """The raised cosine: the square of a half sine."""

    coefficients: ClassVar[tuple[float, ...]] = (0.5, -0.5)


@register("HammingWindow", since=17)
@dataclass(frozen=True, slots=True)
class HammingWindow(CosineWindow):
    """The cosine on a pedestal, with the exact fractions 25/46 and 21/46."""

    coefficients: ClassVar[tuple[float, ...]] = (25 / 46, -21 / 46)


@register("BlackmanWindow", since=17)
@dataclass(frozen=True, slots=True)
class BlackmanWindow(CosineWindow):
    """Three cosine terms: 0.42, 0.5 and 0.08."""

    coefficients: ClassVar[tuple[float, ...]] = (0.42, -0.5, 0.08)


@register("MelWeightMatrix", since=17)
@dataclass(frozen=True, slots=True)
class MelWeightMatrix(Operator):
    """Triangular filters that sum the bins of a spectrum into bands of the mel scale.

    The answer has shape (dft_length // 2 + 1, num_mel_bins); mel(f) = 2595 log10(1 + f / 700).
    """

    shape_inputs: ClassVar[tuple[int, ...]] = (0, 1)

    output_datatype: int = 1

    def infer(
        self,
        num_mel_bins: Operand,
        dft_length: Operand,
        sample_rate: Operand,
        lower_edge_hertz: Operand,
        upper_edge_hertz: Operand,
        /,
    ) -> Sequence[Type]:
        rows = dft_length.sizes[0] // 2 + 1 if dft_length.sizes else unknown()
        columns = num_mel_bins.sizes[0] if num_mel_bins.sizes else unknown()
        return [TensorType(dtype_of_code(self.output_datatype), (rows, columns))]

    def meaning(
        self,
        num_mel_bins: Array,
        dft_length: Array,
        sample_rate: Array,
        lower_edge_hertz: Array,
        upper_edge_hertz: Array,
        /,
    ) -> Array:
        bands, length = int(num_mel_bins.reshape(-1)[0]), int(dft_length.reshape(-1)[0])
        rate = int(sample_rate.reshape(-1)[0])
        low, high = (
            2595 * np.log10(1 + float(edge.reshape(-1)[0]) / 700)
            for edge in (lower_edge_hertz, upper_edge_hertz)
        )
        # The bands divide the range into as many steps as there are edges: bands + 2.
        mel = low + np.arange(bands + 2) * (high - low) / (bands + 2)
        hertz = 700 * (10 ** (mel / 2595) - 1)
        edges = ((length + 1) * hertz // rate).astype(np.int64)
        rows = length // 2 + 1
        if edges.size and (edges.min() < 0 or edges.max() >= rows):
            raise ValueError(
                f"the mel bands reach from bin {edges.min()} to {edges.max()}, expected bins of "
                f"a spectrum of {rows}; the upper edge may be at most half the sample rate"
            )
        return triangles(edges, rows).astype(dtype_of_code(self.output_datatype).numpy)


def triangles(edges: Array, rows: int) -> Array:
    """One column per triangle: up from edge i to i + 1, down to i + 2, 1 at its peak."""
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    bins = np.arange(rows)[:, None]
    up = (bins - left) / np.maximum(peak - left, 1)
    down = (right - bins) / np.maximum(right - peak, 1)
    rising = (bins >= left) & (bins < peak)
    falling = (bins > peak) & (bins < right)
    return np.select([rising, bins == peak, falling], [up, np.ones_like(up), down], 0.0)
