"""Reading arrays between their elements: DeformConv, GridSample, AffineGrid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array, Operand, Shape, TensorType
from engine.ops.contents import element_count, integers
from engine.ops.conv import conv_shape
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import agree, unknown, unknown_shape
from engine.ops.sliding import Windows

__all__ = ["AffineGrid", "DeformConv", "GridSample", "cubic_weights"]

Ints = tuple[int, ...]
#: Where an index that lies outside an axis of a given size points, and what counts as inside.
Fold = Callable[[Array, int], tuple[Array, Array | None]]


def cubic_weights(fraction: Array, coefficient: float) -> list[Array]:
    """The weights of the four neighbours at -1, 0, 1 and 2 (Keys, 1981, equation 4)."""
    a, t = coefficient, fraction

    def near(d: Array) -> Array:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Array) -> Array:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _neighbours(position: Array, order: str) -> list[tuple[Array, Array | None]]:
    """The indices around a position along one axis with their weights (None for 1)."""
    if order == "nearest":
        return [(np.rint(position).astype(np.int64), None)]
    low = np.floor(position)
    fraction = position - low
    index = low.astype(np.int64)
    if order == "linear":
        return [(index, 1 - fraction), (index + 1, fraction)]
    weights = cubic_weights(fraction, -0.75)
    return [(index + step - 1, weight) for step, weight in enumerate(weights)]


def _outside_is_zero(index: Array, size: int) -> tuple[Array, Array | None]:
    inside = (index >= 0) & (index < size)
    return np.clip(index, 0, max(size - 1, 0)), inside


def _sample(image: Array, positions: Sequence[Array], order: str, fold: Fold) -> Array:
    """Image [N, C, *spatial] read at positions (one array [N, *points] per axis): [N, C, *points].

    Positions are indices into the spatial axes and may lie between the elements.
    """
    batch, channels, *sizes = image.shape
    points = positions[0].shape[1:]
    result = np.zeros((batch, channels, int(np.prod(points))), image.dtype)
    flat = image.reshape(batch, channels, -1)
    if result.size == 0 or flat.shape[2] == 0:
        return result.reshape(batch, channels, *points)
    axes = [_neighbours(p.reshape(batch, -1), order) for p in positions]
    folded = [
        [(*fold(index, size), weight) for index, weight in axis]
        for axis, size in zip(axes, sizes, strict=True)
    ]
    for corner in product(*folded):
        place = np.zeros(corner[0][0].shape, np.int64)
        factor: Array | None = None
        for (index, inside, weight), size in zip(corner, sizes, strict=True):
            place = place * size + index
            for part in (inside, weight):
                if part is not None:
                    factor = part if factor is None else factor * part
        value = np.take_along_axis(flat, place[:, None, :], axis=2)
        if factor is not None:
            value = value * factor[:, None, :].astype(image.dtype)
        result += value
    return result.reshape(batch, channels, *points)


@register("DeformConv", since=19)
@dataclass(frozen=True, slots=True)
class DeformConv(Operator):
    """A convolution whose windows are displaced by learned offsets and weighed by a mask.

    x [N, C, *spatial], weight [M, C / group, *kernel], offset [N, offset_group * K * n, *out],
    bias [M], mask [N, offset_group * K, *out] for K places in the kernel and n spatial axes.
    """

    dilations: Ints | None = None
    group: int = 1
    kernel_shape: Ints | None = None
    offset_group: int = 1
    pads: Ints | None = None
    strides: Ints | None = None

    def infer(
        self,
        x: Operand,
        weight: Operand,
        offset: Operand,
        bias: Operand | None = None,
        mask: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """The shape of a convolution."""
        tensor(offset, "offset")
        shape = conv_shape(
            tensor(x, "X"),
            tensor(weight, "W"),
            self.group,
            self.kernel_shape,
            strides=self.strides,
            dilations=self.dilations,
            pads=self.pads,
            auto_pad="NOTSET",
        )
        return [TensorType(x.dtype, shape)]

    def meaning(
        self,
        x: Array,
        weight: Array,
        offset: Array,
        bias: Array | None = None,
        mask: Array | None = None,
        /,
    ) -> Array:
        """Patches by linear interpolation, zero outside, then a matrix product."""
        wide = widened(x)
        windows = Windows.of(
            weight.shape[2:], strides=self.strides, dilations=self.dilations, pads=self.pads
        )
        counts = tuple(n for n in windows.output(x.shape[2:]) if isinstance(n, int))
        patches = self._patches(wide, widened(offset), windows, counts)
        batch, channels = x.shape[:2]
        places = int(np.prod(windows.kernel))
        if mask is not None:
            weights = widened(mask).reshape(batch, self.offset_group, 1, places, *counts)
            parts = patches.reshape(batch, self.offset_group, -1, places, *counts)
            patches = parts * weights
        filters = weight.shape[0]
        columns = patches.reshape(batch, self.group, channels // self.group * places, -1)
        matrix = widened(weight).reshape(self.group, filters // self.group, -1)
        result = np.matmul(matrix, columns).reshape(batch, filters, *counts)
        if bias is not None:
            result = result + widened(bias).reshape(-1, *(1,) * len(counts))
        return rounded(result, x)

    def _patches(self, x: Array, offset: Array, windows: Windows, counts: Ints) -> Array:
        """What each window reads: [N, C, K, *out]."""
        batch, channels, *sizes = x.shape
        rank, places = len(sizes), int(np.prod(windows.kernel))
        shifts = offset.reshape(batch, self.offset_group, places, rank, *counts)
        before, _ = windows.padding(tuple(sizes))
        per_group = channels // self.offset_group
        patches = np.empty((batch, channels, places, *counts), x.dtype)
        grid = np.indices(counts)
        starts = [grid[a] * windows.strides[a] - before[a] for a in range(rank)]
        for place, index in enumerate(np.ndindex(*windows.kernel)):
            anchor = [starts[a] + index[a] * windows.dilations[a] for a in range(rank)]
            for group in range(self.offset_group):
                chosen = slice(group * per_group, (group + 1) * per_group)
                positions = [anchor[a] + shifts[:, group, place, a] for a in range(rank)]
                patches[:, chosen, place] = _sample(
                    x[:, chosen], positions, "linear", _outside_is_zero
                )
        return patches


def _reflect(position: Array, low: float, high: float) -> Array:
    """Positions reflected at two borders until they lie between them."""
    width = high - low
    if width <= 0:
        return np.zeros_like(position)
    distance = np.abs(position - low)
    turns = np.floor(distance / width)
    rest = distance - turns * width
    return np.where(turns % 2 == 0, low + rest, high - rest)


def _pixel(unit: Array, size: int, *, align_corners: bool) -> Array:
    """Coordinates in [-1, 1] as indices; -1 is the centre or else the outer edge of pixel 0."""
    return (unit + 1) / 2 * (size - 1) if align_corners else ((unit + 1) * size - 1) / 2


@dataclass(frozen=True, slots=True)
class _GridSample(Operator):
    """Images read at the positions that a grid holds."""

    align_corners: int = 0
    padding_mode: str = "zeros"

    def order(self) -> str:
        """The interpolation: "linear", "cubic" or "nearest"."""
        raise NotImplementedError

    def infer(self, x: Operand, grid: Operand, /) -> list[TensorType]:
        """[N, C, *grid's spatial sizes]."""
        image, points = tensor(x, "X").shape, tensor(grid, "grid").shape
        if image is None and points is None:
            return [TensorType(x.dtype, None)]
        if image is not None and points is not None:
            if len(image) != len(points):
                raise ValueError(f"X has rank {len(image)} and the grid {len(points)}")
            agree(image[0], points[0], name="the batch")
        rank = len(image or points or ())
        lead = image[:2] if image is not None else unknown_shape(2)
        spatial = points[1:-1] if points is not None else unknown_shape(rank - 2)
        return [TensorType(x.dtype, (*lead, *spatial))]

    def meaning(self, x: Array, grid: Array, /) -> Array:
        """Positions between -1 and 1, last axis first; folded by the padding mode, then read."""
        if self.padding_mode not in ("zeros", "border", "reflection"):
            raise ValueError(f"padding_mode is {self.padding_mode!r}")
        image = widened(x)
        if image.dtype.kind not in "fc":
            image = image.astype(np.float64)
        sizes, order = x.shape[2:], self.order()
        positions = []
        for axis, size in enumerate(sizes):
            unit = widened(grid)[..., len(sizes) - 1 - axis].astype(np.float64)
            position = _pixel(unit, size, align_corners=bool(self.align_corners))
            if order == "linear":
                position = self._folded(position, size)
            positions.append(position)
        found = _sample(image, positions, order, self._fold)
        return rounded(found, x)

    def _folded(self, position: Array, size: int) -> Array:
        if self.padding_mode == "reflection":
            low, high = (0.0, size - 1.0) if self.align_corners else (-0.5, size - 0.5)
            position = np.clip(_reflect(position, low, high), 0, size - 1)
        elif self.padding_mode == "border":
            position = np.clip(position, 0, size - 1)
        return position

    def _fold(self, index: Array, size: int) -> tuple[Array, Array | None]:
        if self.padding_mode == "zeros":
            return _outside_is_zero(index, size)
        return self._folded(index.astype(np.float64), size).astype(np.int64), None


@register("GridSample", since=16)
@dataclass(frozen=True, slots=True)
class GridSample16(_GridSample):
    """Images [N, C, H, W] read at a grid [N, H', W', 2] of positions (x, y) in [-1, 1]."""

    mode: str = "bilinear"

    def order(self) -> str:
        """The interpolation."""
        orders = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}
        if self.mode not in orders:
            raise ValueError(f"mode is {self.mode!r}, expected one of {', '.join(orders)}")
        return orders[self.mode]


