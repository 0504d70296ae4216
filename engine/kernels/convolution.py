"""Direct two-dimensional convolution with a fused epilogue, float32, as an implicit matrix product.

Rows of the product are output pixels, gathered from the input while they are packed: borders cost
nothing but the zeros that are written there. Columns are output channels. The input has a stride
per axis, so a planar (NCHW) input can be read; output and "full" operands have one stride per
pixel, so that a slice of the channels of a wider tensor can be written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    ranked_shapes,
    scratch_floats,
)
from engine.kernels.epilogue import IDENTITY, Epilogue
from engine.kernels.isa import Isa, detect
from engine.kernels.kernel import Array, Kernel, refuse_others, register, window
from engine.kernels.packing import packed_columns_size

__all__ = ["Convolution", "candidates"]

_THIN = 32
_SIZES = (
    *SPLIT_SIZES,
    *("images", "height", "width", "groups", "inputs", "outputs"),
    *("kernel_height", "kernel_width", "out_height", "out_width"),
    *("stride_height", "stride_width", "dilation_height", "dilation_width", "pad_top", "pad_left"),
    *("x_image", "x_row", "x_column", "x_channel", "y_pixel"),
)


@register
@dataclass(frozen=True, slots=True)
class Convolution(Kernel):
    """A blocked convolution: input, filters packed by recipe "filters", epilogue operands, output.

    ``inputs`` and ``outputs`` are channels per group. A "column" operand is indexed by the output
    channel over all groups, a "row" and a "full" operand by pixel with its own stride.
    """

    kind: ClassVar[str] = "convolution"

    tile: Tile
    epilogue: Epilogue = IDENTITY

    def to_json(self) -> dict[str, object]:
        """Tile sizes and epilogue."""
        return {
            **self.tile.to_json(),
            "epilogue": self.epilogue.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        refuse_others(fields, (*TILE_FIELDS, "epilogue"))
        return cls(
            tile=Tile.from_json(fields),
            epilogue=Epilogue.from_json(fields.get("epilogue")),
        )

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """Input, filters, epilogue operands, output."""
        return ("float32",) * (len(self.epilogue.operands) + 3)

    @property
    def size_names(self) -> tuple[str, ...]:
        """The split, dimensions and strides, then the pixel stride of each epilogue operand."""
        count = len(self.epilogue.operands)
        return (*_SIZES, *(f"e{i}_pixel" for i in range(1, count + 1)))

    def _pixels(self, s: Mapping[str, int]) -> int:
        return s["images"] * s["out_height"] * s["out_width"]

    def named(self, sizes: Sequence[int]) -> dict[str, int]:
        """The sizes by name; ValueError for any that no convolution has."""
        found = Kernel.named(self, sizes)
        check_split(found)
        return found

    def items(self, sizes: Sequence[int]) -> int:
        """Blocks of pixels and channels of all groups."""
        s = self.named(sizes)
        return s["groups"] * count_blocks(self._pixels(s), s["outputs"], self.tile, s)

    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Reach of every operand in elements."""
        s = self.named(sizes)
        pixels, channels = self._pixels(s), s["groups"] * s["outputs"]
        if not pixels or not channels:
            return (0,) * self.operand_count
        x = 0
        depth = s["kernel_height"] * s["kernel_width"] * s["inputs"]
        if depth and s["height"] and s["width"]:
            last = (s["images"] - 1) * s["x_image"] + (s["height"] - 1) * s["x_row"]
            last += (s["width"] - 1) * s["x_column"]
            x = last + (s["groups"] * s["inputs"] - 1) * s["x_channel"] + 1
        filters = s["groups"] * packed_columns_size(depth, s["outputs"], self.tile.columns)
        extra = []
        for i, kind in enumerate(self.epilogue.operands, 1):
            walk = (pixels - 1) * s[f"e{i}_pixel"] if kind in ("row", "full") else 0
            extra.append(walk + (channels if kind in ("column", "full") else 1))
        return (x, filters, *extra, (pixels - 1) * s["y_pixel"] + channels)

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """Packed pixels, sums, and where each pixel of the block starts in the input."""
        s = self.named(sizes)
        return 4 * scratch_floats(self.tile, s) + 16 * self.tile.rows * s["row_tiles"]

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """Two operations per product; every operand moved once."""
        s = self.named(sizes)
        depth = s["kernel_height"] * s["kernel_width"] * s["inputs"]
        products = float(self._pixels(s)) * s["groups"] * s["outputs"] * depth
        return 2.0 * products, 4.0 * sum(self.extents(sizes))

    def source(self, name: str, isa: Isa) -> str:
        """The C file."""
        marks = {
            "SIZES": print_sizes(self.size_names),
            "TARGET": self._print_target(),
            "NAME": name,
            "ROWS": self.tile.rows,
            "COLUMNS": self.tile.columns,
            "DEPTH": self.tile.depth,
            "PITCH": self.tile.pitch,
            "LINE": 4096,
            "OUTPUT": self.operand_count - 1,
        }
        return print_blocked(name, self.tile, self.epilogue, isa) + fill_in(_GATHER + _BODY, marks)

    def _print_target(self) -> str:
        """The initialiser of the store's struct: where the block's corner lies in every operand."""
        lines = ["y + row * y_pixel + g * outputs + column, y_pixel"]
        for i, kind in enumerate(self.epilogue.operands, 1):
            wide = " + g * outputs + column" if kind in ("column", "full") else ""
            stride = f"e{i}_pixel" if kind in ("row", "full") else "0"
            lines.append(f"(const float *)pointer[{i + 1}] + row * {stride}{wide}, {stride}")
        return ",\n      ".join(lines)

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """One BLAS product per group and filter tap over a padded copy of the input."""
        s = self.named(sizes)
        pixels, outputs, groups = self._pixels(s), s["outputs"], s["groups"]
        if not pixels or not outputs or not groups:
            return
        sums = np.zeros((pixels, groups, outputs), np.float32)
        _sum_taps(operands, s, self.tile.columns, sums)
        values = [sums.reshape(pixels, groups * outputs)]
        for i, kind in enumerate(self.epilogue.operands, 1):
            stride = s[f"e{i}_pixel"] if kind in ("row", "full") else 0
            wide = groups * outputs if kind in ("column", "full") else 1
            values.append(window(operands[i + 1], (pixels, wide), (stride, 1)))
        y = window(operands[-1], (pixels, groups * outputs), (s["y_pixel"], 1))
        y[...] = self.epilogue.evaluate(values)


