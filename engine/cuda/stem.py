"""The first convolution of an image network on tensor cores, as CUDA C: few channels in, NHWC out.

The image is read as it is. A block copies the patch below its outputs to shared memory and takes
the fragments of A for `mma.m16n8k16` straight from it, without an im2col tile: K runs over channel,
filter row and pairs of filter columns, and the two elements of a pair are neighbours in the patch,
one 32-bit word. Filters get a zero column in front where that brings pairs to even columns. For an
odd stride there is a second copy of the patch, shifted by one column, for the odd outputs.

Fragments of B lie in shared memory as the instruction wants them (packed when a plan is built);
their columns are ordered so that a thread ends with 8 adjacent channels and stores them at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from engine.cuda.c_expression import PRELUDE, storage_type
from engine.cuda.kernel import DeviceKernel
from engine.cuda.windows import STORES, Ending, Sizes, fill
from engine.ir.sizes import Dim, ceildiv
from engine.ir.types import DType

__all__ = ["Stem", "StemShape", "StemTile"]

#: Output columns of a fragment, and channels that four fragments of B give a quad of threads.
FRAGMENT, GROUP = 16, 32
#: Words of a patch row that keep the rows of a pair of lanes in different banks.
_APART = (12, 16, 20)


@dataclass(frozen=True, slots=True)
class StemShape:
    """What is fixed about a layer: channels in and out, filter, strides, top and left padding."""

    channels: int
    outputs: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]

    @property
    def lead(self) -> int:
        """Zero columns in front of the filters, so that the first pair begins at an even column."""
        return self.pads[1] % 2

    @property
    def pairs_per_row(self) -> int:
        """Pairs of filter columns."""
        return -(-(self.lead + self.kernel[1]) // 2)

    @property
    def pairs(self) -> int:
        """Pairs of a whole filter; K is twice that, without what fills the last step."""
        return self.channels * self.kernel[0] * self.pairs_per_row

    @property
    def steps(self) -> int:
        """Steps of 16 along K."""
        return -(-self.pairs // 8)

    @property
    def copies(self) -> int:
        """Copies of the patch."""
        return 2 if self.strides[1] % 2 else 1

    @property
    def aligned_pad(self) -> int:
        """Columns in front of the patch: the padding, up to a multiple of 8."""
        return -(-self.pads[1] // 8) * 8


@dataclass(frozen=True, slots=True)
class StemTile:
    """A block: fragments across, output rows, fragments of a warp, channels / 32 of a pass."""

    across: int
    rows: int
    per_warp: int
    groups: int

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.across * self.rows // self.per_warp

    def blocks(self, out_height: Dim, out_width: Dim) -> Dim:
        """Blocks for one image."""
        return ceildiv(out_height, self.rows) * ceildiv(out_width, self.across * FRAGMENT)

    def to_json(self) -> dict[str, int]:
        """The tile as a choice."""
        return asdict(self)


_HELPERS = r"""
#ifdef __CUDACC__
EF_FUNCTION void multiply(float *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.@KIND@.@KIND@.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); }
/* 16 bytes to shared memory without waiting; zeros where the source is not inside. */
EF_FUNCTION void copy(uint4 *to, const void *from, bool inside) {
  uint32_t address;
  asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(address), "l"(from), "r"(inside ? 16 : 0) : "memory"); }
EF_FUNCTION void copied() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#else
EF_FUNCTION void multiply(float *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  shim_mma_m16n8k16(d, a, b, @BRAIN@); }
EF_FUNCTION void copy(uint4 *to, const void *from, bool inside) {
  *to = inside ? *(const uint4 *)from : uint4{}; }
