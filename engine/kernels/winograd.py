"""Convolution with 3 x 3 filters at stride 1 by Winograd's minimal filtering, float32.

A work item is a block of tiles and of output channels: the tiles are transformed into scratch, one
matrix product is made per point of the transform, and the sums are transformed back and stored
through the epilogue. Filters are transformed beforehand by recipe "winograd" of `packing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Self

import numpy as np

from engine.kernels.blocked import (
    SPLIT_SIZES,
    TILE_FIELDS,
    Split,
    Tile,
    balanced_split,
    check_split,
    count_blocks,
    fill_in,
    print_blocked,
    print_sizes,
    product_cost,
    ranked_shapes,
)
from engine.kernels.epilogue import IDENTITY, Epilogue
from engine.kernels.isa import Isa, detect
from engine.kernels.kernel import Array, Kernel, refuse_others, register, take_integer, window
from engine.kernels.packing import packed_columns_size
from engine.kernels.transforms import TRANSFORMS, print_transform

__all__ = ["Winograd", "candidates", "ranked_candidates"]

_SIZES = (
    *SPLIT_SIZES,
    *("images", "height", "width", "groups", "inputs", "outputs", "out_height", "out_width"),
    *("pad_top", "pad_left", "x_image", "x_row", "x_column", "y_pixel"),
)
_SLACK = 16
_MOST_FLOATS = 1 << 17
# What two cores of a server do; only the ranking of candidates depends on these.
_STEPS_PER_SECOND = 1e10
_WEIGHT_BYTES_PER_SECOND = 2e10
_MOVED_BYTES_PER_SECOND = 6e10


@register
@dataclass(frozen=True, slots=True)
class Winograd(Kernel):
    """F(m x m, 3 x 3): input, transformed filters, epilogue operands, output; channels adjacent.

    ``outputs_per_side`` is m, 2 or 4; rows of the register tile are tiles of the image. Operands
    are indexed as in `Convolution`.
    """

    kind: ClassVar[str] = "winograd"

    tile: Tile
    outputs_per_side: int = 4
    epilogue: Epilogue = IDENTITY

    def to_json(self) -> dict[str, object]:
        """Tile sizes, outputs per side and epilogue."""
        return {
            **self.tile.to_json(),
            "outputs_per_side": self.outputs_per_side,
            "epilogue": self.epilogue.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        refuse_others(fields, (*TILE_FIELDS, "outputs_per_side", "epilogue"))
        outputs = take_integer(fields, "outputs_per_side", 2, 4)
        if outputs not in TRANSFORMS:
            raise ValueError(f"field outputs_per_side: found {outputs}, expected 2 or 4")
        return cls(Tile.from_json(fields), outputs, Epilogue.from_json(fields.get("epilogue")))

    @property
    def _points(self) -> int:
        return (self.outputs_per_side + 2) ** 2

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """Input, filters, epilogue operands, output."""
        return ("float32",) * (len(self.epilogue.operands) + 3)

    @property
    def size_names(self) -> tuple[str, ...]:
        """The split, dimensions and strides, then the pixel stride of each epilogue operand."""
        count = len(self.epilogue.operands)
        return (*_SIZES, *(f"e{i}_pixel" for i in range(1, count + 1)))

    def _tiles(self, s: Mapping[str, int]) -> int:
        side = self.outputs_per_side
        return s["images"] * -(-s["out_height"] // side) * -(-s["out_width"] // side)

    def named(self, sizes: Sequence[int]) -> dict[str, int]:
        """The sizes by name; ValueError for any that no convolution has."""
        found = Kernel.named(self, sizes)
        check_split(found)
        rows, columns = self._block(found)
        if rows * max(self.tile.pitch, columns) > _MOST_FLOATS:
            raise ValueError("size row_tiles: a block would need too much scratch memory")
        return found

    def _block(self, s: Mapping[str, int]) -> tuple[int, int]:
        return self.tile.rows * s["row_tiles"], self.tile.columns * s["column_tiles"]

    def items(self, sizes: Sequence[int]) -> int:
        """Blocks of tiles and channels of all groups."""
        s = self.named(sizes)
        return s["groups"] * count_blocks(self._tiles(s), s["outputs"], self.tile, s)

    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Reach of every operand in elements."""
        s = self.named(sizes)
        pixels = s["images"] * s["out_height"] * s["out_width"]
        channels = s["groups"] * s["outputs"]
        if not pixels or not channels:
            return (0,) * self.operand_count
        x = 0
        if s["inputs"] and s["height"] and s["width"]:
            last = (s["images"] - 1) * s["x_image"] + (s["height"] - 1) * s["x_row"]
            x = last + (s["width"] - 1) * s["x_column"] + s["groups"] * s["inputs"]
        panels = packed_columns_size(s["inputs"], s["outputs"], self.tile.columns)
        filters = s["groups"] * self._points * panels
        extra = []
        for i, kind in enumerate(self.epilogue.operands, 1):
            walk = (pixels - 1) * s[f"e{i}_pixel"] if kind in ("row", "full") else 0
            extra.append(walk + (channels if kind in ("column", "full") else 1))
        return (x, filters, *extra, (pixels - 1) * s["y_pixel"] + channels)

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """Transformed inputs, their sums, a row of zeros and one tile of outputs.

        One point of the transformed inputs is slices of the depth, each [block rows][pitch].
        """
        s = self.named(sizes)
        inputs = s["inputs"] if self.items(sizes) else 0
        rows, columns = self._block(s)
        slices = max(1, -(-inputs // self.tile.depth))
        points = self._points * (rows * (slices * self.tile.pitch + columns) + 2 * _SLACK)
        zeros = -(-inputs // 16) * 16 + 16
        return 4 * (points + zeros + self.outputs_per_side**2 * self.tile.columns)

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """Operations of the products and roughly of the transforms; every operand moved once."""
        s = self.named(sizes)
        tiles, points = float(self._tiles(s)), self._points
        tiles *= s["groups"]
        products = 2.0 * tiles * points * s["inputs"] * s["outputs"]
        transforms = 6.0 * tiles * points * (s["inputs"] + s["outputs"])
        return products + transforms, 4.0 * sum(self.extents(sizes))

    def source(self, name: str, isa: Isa) -> str:
        """The C file."""
        side, tile = self.outputs_per_side, self.tile
        transform = TRANSFORMS[side]
        marks = {
            "LOAD_TILE": print_transform(
                transform.input_lines,
                side + 2,
                "READ(from[{i} * @T@ + {j}] + c)",
                "STORE(to + ({i} * @T@ + {j}) * stride, {value});",
            ),
            "STORE_TILE": print_transform(
                transform.output_lines,
                side + 2,
                "LOAD(from + ({i} * @T@ + {j}) * stride + c)",
                "STORE(to + ({i} * @M@ + {j}) * @COLUMNS@ + c, {value});",
            ),
            "SIZES": print_sizes(self.size_names),
            "TARGET": self._print_target(),
            "NAME": name,
            "M": side,
            "T": side + 2,
            "POINTS": self._points,
            "WIDTH": isa.vector_floats,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "DEPTH": tile.depth,
            "PITCH": tile.pitch,
            "SLACK": _SLACK,
            "OUTPUT": self.operand_count - 1,
        }
        shared = print_blocked(name, tile, self.epilogue, isa)
        return shared + fill_in(_TRANSFORMS + _BODY, marks)

    def _print_target(self) -> str:
        """The initialiser of the store's struct: where each operand's column begins."""
        lines = ["y + g * outputs + column, y_pixel"]
        for i, kind in enumerate(self.epilogue.operands, 1):
            wide = " + g * outputs + column" if kind in ("column", "full") else ""
            stride = f"e{i}_pixel" if kind in ("row", "full") else "0"
            lines.append(f"(const float *)pointer[{i + 1}]{wide}, {stride}")
        return ",\n      ".join(lines)

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """The same transforms and one BLAS product per point, image by image."""
        s = self.named(sizes)
        outputs = s["groups"] * s["outputs"]
        pixels = s["images"] * s["out_height"] * s["out_width"]
        if not outputs or not pixels:
            return
        groups = [self._twin_sums(operands, s, group) for group in range(s["groups"])]
        sums = np.concatenate(groups, axis=3).reshape(pixels, outputs)
        values = [sums]
        for i, kind in enumerate(self.epilogue.operands, 1):
            stride = s[f"e{i}_pixel"] if kind in ("row", "full") else 0
            columns = outputs if kind in ("column", "full") else 1
            values.append(window(operands[i + 1], (pixels, columns), (stride, 1)))
        y = window(operands[-1], (pixels, outputs), (s["y_pixel"], 1))
        y[...] = self.epilogue.evaluate(values)

    def _twin_sums(self, operands: Sequence[Array], s: Mapping[str, int], group: int) -> Array:
        """One group's convolution [images, out_height, out_width, outputs] without the epilogue."""
        side, inputs, outputs = self.outputs_per_side, s["inputs"], s["outputs"]
        images, high, wide = s["images"], s["out_height"], s["out_width"]
        down, across = -(-high // side), -(-wide // side)
        if 0 in (inputs, s["height"], s["width"]):
            return np.zeros((images, high, wide, outputs), np.float32)
        shape = (images, s["height"], s["width"], inputs)
        strides = (s["x_image"], s["x_row"], s["x_column"], 1)
        x = window(operands[0], shape, strides, offset=group * inputs)
        top, left = s["pad_top"], s["pad_left"]
        padded = np.zeros((images, down * side + 2, across * side + 2, inputs), np.float32)
        used = x[:, : max(0, padded.shape[1] - top), : max(0, padded.shape[2] - left)]
        padded[:, top : top + used.shape[1], left : left + used.shape[2]] = used
        patches = np.lib.stride_tricks.sliding_window_view(padded, (side + 2, side + 2), (1, 2))
        patches = patches[:, ::side, ::side]
        transform = TRANSFORMS[side]
        matrix = transform.inputs.astype(np.float32)
        points = np.einsum("ir,ntucrs,js->ijntuc", matrix, patches, matrix, optimize=True)
        panels = -(-outputs // self.tile.columns)
        layout = (self._points, panels, inputs, self.tile.columns)
        count = math.prod(layout)
        filters = operands[1][group * count : (group + 1) * count].reshape(layout)
        products = np.matmul(points.reshape(self._points, 1, -1, inputs), filters)
        joined = np.moveaxis(products, 1, 2).reshape(side + 2, side + 2, images, down, across, -1)
        back = transform.outputs.astype(np.float32)
        tiles = np.einsum("ip,pqntuc,jq->ntiujc", back, joined, back, optimize=True)
        whole = tiles.reshape(images, down * side, across * side, -1)
        return np.ascontiguousarray(whole[:, :high, :wide, :outputs])


def candidates(
    tiles: int,
    outputs: int,
    inputs: int,
    *,
    outputs_per_side: int = 4,
    epilogue: Epilogue = IDENTITY,
    isa: Isa | None = None,
) -> list[tuple[Winograd, Split]]:
    """Kernels and splits worth measuring for so many tiles of an image, the likeliest first."""
    found: list[tuple[Winograd, Split]] = []
    for shape in ranked_shapes(tiles, outputs, isa or detect())[:2]:
        for nbytes in (1 << 19, 3 << 20):
            bytes_per_row = 4 * (outputs_per_side + 2) ** 2 * (inputs + 16)
            most = (max(1, min(nbytes // (bytes_per_row * shape[0]), 16)), 8)
            split = balanced_split(tiles, outputs, shape, most=most, items=4)
            kernel = Winograd(Tile(*shape, 256), outputs_per_side, epilogue)
            if (kernel, split) not in found:
                found.append((kernel, split))
    return found


def ranked_candidates(
    out_size: tuple[int, int, int],
    outputs: int,
    inputs: int,
    *,
    groups: int = 1,
    epilogue: Epilogue = IDENTITY,
    isa: Isa | None = None,
) -> list[tuple[Winograd, Split]]:
    """Candidates of both tile sizes, taken in turns, the size likelier to win first.

    ``out_size`` is images, height and width of the output; channels are per group.
    """
    isa = isa or detect()
    images, height, width = out_size
    sides = []
    for side in sorted(TRANSFORMS):
        tiles = images * -(-height // side) * -(-width // side)
        shape = ranked_shapes(tiles, outputs, isa)[0]
        points = (side + 2) ** 2 * groups
        seconds = points * inputs * product_cost(tiles, outputs, shape, isa) / _STEPS_PER_SECOND
        seconds += 4.0 * points * inputs * outputs / _WEIGHT_BYTES_PER_SECOND
        seconds += 4.0 * points * tiles * (inputs + outputs) / _MOVED_BYTES_PER_SECOND
        offered = candidates(
            tiles, outputs, inputs, outputs_per_side=side, epilogue=epilogue, isa=isa
        )
        sides.append((seconds, offered))
    sides.sort(key=lambda side: side[0])
    turns = zip_longest(*(offered for _, offered in sides))
    return [found for turn in turns for found in turn if found is not None][:6]


_TRANSFORMS = r"""
static void @NAME@_transform(const float *const *from, int64_t channels, float *to,
                             int64_t stride, int64_t slice) {
  vector t[@T@][@T@];
  int64_t c = 0, at = 0;
#define READ(p) LOAD(p)
  for (; c + @WIDTH@ <= channels; c += @WIDTH@) {
@LOAD_TILE@
    to += @WIDTH@;
    if ((at += @WIDTH@) == @DEPTH@) { to += slice - @DEPTH@; at = 0; }
  }
#undef READ
#define READ(p) ef_read(p, channels - c)
  if (c < channels) {
@LOAD_TILE@
  }
#undef READ
}

static void @NAME@_back(const float *from, int64_t stride, float *to, int64_t columns) {
  vector t[@T@][@T@];
  for (int64_t c = 0; c < columns; c += @WIDTH@) {
@STORE_TILE@
  }
}
"""

_BODY = r"""
static void @NAME@_inputs(const int64_t *size, const float *x, int64_t tile, int64_t rows,
                          const float *zeros, float *to, int64_t stride, int64_t slice) {
@SIZES@
  const int64_t down = (out_height + @M@ - 1) / @M@, across = (out_width + @M@ - 1) / @M@;
  const float *from[@POINTS@];
  for (int64_t r = 0; r < rows; ++r, ++tile, to += @PITCH@) {
    const int64_t image = tile / (down * across);
    const int64_t top = tile / across % down * @M@ - pad_top, left = tile % across * @M@ - pad_left;
    for (int64_t i = 0; i < @T@; ++i)
      for (int64_t j = 0; j < @T@; ++j) {
        const int inside = (uint64_t)(top + i) < (uint64_t)height &&
                           (uint64_t)(left + j) < (uint64_t)width;
        from[i * @T@ + j] =
            inside ? x + image * x_image + (top + i) * x_row + (left + j) * x_column : zeros;
      }
    @NAME@_transform(from, inputs, to, stride, slice);
  }
}

static void @NAME@_outputs(const int64_t *size, const float *sums, int64_t stride, int64_t tile,
                           int64_t rows, int64_t columns, float *buffer,
                           const @NAME@_target *target) {
@SIZES@
  const int64_t down = (out_height + @M@ - 1) / @M@, across = (out_width + @M@ - 1) / @M@;
  for (int64_t r = 0; r < rows; ++r, ++tile) {
    const int64_t image = tile / (down * across);
    const int64_t top = tile / across % down * @M@, left = tile % across * @M@;
    const int64_t high = LEAST(@M@, out_height - top), wide = LEAST(@M@, out_width - left);
    const int64_t pixel = (image * out_height + top) * out_width + left;
    for (int64_t column = 0; column < columns; column += @COLUMNS@) {
      const int64_t n = LEAST(@COLUMNS@, columns - column);
      @NAME@_back(sums + column * row_tiles * @ROWS@ + r * @COLUMNS@, stride, buffer, n);
      for (int64_t i = 0; i < high; ++i)
        @NAME@_store(buffer + i * @M@ * @COLUMNS@, wide, n, target, pixel + i * out_width, column);
    }
  }
}

__attribute__((visibility("default")))
void @NAME@(void *const *pointer, const int64_t *size, int64_t begin, int64_t end, char *scratch) {
@SIZES@
  const float *x = pointer[0], *filters = pointer[1];
  float *y = pointer[@OUTPUT@];
  const int64_t down = (out_height + @M@ - 1) / @M@, across = (out_width + @M@ - 1) / @M@;
  const int64_t tiles = images * down * across;
  const int64_t slices = inputs > @DEPTH@ ? (inputs + @DEPTH@ - 1) / @DEPTH@ : 1;
  const int64_t block_rows = row_tiles * @ROWS@, block_columns = column_tiles * @COLUMNS@;
  const int64_t slice = block_rows * @PITCH@, stride = slices * slice + @SLACK@;
  const int64_t sum_stride = block_rows * block_columns + @SLACK@;
  float *transformed = (float *)scratch, *sums = transformed + @POINTS@ * stride;
  float *buffer = sums + @POINTS@ * sum_stride, *zeros = buffer + @M@ * @M@ * @COLUMNS@;
  memset(zeros, 0, (size_t)inputs * 4);
  const int64_t column_blocks = (outputs + block_columns - 1) / block_columns;
  const int64_t point_size = (outputs + @COLUMNS@ - 1) / @COLUMNS@ * @COLUMNS@ * inputs;
  const int64_t blocks = (tiles + block_rows - 1) / block_rows * column_blocks;
  int64_t transformed_row = -1, transformed_group = -1;
  for (int64_t rest = begin; rest < end; ++rest) {
    const int64_t g = rest / blocks;
    const int64_t row = rest % blocks / column_blocks * block_rows;
    const int64_t column = rest % column_blocks * block_columns;
    const int64_t rows = LEAST(block_rows, tiles - row);
    const int64_t columns = LEAST(block_columns, outputs - column);
    const @NAME@_target target = {
      @TARGET@};
    if (transformed_row != row || transformed_group != g)
      @NAME@_inputs(size, x + g * inputs, row, rows, zeros, transformed, stride, slice);
    transformed_row = row;
    transformed_group = g;
    const float *points = filters + g * @POINTS@ * point_size + column * inputs;
    for (int64_t point = 0; point < @POINTS@; ++point) {
      int64_t at = 0;
      do {
        const int64_t depth = LEAST(@DEPTH@, inputs - at);
        const float *a = transformed + point * stride + at / @DEPTH@ * slice;
        const float *b = points + point * point_size + at * @COLUMNS@;
        const float *after = b + (at + depth < inputs ? depth * @COLUMNS@ : point_size - at);
        @NAME@_block(a, b, inputs * @COLUMNS@, rows, columns, depth, sums + point * sum_stride,
                     block_rows, at == 0, 0, after, &target);
        at += depth;
      } while (at < inputs);
    }
    @NAME@_outputs(size, sums, sum_stride, row, rows, columns, buffer, &target);
  }
}
"""
