"""Poolings over regions of interest: RoiAlign and MaxRoiPool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.ir.types import Array, Dim, Operand, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import unknown

__all__ = ["MaxRoiPool", "RoiAlign"]


def _type(x: Operand, regions: Operand, height: int, width: int) -> list[TensorType]:
    kind, boxes = tensor(x, "X"), tensor(regions, "rois")
    if kind.shape is not None and len(kind.shape) != 4:
        raise ValueError(f"X has rank {len(kind.shape)}, expected 4")
    if boxes.shape is not None and len(boxes.shape) != 2:
        raise ValueError(f"rois has rank {len(boxes.shape)}, expected 2")
    count: Dim = unknown() if boxes.shape is None else boxes.shape[0]
    channels: Dim = unknown() if kind.shape is None else kind.shape[1]
    return [TensorType(kind.dtype, (count, channels, height, width))]


@dataclass(frozen=True, slots=True)
class _Line:
    """Sample points along one axis: the elements around each and their weights."""

    low: Array
    high: Array
    low_weight: Array
    high_weight: Array

    @classmethod
    def of(cls, start: float, step: float, bins: int, samples: int, size: int) -> _Line:
        """``samples`` points in each of ``bins`` bins; points far outside have weights of 0."""
        index = np.arange(bins)[:, None] + (np.arange(samples) + 0.5) / max(samples, 1)
        point = (start + index * step).reshape(-1)
        inside = (point >= -1) & (point <= size)
        point = np.clip(point, 0, size - 1)
        low = np.minimum(point.astype(np.int64), size - 1)
        fraction = point - low
        return cls(
            low=low,
            high=np.minimum(low + 1, size - 1),
            low_weight=np.where(inside, 1 - fraction, 0),
            high_weight=np.where(inside, fraction, 0),
        )

    def averages(self, bins: int, size: int) -> Array:
        """The matrix [bins, size] that averages the points of each bin."""
        matrix = np.zeros((bins, size))
        samples = self.low.size // max(bins, 1)
        rows = np.repeat(np.arange(bins), samples)
        np.add.at(matrix, (rows, self.low), self.low_weight)
        np.add.at(matrix, (rows, self.high), self.high_weight)
        return matrix / max(samples, 1)


@dataclass(frozen=True, slots=True)
class _RoiAlign(Operator):
    """Bins of a region, each the mean or the maximum of interpolated points."""

    mode: str = "avg"
    output_height: int = 1
    output_width: int = 1
    sampling_ratio: int = 0
    spatial_scale: float = 1.0

    def half_pixel(self) -> bool:
        """Whether the middle of element 0 lies at 0.5."""
        return False

    def infer(self, x: Operand, regions: Operand, batch: Operand, /) -> list[TensorType]:
        """[regions, C, output_height, output_width]."""
        if self.mode not in ("avg", "max"):
            raise ValueError(f"mode is {self.mode!r}, expected avg or max")
        tensor(batch, "batch_indices")
        return _type(x, regions, self.output_height, self.output_width)

    def meaning(self, x: Array, regions: Array, batch: Array, /) -> Array:
        """One region after the other; the mean of points is a product of two thin matrices."""
        bins = (self.output_height, self.output_width)
        result = np.zeros((regions.shape[0], x.shape[1], *bins), np.float64)
        boxes = widened(regions).astype(np.float64) * self.spatial_scale
        boxes -= 0.5 if self.half_pixel() else 0
        for number, (box, image) in enumerate(zip(boxes, batch.reshape(-1), strict=True)):
            lines = [self._line(box[1 - a], box[3 - a], bins[a], x.shape[2 + a]) for a in (0, 1)]
            plane = widened(x[int(image)])
            if self.mode == "avg":
                rows = lines[0].averages(bins[0], x.shape[2])
                columns = lines[1].averages(bins[1], x.shape[3])
                result[number] = rows @ plane.astype(np.float64) @ columns.T
            elif lines[0].low.size and lines[1].low.size:
                result[number] = _greatest(plane, lines[0], lines[1], bins)
        return rounded(result, x)

    def _line(self, start: float, end: float, bins: int, size: int) -> _Line:
        """The sample points of a region along one axis."""
        length = end - start
        if not self.half_pixel():
            length = max(length, 1.0)
        step = length / bins
        samples = self.sampling_ratio if self.sampling_ratio > 0 else int(np.ceil(step))
        return _Line.of(float(start), float(step), bins, max(samples, 0), size)


def _greatest(plane: Array, rows: _Line, columns: _Line, bins: tuple[int, int]) -> Array:
    """The greatest weighted corner of all points in each bin, of a plane [C, H, W].

    The points are not summed over their corners first: the suite of ONNX defines it like this.
    """
    best: Array | None = None
    for y, down in ((rows.low, rows.low_weight), (rows.high, rows.high_weight)):
        for x, across in ((columns.low, columns.low_weight), (columns.high, columns.high_weight)):
            value = plane[:, y[:, None], x] * (down[:, None] * across)
            best = value if best is None else np.maximum(best, value)
    assert best is not None
    split = best.reshape(plane.shape[0], bins[0], -1, bins[1], columns.low.size // bins[1])
    return as_array(split.max(axis=(2, 4)))


@register("RoiAlign", since=10)
@dataclass(frozen=True, slots=True)
class RoiAlign10(_RoiAlign):
    """Regions [R, 4] (x1, y1, x2, y2) of images [N, C, H, W], with integral pixel positions."""


@register("RoiAlign", since=16)
@dataclass(frozen=True, slots=True)
class RoiAlign(_RoiAlign):
    """Regions [R, 4] (x1, y1, x2, y2) of images [N, C, H, W] (He et al., Mask R-CNN, 2017)."""

    coordinate_transformation_mode: str = "half_pixel"

    def half_pixel(self) -> bool:
        """Whether the middle of element 0 lies at 0.5."""
        modes = ("half_pixel", "output_half_pixel")
        if self.coordinate_transformation_mode not in modes:
            raise ValueError(
                f"coordinate_transformation_mode is {self.coordinate_transformation_mode!r}, "
                f"expected one of {', '.join(modes)}"
            )
        return self.coordinate_transformation_mode == "half_pixel"


def _round_away(x: Array) -> Array:
    """The nearest integers, halves away from zero."""
    nearest: Array = np.trunc(x + np.copysign(0.5, x))
    return nearest.astype(np.int64)


@register("MaxRoiPool", since=1)
@dataclass(frozen=True, slots=True)
class MaxRoiPool(Operator):
    """The maxima of the bins of regions [R, 5] (image, x1, y1, x2, y2) (Girshick, 2015)."""

    pooled_shape: tuple[int, ...] = ()
    spatial_scale: float = 1.0

    def infer(self, x: Operand, regions: Operand, /) -> list[TensorType]:
        """[regions, C, *pooled_shape]."""
        if len(self.pooled_shape) != 2:
            raise ValueError(f"pooled_shape is {self.pooled_shape}, expected two numbers")
        return _type(x, regions, *self.pooled_shape)

    def meaning(self, x: Array, regions: Array, /) -> Array:
        """Bins are rounded outward to whole elements; an empty bin gives 0."""
        height, width = self.pooled_shape
        wide = widened(x)
        result = np.zeros((regions.shape[0], x.shape[1], height, width), wide.dtype)
        boxes = _round_away(widened(regions)[:, 1:] * self.spatial_scale)
        images = regions[:, 0].astype(np.int64)
        for number, (image, (left, top, right, bottom)) in enumerate(
            zip(images, boxes, strict=True)
        ):
            rows = _bins(int(top), int(bottom), height, x.shape[2])
            columns = _bins(int(left), int(right), width, x.shape[3])
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    part = wide[image][:, row, column]
                    if part.size:
                        result[number, :, i, j] = part.max(axis=(1, 2))
        return rounded(result, x)


def _bins(start: int, end: int, count: int, size: int) -> list[slice]:
    """A region from ``start`` to ``end`` inclusive in ``count`` bins inside an axis."""
    step = max(end - start + 1, 1) / count
    edges = [
        (int(np.floor(i * step)) + start, int(np.ceil((i + 1) * step)) + start)
        for i in range(count)
    ]
    return [slice(min(max(a, 0), size), min(max(b, 0), size)) for a, b in edges]