EF_FUNCTION void copied() {}
#endif
"""

_TEXT = r"""
extern "C" __global__ void __launch_bounds__(@THREADS@) stem(
    const @X@ *x, const @X@ *filters@OPERANDS@, @Y@ *y@PARAMETERS@) {
@CONSTANTS@
  extern __shared__ uint4 shared[];
  uint32_t *patch = (uint32_t *)(shared + FILTER_VECTORS);
  const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32;
  for (int i = thread; i < FILTER_VECTORS; i += THREADS)
    copy(shared + i, filters + i * 8, true);
  unsigned block = blockIdx.x;
  const unsigned column_blocks = ((unsigned)out_width + ACROSS * 16 - 1) / (ACROSS * 16);
  const unsigned row_blocks = ((unsigned)out_height + ROWS - 1) / ROWS;
  const int first_column = (int)(block % column_blocks) * (ACROSS * 16);
  block /= column_blocks;
  const int first_row = (int)(block % row_blocks) * ROWS;
  const int image = (int)(block / row_blocks);
  const @X@ *from = x + (int64_t)image * x_image;
  const int top = first_row * STRIDE_HEIGHT - PAD_TOP;
  const int left = first_column * STRIDE_WIDTH - ALIGNED_PAD;
  ef_wait();
@FILL@
  ef_launch_dependents();
  copied();
  __syncthreads();
@SHIFT@
  const unsigned inner = (unsigned)lane & 3u, outer = (unsigned)lane >> 2;
  /* Where the fragments of this warp begin in the patch. */
  int base[PER_WARP];
#pragma unroll
  for (int m = 0; m < PER_WARP; ++m) {
    const int tile = warp * PER_WARP + m;
    const int place = (tile % ACROSS * 16 + (int)outer) * STRIDE_WIDTH;
    base[m] = tile / ACROSS * STRIDE_HEIGHT * PITCH + place / 2 + place % 2 * COPY_WORDS + SKIPPED;
  }
#pragma unroll 1
  for (int pass = 0; pass < PASSES; ++pass) {
    float sums[PER_WARP][4 * GROUPS][4];
#pragma unroll
    for (int i = 0; i < PER_WARP * 4 * GROUPS * 4; ++i) (&sums[0][0][0])[i] = 0.0f;
    const uint4 *right = shared + pass * (STEPS * GROUPS * 64) + lane;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      uint4 b[2 * GROUPS];
#pragma unroll
      for (int j = 0; j < 2 * GROUPS; ++j) b[j] = right[(step * 2 * GROUPS + j) * 32];
      int at[2];
      uint32_t keep[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        /* The pair of filter columns that this lane holds. */
        const unsigned pair = (unsigned)(8 * step + 4 * half) + inner;
        const unsigned line = pair / PAIRS_PER_ROW, s = pair % PAIRS_PER_ROW;
        const bool there = pair < PAIRS;
        at[half] = there
            ? (int)((line / KERNEL_HEIGHT * PATCH_ROWS + line % KERNEL_HEIGHT) * PITCH + s) : 0;
        /* What lies beside the filter is no part of the sum, even where it is no number. */
        keep[half] = there ? (LEAD && s == 0 ? 0xffff0000u : 0xffffffffu)
            & (2 * s + 1 >= LEAD + KERNEL_WIDTH ? 0x0000ffffu : 0xffffffffu) : 0u;
      }
#pragma unroll
      for (int m = 0; m < PER_WARP; ++m) {
        uint32_t a[4];
        a[0] = patch[base[m] + at[0]] & keep[0];
        a[1] = patch[base[m] + 4 * STRIDE_WIDTH + at[0]] & keep[0];
        a[2] = 8 * step + 4 < PAIRS ? patch[base[m] + at[1]] & keep[1] : 0u;
        a[3] = 8 * step + 4 < PAIRS ? patch[base[m] + 4 * STRIDE_WIDTH + at[1]] & keep[1] : 0u;
#pragma unroll
        for (int j = 0; j < 2 * GROUPS; ++j) {
          multiply(sums[m][2 * j], a, b[j].x, b[j].y);
          multiply(sums[m][2 * j + 1], a, b[j].z, b[j].w);
        }
      }
    }
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
      for (int part = 0; part < 8; part += V) {
        const int channel = (pass * GROUPS + g) * 32 + (int)inner * 8 + part;
        if (channel >= OUTPUTS) continue;
@HOISTED@
#pragma unroll
        for (int m = 0; m < PER_WARP; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int tile = warp * PER_WARP + m;
            const int row = first_row + tile / ACROSS;
            const int column = first_column + tile % ACROSS * 16 + (int)outer + 8 * half;
            if (row >= out_height || column >= out_width) continue;
            float total[V];
#pragma unroll
            for (int v = 0; v < V; ++v)
              total[v] = sums[m][4 * g + (part + v) / 2][2 * half + (part + v) % 2];
            const int64_t pixel = ((int64_t)image * out_height + row) * out_width + column;
            @STORE@
          }
      }
  }
}
"""

# The image's rows are whole vectors: each is inside or outside.
_FILL_VECTORS = r"""
  for (int i = thread; i < CHANNELS * PATCH_ROWS * PITCH / 4; i += THREADS) {
    const int line = i / (PITCH / 4), vector = i % (PITCH / 4);
    const int row = top + line % PATCH_ROWS, column = left + vector * 8;
    const bool inside = (unsigned)row < (unsigned)height && (unsigned)column < (unsigned)width;
    const int64_t place = (int64_t)(line / PATCH_ROWS) * x_channel + (int64_t)row * x_row + column;
    copy((uint4 *)patch + i, inside ? from + place : x, inside);
  }
"""

_FILL_ELEMENTS = r"""
  for (int i = thread; i < CHANNELS * PATCH_ROWS * PITCH; i += THREADS) {
    const int line = i / PITCH, row = top + line % PATCH_ROWS;
    const bool there = (unsigned)row < (unsigned)height;
    const @X@ *at = from + (int64_t)(line / PATCH_ROWS) * x_channel + (int64_t)row * x_row;
    uint32_t word = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = left + i % PITCH * 2 + half;
      if (there && (unsigned)column < (unsigned)width)
        word |= (uint32_t)at[(int64_t)column * x_column] << (16 * half);
    }
    patch[i] = word;
  }