@register("GridSample", since=20)
@dataclass(frozen=True, slots=True)
class GridSample(_GridSample):
    """Images [N, C, *spatial] read at a grid [N, *out, n] of positions in [-1, 1]."""

    mode: str = "linear"

    def order(self) -> str:
        """The interpolation."""
        if self.mode not in ("linear", "cubic", "nearest"):
            raise ValueError(f"mode is {self.mode!r}, expected linear, cubic or nearest")
        return self.mode


def _axis_positions(size: int, align_corners: bool) -> Array:
    """The coordinates of the pixels of an axis, in [-1, 1]."""
    if align_corners:
        return np.linspace(-1, 1, size) if size > 1 else np.full(size, -1.0)
    return (2 * np.arange(size) + 1) / size - 1


@register("AffineGrid", since=20)
@dataclass(frozen=True, slots=True)
class AffineGrid(Operator):
    """Positions for GridSample: an affine map theta [N, n, n + 1] of the pixels of a size."""

    align_corners: int = 0

    shape_inputs = (1,)

    def infer(self, theta: Operand, size: Operand, /) -> list[TensorType]:
        """[N, *spatial, n]."""
        kind = tensor(theta, "theta")
        sizes = size.sizes
        if sizes is not None:
            return [TensorType(kind.dtype, self._shape(sizes))]
        count = element_count(size)
        if count is None:
            return [TensorType(kind.dtype, None)]
        batch: Dim = unknown() if kind.shape is None else kind.shape[0]
        return [TensorType(kind.dtype, (batch, *unknown_shape(count - 2), count - 2))]

    def _shape(self, sizes: Sequence[Dim]) -> Shape:
        if len(sizes) not in (4, 5):
            raise ValueError(f"size has {len(sizes)} elements, expected 4 or 5")
        return (sizes[0], *sizes[2:], len(sizes) - 2)

    def meaning(self, theta: Array, size: Array, /) -> Array:
        """Homogeneous coordinates of every pixel, times theta."""
        batch, *spatial, rank = integers(self._shape(integers(size)))
        if theta.shape != (batch, rank, rank + 1):
            raise ValueError(f"theta is {theta.shape}, expected {(batch, rank, rank + 1)}")
        axes = [_axis_positions(n, bool(self.align_corners)) for n in spatial]
        grid = np.meshgrid(*axes, indexing="ij")[::-1]
        points = np.stack([*grid, np.ones(spatial)], axis=-1).reshape(1, -1, rank + 1)
        mapped = np.matmul(points, theta.astype(np.float64).transpose(0, 2, 1))
        return rounded(mapped.reshape(batch, *spatial, rank), theta)