def _sum_taps(operands: Sequence[Array], s: Mapping[str, int], columns: int, sums: Array) -> None:
    """Add the products of every filter tap to sums [pixels, groups, outputs]."""
    groups, inputs, outputs = s["groups"], s["inputs"], s["outputs"]
    taps_high, taps_wide = s["kernel_height"], s["kernel_width"]
    if 0 in (inputs, taps_high, taps_wide, s["height"], s["width"]):
        return
    shape = (s["images"], s["height"], s["width"], groups * inputs)
    x = window(operands[0], shape, (s["x_image"], s["x_row"], s["x_column"], s["x_channel"]))
    high = (s["out_height"] - 1) * s["stride_height"] + (taps_high - 1) * s["dilation_height"] + 1
    wide = (s["out_width"] - 1) * s["stride_width"] + (taps_wide - 1) * s["dilation_width"] + 1
    padded = np.zeros((shape[0], high, wide, shape[3]), np.float32)
    used = x[:, : max(0, high - s["pad_top"]), : max(0, wide - s["pad_left"])]
    top, left = s["pad_top"], s["pad_left"]
    padded[:, top : top + used.shape[1], left : left + used.shape[2]] = used
    panels = -(-outputs // columns)
    layout = (groups, panels, taps_high, taps_wide, inputs, columns)
    filters = operands[1][: math.prod(layout)].reshape(layout)
    image, row, column, channel = padded.strides
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (s["images"], s["out_height"], s["out_width"], taps_high, taps_wide, groups * inputs),
        (
            *(image, row * s["stride_height"], column * s["stride_width"]),
            *(row * s["dilation_height"], column * s["dilation_width"], channel),
        ),
    )
    # Few channels make thin products: then the taps of a row are gathered beside each other.
    whole = inputs < _THIN
    for g in range(groups):
        part = windows[..., g * inputs : (g + 1) * inputs]
        if whole:
            taps = filters[g].reshape(panels, -1, columns)
            sums[:, g] = _joined(part.reshape(len(sums), -1), taps)[:, :outputs]
            continue
        for r in range(taps_high):
            for t in range(taps_wide):
                rows = part[:, :, :, r, t].reshape(len(sums), inputs)
                sums[:, g] += _joined(rows, filters[g, :, r, t])[:, :outputs]