"""

_SHIFT = r"""
  for (int i = thread; i < COPY_WORDS; i += THREADS) {
    const uint32_t next = i % PITCH + 1 < PITCH ? patch[i + 1] : 0u;
    patch[COPY_WORDS + i] = patch[i] >> 16 | next << 16;
  }
  __syncthreads();
"""


@dataclass(frozen=True, slots=True)
class Stem:
    """A convolution of few channels in float16 or bfloat16.

    Parameters: image, packed filters, operands of the ending, output, then the open sizes, which
    must name height, width, out_height, out_width, the element strides x_image, x_channel, x_row
    and x_column, y_pixel and those of the ending. ``whole_vectors`` says that rows of the image are
    adjacent elements, a multiple of 8, and aligned. ``vector`` channels are stored at once (8, 4,
    2 or 1).
    """

    dtype: DType
    shape: StemShape
    tile: StemTile
    ending: Ending
    vector: int = 8
    whole_vectors: bool = True

    @property
    def passes(self) -> int:
        """How often a block goes over its patch, for other channels."""
        return -(-self.shape.outputs // (GROUP * self.tile.groups))

    @property
    def filter_elements(self) -> int:
        """Elements of the packed filters."""
        return self.passes * self.tile.groups * GROUP * self.shape.steps * 16

    @property
    def patch_rows(self) -> int:
        """Image rows of a block."""
        return (self.tile.rows - 1) * self.shape.strides[0] + self.shape.kernel[0]

    @property
    def skipped(self) -> int:
        """Words of a patch row in front of the first pair."""
        return (self.shape.aligned_pad - self.shape.pads[1] - self.shape.lead) // 2

    @property
    def pitch(self) -> int:
        """Words of a patch row, a multiple of 4."""
        shape = self.shape
        columns = (self.tile.across * FRAGMENT - 1) * shape.strides[1]
        words = self.skipped + (columns + 1) // 2 + shape.pairs_per_row + 1
        words = -(-words // 4) * 4
        while shape.pairs_per_row % 4 and words % 32 not in _APART:
            words += 4
        return words

    @property
    def copy_words(self) -> int:
        """Words of one copy of the patch."""
        return self.shape.channels * self.patch_rows * self.pitch

    @property
    def shared_nbytes(self) -> int:
        """Shared memory of a block."""
        return 2 * self.filter_elements + 4 * self.copy_words * self.shape.copies

    @property
    def _constants(self) -> dict[str, int]:
        shape, tile = self.shape, self.tile
        return {
            "CHANNELS": shape.channels,
            "OUTPUTS": shape.outputs,
            "KERNEL_HEIGHT": shape.kernel[0],
            "KERNEL_WIDTH": shape.kernel[1],
            "STRIDE_HEIGHT": shape.strides[0],
            "STRIDE_WIDTH": shape.strides[1],
            "PAD_TOP": shape.pads[0],
            "ALIGNED_PAD": shape.aligned_pad,
            "LEAD": shape.lead,
            "PAIRS_PER_ROW": shape.pairs_per_row,
            "PAIRS": shape.pairs,
            "STEPS": shape.steps,
            "ACROSS": tile.across,
            "ROWS": tile.rows,
            "PER_WARP": tile.per_warp,
            "GROUPS": tile.groups,
            "PASSES": self.passes,
            "PATCH_ROWS": self.patch_rows,
            "PITCH": self.pitch,
            "COPY_WORDS": self.copy_words,
            "SKIPPED": self.skipped,
            "FILTER_VECTORS": self.filter_elements // 8,
            "THREADS": 32 * tile.warps,
            "V": self.vector,
        }

    def kernel(self, sizes: Sizes) -> DeviceKernel:
        """The kernel's text for these sizes."""
        shape, tile = self.shape, self.tile
        if tile.across * tile.rows % tile.per_warp:
            raise ValueError(f"{tile} leaves fragments without a warp")
        own = "\n".join(f"  constexpr int {n} = {v};" for n, v in self._constants.items())
        brain = self.dtype is DType.BFLOAT16
        body = fill(
            _HELPERS + _TEXT,
            {
                "FILL": _FILL_VECTORS if self.whole_vectors else _FILL_ELEMENTS,
                "SHIFT": _SHIFT if shape.copies == 2 else "",
                "HOISTED": self.ending.hoisted("channel", self.vector),
                "STORE": self.ending.store("total", "pixel", "channel", self.vector),
                "OPERANDS": self.ending.parameters,
                "PARAMETERS": sizes.parameters,
                "CONSTANTS": own + "\n" + sizes.constants,
                "THREADS": 32 * tile.warps,
                "KIND": "bf16" if brain else "f16",
                "BRAIN": "true" if brain else "false",
                "X": storage_type(self.dtype),
                "Y": storage_type(self.ending.out),
            },
        )
        source = PRELUDE + STORES + self.ending.functions(self.vector) + body
        return DeviceKernel(
            "nvrtc", "stem", source, 32 * tile.warps, self.shared_nbytes, waits=True
        )
