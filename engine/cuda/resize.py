"""Images over NHWC resized as CUDA C: a thread makes one vector of channels of one pixel.

Positions are computed as the meaning does, in float32 for "nearest" and float64 for "linear", so
that both read the same elements; values between elements are made in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.c_expression import PRELUDE, storage_type
from engine.cuda.kernel import DeviceKernel
from engine.cuda.windows import STORES, Sizes, fill, vector_functions
from engine.ir.types import DType

__all__ = ["COORDINATES", "Resizing", "ROUNDINGS"]

#: The position in the input of output ``i``; @SCALE@ is the ratio, @WIDE@ the same in float64.
COORDINATES = {
    "half_pixel": "(i + @HALF@) / @SCALE@ - @HALF@",
    "asymmetric": "i / @SCALE@",
    "tf_half_pixel_for_nn": "(i + @HALF@) / @SCALE@",
    "pytorch_half_pixel": "target > 1 ? (i + @HALF@) / @SCALE@ - @HALF@ : @ZERO@",
    "align_corners": "__dmul_rn(@WIDE@, (double)size) == 1.0 ? @ZERO@ "
    ": i * (size - 1) / (@KIND@)(__dmul_rn(@WIDE@, (double)size) - 1.0)",
}
ROUNDINGS = {
    "round_prefer_floor": "ceil((double)p - 0.5)",
    "round_prefer_ceil": "floor((double)p + 0.5)",
    "floor": "floor((double)p)",
    "ceil": "ceil((double)p)",
}

_TEXT = r"""
@POSITIONS@
EF_FUNCTION int inside(int place, int size) { return min(max(place, 0), size - 1); }
extern "C" __global__ void __launch_bounds__(@THREADS@) resizing(
    const @X@ *x, @X@ *y@PARAMETERS@) {
@CONSTANTS@
  constexpr int V = @VECTOR@;
  const int vectors = channels / V;
  const unsigned item = blockIdx.x * @THREADS@u + threadIdx.x;
  const unsigned pixel = item / (unsigned)vectors;
  const int channel = (int)(item % (unsigned)vectors) * V;
  const int row = (int)(pixel / (unsigned)out_width);
  const int column = (int)(pixel % (unsigned)out_width);
  ef_wait();
  ef_launch_dependents();
  if (row >= out_height) return;
  const int64_t image = blockIdx.y;
  const @X@ *from = x + image * height * width * x_pixel + channel;
  @X@ *to = y + ((image * out_height + row) * out_width + column) * y_pixel + channel;
@BODY@
}
"""

_NEAREST = r"""
  const int line = nearest_row(row, height, out_height);
  const int place = nearest_column(column, width, out_width);
  store_vector((raw_x *)to, *(const raw_x *)(from + ((int64_t)line * width + place) * x_pixel));
"""

_LINEAR = r"""
  const double down = row_position(row, height, out_height);
  const double across = column_position(column, width, out_width);
  const int line = (int)floor(down), place = (int)floor(across);
  const float low = (float)(down - line), right = (float)(across - place);
  const int64_t lines[2] = {(int64_t)inside(line, height) * width,
                            (int64_t)inside(line + 1, height) * width};
  const int places[2] = {inside(place, width), inside(place + 1, width)};
  const float heights[2] = {(float)(1.0 - (down - line)), low};
  const float widths[2] = {(float)(1.0 - (across - place)), right};
  float sum[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = 0.0f;
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    float upper[V], lower[V];
    load_x(from + (lines[0] + places[b]) * x_pixel, upper);
    load_x(from + (lines[1] + places[b]) * x_pixel, lower);
#pragma unroll
    for (int v = 0; v < V; ++v)
      sum[v] += (upper[v] * heights[0] + lower[v] * heights[1]) * widths[b];
  }
  store_x(to, sum);
"""


@dataclass(frozen=True, slots=True)
class Resizing:
    """Height and width of [N, H, W, C] resized by ``scales``; ``mode`` "nearest" or "linear".

    ``still`` names axes (0 height, 1 width) that keep their size. The grid is blocks of
    ``threads`` over out_height * out_width * channels / vector, and images. Parameters: input,
    output, then the open sizes: height, width, channels, out_height, out_width, x_pixel, y_pixel.
    """

    dtype: DType
    mode: str
    coordinates: str
    rounding: str
    scales: tuple[float, float]
    still: tuple[int, ...]
    vector: int
    threads: int

    def kernel(self, sizes: Sizes) -> DeviceKernel:
        """The kernel's text for these sizes."""
        nearest = self.mode == "nearest"
        body = fill(
            _TEXT,
            {
                "BODY": _NEAREST if nearest else _LINEAR,
                "POSITIONS": self._position(0, "row") + self._position(1, "column"),
                "CONSTANTS": sizes.constants,
                "PARAMETERS": sizes.parameters,
                "THREADS": self.threads,
                "VECTOR": self.vector,
                "X": storage_type(self.dtype),
            },
        )
        source = PRELUDE + STORES + vector_functions(self.dtype, self.vector, "x") + body
        return DeviceKernel("nvrtc", "resizing", source, self.threads, waits=True)

    def _position(self, axis: int, name: str) -> str:
        """Text of the position along an axis, and for "nearest" of the element that is taken."""
        nearest = self.mode == "nearest"
        kind, suffix = ("float", "f") if nearest else ("double", "")
        form = "i" if axis in self.still else COORDINATES[self.coordinates]
        text = fill(
            form,
            {
                "SCALE": f"({float(self.scales[axis]).hex()}{suffix})",
                "HALF": f"0.5{suffix}",
                "WIDE": float(self.scales[axis]).hex(),
                "KIND": kind,
                "ZERO": f"0.0{suffix}",
            },
        )
        found = (
            f"EF_FUNCTION {kind} {name}_position(int place, int size, int target) {{\n"
            f"  const {kind} i = ({kind})place; return {text}; }}\n"
        )
        if nearest:
            scale = self.scales[axis]
            rounding = self.rounding
            if rounding == "before_11":
                rounding = "ceil" if scale < 1 else "floor"
            found += (
                f"EF_FUNCTION int nearest_{name}(int place, int size, int target) {{\n"
                f"  const float p = {name}_position(place, size, target);\n"
                f"  const int found = (int){ROUNDINGS[rounding]};\n"
                "  return min(max(found, 0), size - 1); }\n"
            )
        return found
