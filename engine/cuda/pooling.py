"""Maximum and average pooling over NHWC as CUDA C, and the reduction of whole maps.

Maxima of 16-bit floats are taken two at a time, without a conversion; averages are summed in
float32. NaN wins, as it does in the meaning. The maximum of no element is minus infinity.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.c_expression import PRELUDE, storage_type
from engine.cuda.kernel import DeviceKernel
from engine.cuda.windows import STORES, Geometry, Sizes, Tile, fill, vector_functions
from engine.ir.types import DType

__all__ = ["MapReduction", "Pooling"]

#: Two 16-bit maxima in one word: PTX type, conversions, and minus infinity twice.
_PAIRED = {
    DType.FLOAT16: ("f16x2", "ef_unpack_float16", "ef_pack_float16", "0xfc00fc00u"),
    DType.BFLOAT16: ("bf16x2", "ef_unpack_bfloat16", "ef_pack_bfloat16", "0xff80ff80u"),
}

_MAXIMUM = r"""
#ifdef __CUDACC__
EF_FUNCTION uint32_t pair_maximum(uint32_t a, uint32_t b) {
  uint32_t y; asm("max.NaN.@TYPE@ %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b)); return y; }
#else
EF_FUNCTION uint32_t pair_maximum(uint32_t a, uint32_t b) {
  float low, high, other_low, other_high;
  @UNPACK@(a, low, high); @UNPACK@(b, other_low, other_high);
  return @PACK@(ef_maximum(low, other_low), ef_maximum(high, other_high)); }
#endif
"""

_TEXT = r"""
extern "C" __global__ void __launch_bounds__(@THREADS@) pooling(
    const @X@ *x, @X@ *y@PARAMETERS@) {
@GEOMETRY@
@CONSTANTS@
@PLACE@
  ef_wait();
  ef_launch_dependents();
  if (channel >= channels || column >= out_width || row >= out_height) return;
  constexpr int INPUTS = (COLUMNS - 1) * stride_width + (kernel_width - 1) * dilation_width + 1;
  constexpr int LINES = (ROWS - 1) * stride_height + (kernel_height - 1) * dilation_height + 1;
  const @X@ *from = x + (int64_t)image * height * width * x_pixel + channel;
  const int first = column * stride_width - pad_left;
  const int top = row * stride_height - pad_top;
  float outside[V];
#pragma unroll
  for (int v = 0; v < V; ++v) outside[v] = @OUTSIDE@;
  const raw_x nothing = pack_x(outside);
  @SUM@ sums[ROWS][COLUMNS][@PARTS@];
#pragma unroll
  for (int i = 0; i < ROWS * COLUMNS * @PARTS@; ++i) (&sums[0][0][0])[i] = @START@;
@SUMS@
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int t = 0; t < COLUMNS; ++t)
      if (row + r < out_height && column + t < out_width) {
        @X@ *to = y + (((int64_t)image * out_height + row + r) * out_width + column + t) * y_pixel
            + channel;
        @STORE@
      }
}
"""

_UNROLLED_SUMS = r"""
#pragma unroll
  for (int i = 0; i < LINES; ++i) {
    const bool there = (unsigned)(top + i) < (unsigned)height;
    const @X@ *at = from + (int64_t)(top + i) * width * x_pixel;
    raw_x inputs[INPUTS];
#pragma unroll
    for (int j = 0; j < INPUTS; ++j) {
      inputs[j] = nothing;
      if (there && (unsigned)(first + j) < (unsigned)width)
        inputs[j] = *(const raw_x *)(at + (int64_t)(first + j) * x_pixel);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int down = i - r * stride_height;
      if (down < 0 || down % dilation_height || down / dilation_height >= kernel_height) continue;
#pragma unroll
      for (int t = 0; t < COLUMNS; ++t)
#pragma unroll
        for (int s = 0; s < kernel_width; ++s) {
          const raw_x input = inputs[t * stride_width + s * dilation_width];
          @TAKE@
        }
    }
  }
"""

_LOOPED_SUMS = r"""
#pragma unroll 1
  for (int k = 0; k < kernel_height; ++k) {
    const int line = top + k * dilation_height;
    if ((unsigned)line >= (unsigned)height) continue;
    const @X@ *at = from + (int64_t)line * width * x_pixel;
#pragma unroll 4
    for (int s = 0; s < kernel_width; ++s) {
      constexpr int r = 0;
#pragma unroll
      for (int t = 0; t < COLUMNS; ++t) {
        const int place = first + t * stride_width + s * dilation_width;
        if ((unsigned)place >= (unsigned)width) continue;
        const raw_x input = *(const raw_x *)(at + (int64_t)place * x_pixel);
        @TAKE@
      }
    }
  }
"""

# How many elements of a window count along one axis: those in the image, or in the padding too.
_COUNT = r"""
EF_FUNCTION int covered(int begin, int count, int step, int low, int high) {
  int found = 0;
  for (int i = 0; i < count; ++i) found += begin + i * step >= low && begin + i * step < high;
  return found;
}
"""

_WORDS = r"""
            const uint32_t *words = (const uint32_t *)&input;
#pragma unroll
            for (int p = 0; p < @PARTS@; ++p)
              sums[r][t][p] = pair_maximum(sums[r][t][p], words[p]);
"""

_FLOATS = r"""
            float value[V];
            unpack_x(input, value);
#pragma unroll
            for (int v = 0; v < V; ++v) sums[r][t][v] = @COMBINE@;
"""

_AVERAGE = r"""
        const int counted =
            covered(top + r * stride_height, kernel_height, dilation_height, @ROWS@)
            * covered(first + t * stride_width, kernel_width, dilation_width, @COLUMNS@);
#pragma unroll
        for (int v = 0; v < V; ++v) sums[r][t][v] = sums[r][t][v] / (float)counted;
        store_x(to, sums[r][t]);
"""


@dataclass(frozen=True, slots=True)
class Pooling:
    """Pooling of images [N, H, W, C] of ``dtype``; ``function`` is "max" or "average".

    Parameters: input, output, then the open sizes, which must name height, width, channels,
    out_height, out_width, x_pixel and y_pixel.
    """

    dtype: DType
    function: str
    geometry: Geometry
    tile: Tile
    counts_padding: bool = False

    def kernel(self, sizes: Sizes) -> DeviceKernel:
        """The kernel's text for these sizes."""
        tile = self.tile
        unrolled = self.geometry.written_out
        if tile.rows > 1 and not unrolled:
            raise ValueError(f"a window of {self.geometry.kernel} needs tiles of one row")
        paired = self.function == "max" and self.dtype in _PAIRED and tile.vector > 1
        body = fill(
            _TEXT,
            {
                "SUMS": _UNROLLED_SUMS if unrolled else _LOOPED_SUMS,
                "TAKE": _WORDS if paired else _FLOATS,
                "STORE": self._store(paired),
                "COMBINE": "ef_maximum(sums[r][t][v], value[v])"
                if self.function == "max"
                else "sums[r][t][v] + value[v]",
                "SUM": "uint32_t" if paired else "float",
                "START": self._start(paired),
                "OUTSIDE": self._start(False),
                "PARTS": tile.vector // 2 if paired else "V",
                "GEOMETRY": self.geometry.text,
                "CONSTANTS": sizes.constants,
                "PARAMETERS": sizes.parameters,
                "PLACE": tile.place,
                "THREADS": tile.threads,
                "X": storage_type(self.dtype),
            },
        )
        source = PRELUDE + STORES + vector_functions(self.dtype, tile.vector, "x")
        if paired:
            kind, unpack, pack, _ = _PAIRED[self.dtype]
            source += fill(_MAXIMUM, {"TYPE": kind, "UNPACK": unpack, "PACK": pack})
        return DeviceKernel("nvrtc", "pooling", source + _COUNT + body, tile.threads, waits=True)

    def _start(self, paired: bool) -> str:
        if self.function == "average":
            return "0.0f"
        return _PAIRED[self.dtype][3] if paired else "(-INFINITY)"

    def _store(self, paired: bool) -> str:
        if paired:
            return (
                f"raw_x made; uint32_t *words = (uint32_t *)&made;\n#pragma unroll\n"
                f"        for (int p = 0; p < {self.tile.vector // 2}; ++p) words[p] = "
                "sums[r][t][p];\n        store_vector((raw_x *)to, made);"
            )
        if self.function == "max":
            return "store_x(to, sums[r][t]);"
        rows, columns = "0, height", "0, width"
        if self.counts_padding:
            rows = "-pad_top, height + pad_bottom"
            columns = "-pad_left, width + pad_right"
        return fill(_AVERAGE, {"ROWS": rows, "COLUMNS": columns})


_REDUCTION = r"""
extern "C" __global__ void __launch_bounds__(@LANES@ * @PIXELS@) map_reduction(
    const @X@ *x, @Y@ *y@PARAMETERS@) {
@CONSTANTS@
  constexpr int V = @VECTOR@, LANES = @LANES@, PIXELS = @PIXELS@;
  __shared__ float partial[PIXELS][LANES * V];
  const int lane = (int)threadIdx.x % LANES, member = (int)threadIdx.x / LANES;
  unsigned block = blockIdx.x;
  const unsigned channel_blocks = ((unsigned)channels + LANES * V - 1) / (LANES * V);
  const int channel = ((int)(block % channel_blocks) * LANES + lane) * V;
  block /= channel_blocks;
  const int part = (int)(block % parts), image = (int)(block / parts);
  const int each = (pixels + parts - 1) / parts;
  const int last = min((part + 1) * each, pixels);
  ef_wait();
  ef_launch_dependents();
  float sum[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = @START@;
  if (channel < channels) {
    const @X@ *from = x + (int64_t)image * pixels * x_pixel + channel;
#pragma unroll @UNROLL@
    for (int p = part * each + member; p < last; p += PIXELS) {
      float value[V];
      load_x(from + (int64_t)p * x_pixel, value);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = @COMBINE@;
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) partial[member][lane * V + v] = sum[v];
  /* A tree of fixed shape: the order of summation does not depend on time. */
#pragma unroll
  for (int half = PIXELS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (member < half)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float other = partial[member + half][lane * V + v];
        sum[v] = @MERGE@;
        partial[member][lane * V + v] = sum[v];
      }
  }
  if (member == 0 && channel < channels) {
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = @SCALED@;
    store_y(y + ((int64_t)image * parts + part) * y_pixel + channel, sum);
  }
}
"""


@dataclass(frozen=True, slots=True)
class MapReduction:
    """Maximum or mean over all pixels of each image: [N, pixels, C] to [N, parts, C].

    Each of ``parts`` blocks takes a share of the pixels; ``divisor`` divides sums (1 for partial
    ones). A block has ``lanes`` vectors of ``vector`` channels times ``members`` pixels (a
    power of two). Parameters:
    input, output, then the open sizes: pixels, parts, channels, x_pixel, y_pixel.
    """

    dtype: DType
    out: DType
    function: str
    vector: int
    lanes: int
    members: int
    divisor: int = 1

    def kernel(self, sizes: Sizes) -> DeviceKernel:
        """The kernel's text for these sizes."""
        maximum = self.function == "max"
        body = fill(
            _REDUCTION,
            {
                "X": storage_type(self.dtype),
                "Y": storage_type(self.out),
                "PARAMETERS": sizes.parameters,
                "CONSTANTS": sizes.constants,
                "VECTOR": self.vector,
                "LANES": self.lanes,
                "PIXELS": self.members,
                "UNROLL": 4,
                "START": "(-INFINITY)" if maximum else "0.0f",
                "COMBINE": "ef_maximum(sum[v], value[v])" if maximum else "sum[v] + value[v]",
                "MERGE": "ef_maximum(sum[v], other)" if maximum else "sum[v] + other",
                "SCALED": "sum[v]" if self.divisor == 1 else f"sum[v] / {float(self.divisor)}f",
            },
        )
        source = PRELUDE + STORES + vector_functions(self.dtype, self.vector, "x")
        source += vector_functions(self.out, self.vector, "y") + body
        threads = self.lanes * self.members
        return DeviceKernel("nvrtc", "map_reduction", source, threads, waits=True)