def _joined(rows: Array, panels: Array) -> Array:
    """Products of rows with every panel, side by side."""
    products: Array = np.matmul(rows, panels)
    return np.moveaxis(products, 0, 1).reshape(len(rows), -1)


def candidates(
    pixels: int,
    outputs: int,
    depth: int,
    *,
    epilogue: Epilogue = IDENTITY,
    isa: Isa | None = None,
) -> list[tuple[Convolution, Split]]:
    """Kernels and splits worth measuring, the likeliest first.

    ``pixels`` over all images, ``outputs`` per group, ``depth`` = filter taps x inputs per group.
    """
    shapes = ranked_shapes(pixels, outputs, isa or detect())[:2]
    found = []
    for shape in shapes:
        most = (min(64, 112 // shape[0]), 8)
        split = balanced_split(pixels, outputs, shape, most=most, items=8)
        found.append((Convolution(Tile(*shape, 256), epilogue), split))
    if depth * outputs * 4 > 1 << 20:  # weights beyond the inner caches: keep a block of them
        kernel, split = found[0]
        found[1:1] = [(kernel, replace(split, by_columns=True))]
    return found


_GATHER = r"""
typedef struct { int64_t start; int32_t row, column; } @NAME@_place;
"""

_BODY = r"""
static void @NAME@_locate(const int64_t *size, int64_t row, int64_t rows, @NAME@_place *places) {
@SIZES@
  int64_t image = row / (out_height * out_width);
  int64_t i = row / out_width % out_height, j = row % out_width;
  for (int64_t r = 0; r < rows; ++r) {
    places[r].row = (int32_t)(i * stride_height - pad_top);
    places[r].column = (int32_t)(j * stride_width - pad_left);
    places[r].start = image * x_image + places[r].row * x_row + places[r].column * x_column;
    if (++j == out_width) {
      j = 0;
      if (++i == out_height) { i = 0; ++image; }
    }
  }
}

/* A planar input: per output row, the columns of all its pixels are interleaved once. */
static void @NAME@_gather_lines(const int64_t *size, const float *x, const @NAME@_place *places,
                                int64_t rows, int64_t r, float *packed) {
@SIZES@
  float line[@LINE@];
  for (int64_t i = 0, n; i < rows; i += n, packed += n * @PITCH@) {
    const int64_t first = places[i].column, row = places[i].row + r;
    int64_t span = kernel_width;
    for (n = 1; i + n < rows && places[i + n].column > places[i + n - 1].column; ++n) {
      const int64_t wider = places[i + n].column - first + kernel_width;
      if (wider * inputs > @LINE@) break;
      span = wider;
    }
    if ((uint64_t)row >= (uint64_t)height) {
      for (int64_t q = 0; q < n; ++q) ef_clear(packed + q * @PITCH@, kernel_width * inputs);
      continue;
    }
    const int64_t before = first < 0 ? LEAST(-first, span) : 0;
    const int64_t inside = width - first < span ? width - first : span;
    if (before > 0 || inside < span) ef_clear(line, span * inputs);
    const float *from = x + (places[i].start + r * x_row);
    if (inputs == 3) {
      const float *second = from + x_channel, *third = second + x_channel;
#pragma GCC ivdep
      for (int64_t t = before; t < inside; ++t) {
        line[t * 3] = from[t];
        line[t * 3 + 1] = second[t];
        line[t * 3 + 2] = third[t];
      }
    } else
      for (int64_t c = 0; c < inputs; ++c)
        for (int64_t t = before; t < inside; ++t) line[t * inputs + c] = from[t + c * x_channel];
    for (int64_t q = 0; q < n; ++q)
      ef_copy(packed + q * @PITCH@, line + (places[i + q].column - first) * inputs,
              kernel_width * inputs);
  }
}

static void @NAME@_gather(const int64_t *size, const float *x, const @NAME@_place *places,
                          int64_t rows, int64_t at, int64_t depth, float *packed) {
@SIZES@
  const int64_t run = kernel_width * inputs;
  const int dense = x_channel == 1 && dilation_width == 1 && x_column == inputs;
  const int planar = x_channel != 1 && dilation_width == 1 && x_column == 1 && run <= @LINE@;
  for (int64_t done = 0; done < depth;) {
    int64_t tap = (at + done) / inputs, channel = (at + done) % inputs;
    int64_t take = LEAST(inputs - channel, depth - done);
    const int whole_run = (dense || planar) && channel == 0 && tap % kernel_width == 0 &&
                          depth - done >= run;
    const int64_t r = tap / kernel_width * dilation_height, t = tap % kernel_width * dilation_width;
    const int64_t shift = r * x_row + t * x_column + channel * x_channel;
    float *to = packed + done;
    if (whole_run) take = run;
    if (whole_run && planar) {
      @NAME@_gather_lines(size, x, places, rows, r, to);
      done += take;
      continue;
    }
    for (int64_t i = 0; i < rows; ++i, to += @PITCH@) {
      const int64_t row = places[i].row + r, column = places[i].column + t;
      const float *from = x + (places[i].start + shift);
      if ((uint64_t)row >= (uint64_t)height) ef_clear(to, take);
      else if (whole_run) {
        const int inner = column >= 0 && column + kernel_width <= width;
        const int64_t before = column < 0 ? LEAST(-column, kernel_width) : 0;
        const int64_t inside = LEAST(kernel_width, width - column);
        if (!inner) ef_clear(to, run);
        if (inside <= before) continue;
        if (inner) ef_copy(to, from, run);
        else ef_copy(to + before * inputs, from + before * inputs, (inside - before) * inputs);
      } else if ((uint64_t)column >= (uint64_t)width) ef_clear(to, take);
      else if (x_channel == 1) ef_copy(to, from, take);
      else
        for (int64_t c = 0; c < take; ++c) to[c] = from[c * x_channel];
    }
    done += take;
  }
}

__attribute__((visibility("default")))
void @NAME@(void *const *pointer, const int64_t *size, int64_t begin, int64_t end, char *scratch) {
@SIZES@
  const float *x = pointer[0], *filters = pointer[1];
  float *y = pointer[@OUTPUT@];
  const int64_t block_rows = row_tiles * @ROWS@, block_columns = column_tiles * @COLUMNS@;
  float *packed = (float *)scratch, *sums = packed + LINE(block_rows * @PITCH@);
  @NAME@_place *places = (@NAME@_place *)(sums + LINE(block_rows * block_columns));
  const int64_t pixels = images * out_height * out_width;
  const int64_t k = kernel_height * kernel_width * inputs;
  const int64_t row_blocks = (pixels + block_rows - 1) / block_rows;
  const int64_t column_blocks = (outputs + block_columns - 1) / block_columns;
  const int64_t blocks = row_blocks * column_blocks;
  const int64_t group_size = (outputs + @COLUMNS@ - 1) / @COLUMNS@ * @COLUMNS@ * k;
  const int whole = k <= @DEPTH@;
  int64_t packed_group = -1, packed_row = -1;
  for (int64_t rest = begin; rest < end; ++rest) {
    const int64_t g = rest / blocks, block = rest % blocks;
    const int64_t row = (by_columns ? block % row_blocks : block / column_blocks) * block_rows;
    const int64_t column =
        (by_columns ? block / row_blocks : block % column_blocks) * block_columns;
    const int64_t rows = LEAST(block_rows, pixels - row);
    const int64_t columns = LEAST(block_columns, outputs - column);
    const int kept = packed_group == g && packed_row == row;
    const @NAME@_target target = {
      @TARGET@};
    if (packed_row != row) @NAME@_locate(size, row, rows, places);
    int64_t at = 0;
    do {
      const int64_t depth = LEAST(@DEPTH@, k - at);
      if (!whole || !kept)
        @NAME@_gather(size, x + g * inputs * x_channel, places, rows, at, depth, packed);
      const float *panel = filters + g * group_size + column * k + at * @COLUMNS@;
      @NAME@_block(packed, panel, k * @COLUMNS@, rows, columns, depth, sums,
                   whole ? 0 : block_rows, at == 0, at + depth >= k,
                   at + depth < k ? panel + depth * @COLUMNS@ : panel, &target);
      at += depth;
    } while (at < k);
    packed_group = g;
    packed_row = row;
  }
}
"""
