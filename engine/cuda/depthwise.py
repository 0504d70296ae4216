"""Depthwise convolutions over NHWC as CUDA C: one filter per channel, any window.

Each thread walks down the input rows of its rectangle of outputs; a row is read once, as vectors of
channels, and added to all outputs that it reaches. Sums are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.c_expression import PRELUDE, storage_type
from engine.cuda.kernel import DeviceKernel
from engine.cuda.windows import STORES, Ending, Geometry, Sizes, Tile, fill, vector_functions
from engine.ir.types import DType

__all__ = ["Depthwise"]

_TEXT = r"""
extern "C" __global__ void __launch_bounds__(@THREADS@) depthwise(
    const @X@ *x, const @X@ *__restrict__ filters@OPERANDS@, @Y@ *y@PARAMETERS@) {
@GEOMETRY@
@CONSTANTS@
@PLACE@
  ef_wait();
  ef_launch_dependents();
  if (channel >= channels || column >= out_width || row >= out_height) return;
  constexpr int INPUTS = (COLUMNS - 1) * stride_width + (kernel_width - 1) * dilation_width + 1;
  constexpr int LINES = (ROWS - 1) * stride_height + (kernel_height - 1) * dilation_height + 1;
  const @X@ *from = x + (int64_t)image * height * width * x_pixel + channel;
  const @X@ *taps = filters + channel;
  const int first = column * stride_width - pad_left;
@HOISTED@
  float sums[ROWS][COLUMNS][V];
#pragma unroll
  for (int i = 0; i < ROWS * COLUMNS * V; ++i) (&sums[0][0][0])[i] = 0.0f;
@SUMS@
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int t = 0; t < COLUMNS; ++t)
      if (row + r < out_height && column + t < out_width) {
        const int64_t pixel = ((int64_t)image * out_height + row + r) * out_width + column + t;
        @STORE@
      }
}
"""

# Input rows in turn; constant conditions choose the filter rows that meet each.
_UNROLLED_SUMS = r"""
#pragma unroll
  for (int i = 0; i < LINES; ++i) {
    const int line = row * stride_height - pad_top + i;
    const bool there = (unsigned)line < (unsigned)height;
    const @X@ *at = from + (int64_t)line * width * x_pixel;
    raw_x inputs[INPUTS];
#pragma unroll
    for (int j = 0; j < INPUTS; ++j) {
      inputs[j] = raw_x{};
      if (there && (unsigned)(first + j) < (unsigned)width)
        inputs[j] = *(const raw_x *)(at + (int64_t)(first + j) * x_pixel);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int k = (i - r * stride_height) / dilation_height;
      if (i < r * stride_height || (i - r * stride_height) % dilation_height || k >= kernel_height)
        continue;
#pragma unroll
      for (int s = 0; s < kernel_width; ++s) {
        float tap[V];
        load_x(taps + (k * kernel_width + s) * channels, tap);
#pragma unroll
        for (int t = 0; t < COLUMNS; ++t) {
          float value[V];
          unpack_x(inputs[t * stride_width + s * dilation_width], value);
#pragma unroll
          for (int v = 0; v < V; ++v) sums[r][t][v] += value[v] * tap[v];
        }
      }
    }
  }
"""

_LOOPED_SUMS = r"""
#pragma unroll 1
  for (int k = 0; k < kernel_height; ++k) {
    const int line = row * stride_height - pad_top + k * dilation_height;
    if ((unsigned)line >= (unsigned)height) continue;
    const @X@ *at = from + (int64_t)line * width * x_pixel;
#pragma unroll 4
    for (int s = 0; s < kernel_width; ++s) {
      float tap[V];
      load_x(taps + (k * kernel_width + s) * channels, tap);
#pragma unroll
      for (int t = 0; t < COLUMNS; ++t) {
        const int place = first + t * stride_width + s * dilation_width;
        if ((unsigned)place >= (unsigned)width) continue;
        float value[V];
        load_x(at + (int64_t)place * x_pixel, value);
#pragma unroll
        for (int v = 0; v < V; ++v) sums[0][t][v] += value[v] * tap[v];
      }
    }
  }
"""


@dataclass(frozen=True, slots=True)
class Depthwise:
    """One filter per channel over images [N, H, W, C] of ``dtype``; filters are [R * S, C].

    Parameters: input, filters, operands of the ending, output, then the open sizes of ``sizes``,
    which must name height, width, channels, out_height, out_width, x_pixel, y_pixel and the
    ending's pixel strides.
    """

    dtype: DType
    geometry: Geometry
    tile: Tile
    ending: Ending

    def kernel(self, sizes: Sizes) -> DeviceKernel:
        """The kernel's text for these sizes."""
        tile, kind = self.tile, storage_type(self.dtype)
        unrolled = self.geometry.written_out
        if tile.rows > 1 and not unrolled:
            raise ValueError(f"a window of {self.geometry.kernel} needs tiles of one row")
        body = fill(
            _TEXT,
            {
                "SUMS": _UNROLLED_SUMS if unrolled else _LOOPED_SUMS,
                "GEOMETRY": self.geometry.text,
                "CONSTANTS": sizes.constants,
                "PARAMETERS": sizes.parameters,
                "PLACE": tile.place,
                "HOISTED": self.ending.hoisted("channel", tile.vector),
                "STORE": self.ending.store("sums[r][t]", "pixel", "channel", tile.vector),
                "OPERANDS": self.ending.parameters,
                "THREADS": tile.threads,
                "X": kind,
                "Y": storage_type(self.ending.out),
            },
        )
        functions = vector_functions(self.dtype, tile.vector, "x")
        source = PRELUDE + STORES + functions + self.ending.functions(tile.vector) + body
        return DeviceKernel("nvrtc", "depthwise", source, tile.threads, waits=True)
