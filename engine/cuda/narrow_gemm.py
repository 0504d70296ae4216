"""Products of many rows with a small matrix, as CUDA C: the matrix stays in registers.

Such a product moves more than it computes. Each warp keeps the whole matrix as fragments of B for
`mma.m16n8k16` (layouts: PTX ISA, "Matrix fragments for mma.m16n8k16") and walks over rows: it reads
fragments of A straight from memory and stores results from the accumulators. The order of k within
a product is free, and so is that of its columns: a thread takes 8 adjacent k of a row, and ends
with up to 8 adjacent columns of a row, so that both are single accesses of up to 16 bytes. The rows
of the next step may be read before those at hand are multiplied.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from engine.cuda.c_expression import PRELUDE, storage_type
from engine.cuda.kernel import DeviceKernel
from engine.cuda.windows import STORES, Ending, Sizes, fill
from engine.ir.types import DType

__all__ = ["NarrowGemm", "NarrowTile"]

#: Rows of a fragment.
FRAGMENT = 16
#: Elements of k that a quad of threads reads at once, and half as many at the end of a row.
CHUNK = 32
_KINDS = {DType.FLOAT16: ("f16", "0"), DType.BFLOAT16: ("bf16", "1")}


@dataclass(frozen=True, slots=True)
class NarrowTile:
    """Fragments of rows in a step of a warp, warps of a block; ``ahead`` reads the next step."""

    fragments: int
    warps: int
    ahead: bool

    @property
    def rows(self) -> int:
        """Rows that a block takes in a step."""
        return self.fragments * self.warps * FRAGMENT

    def to_json(self) -> dict[str, int | bool]:
        """The tile as a choice."""
        return asdict(self)


_MULTIPLY = r"""
#ifdef __CUDACC__
EF_FUNCTION void multiply(float *d, const uint32_t *a, const uint32_t *b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.@KIND@.@KIND@.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); }
#else
EF_FUNCTION void multiply(float *d, const uint32_t *a, const uint32_t *b) {
  shim_mma_m16n8k16(d, a, b, @BRAIN@); }
#endif
"""

_TEXT = r"""
/* The words of a row that this thread multiplies: 8 adjacent elements of every 32, zeros past the
   end; at the end 4 of 16. */
EF_FUNCTION void read_row(const @X@ *row, unsigned inner, uint32_t *w) {
#pragma unroll
  for (int c = 0; c < WIDE; ++c) {
    uint4 v = {0u, 0u, 0u, 0u};
    if (32 * (c + 1) <= DEPTH || 32 * c + 8 * (int)inner < DEPTH)
      v = *(const uint4 *)(row + 32 * c + 8 * inner);
    w[4 * c] = v.x; w[4 * c + 1] = v.y; w[4 * c + 2] = v.z; w[4 * c + 3] = v.w;
  }
  if (STEPS > 2 * WIDE) {
    uint2 v = {0u, 0u};
    if (32 * WIDE + 16 <= DEPTH || 32 * WIDE + 4 * (int)inner < DEPTH)
      v = *(const uint2 *)(row + 32 * WIDE + 4 * inner);
    w[2 * STEPS - 2] = v.x; w[2 * STEPS - 1] = v.y;
  }
}
EF_FUNCTION void read_rows(const @X@ *x, int64_t x_pixel, int first, int rows, unsigned inner,
                           uint32_t (*w)[2][2 * STEPS]) {
#pragma unroll
  for (int m = 0; m < FRAGMENTS; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int row = first + 16 * m + 8 * half;
      row = row < rows ? row : rows - 1;
      read_row(x + row * x_pixel, inner, w[m][half]);
    }
}
extern "C" __global__ void __launch_bounds__(@THREADS@) narrow_gemm(
    const @X@ *x, const @X@ *matrix@OPERANDS@, @Y@ *y@PARAMETERS@) {
@CONSTANTS@
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  const unsigned inner = (unsigned)lane & 3u, outer = (unsigned)lane >> 2;
  /* Column `outer` of tile i of a group is so placed that a thread ends with V adjacent ones. */
  uint32_t right[GROUPS * V / 2][2 * STEPS];
#pragma unroll
  for (int i = 0; i < GROUPS * V / 2; ++i) {
    const int column = i / (V / 2) * (4 * V) + (int)(outer / 2) * V
        + i % (V / 2) * 2 + (int)(outer & 1u);
    if (column < COLUMNS) read_row(matrix + column * DEPTH, inner, right[i]);
    else {
#pragma unroll
      for (int k = 0; k < 2 * STEPS; ++k) right[i][k] = 0u;
    }
  }
  const int step = (int)gridDim.x * (WARPS * FRAGMENTS * 16);
  int first = ((int)blockIdx.x * WARPS + warp) * (FRAGMENTS * 16) + (int)outer;
  ef_wait();
  ef_launch_dependents();
  uint32_t left[FRAGMENTS][2][2 * STEPS];
@BEFORE@
#pragma unroll 1
  for (; first - (int)outer < rows; first += step) {
@READ@
#pragma unroll
    for (int m = 0; m < FRAGMENTS; ++m)
#pragma unroll
      for (int group = 0; group < GROUPS; ++group) {
        float sums[V / 2][4];
#pragma unroll
        for (int i = 0; i < V / 2 * 4; ++i) (&sums[0][0])[i] = 0.0f;
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
          const uint32_t a[4] = {left[m][0][2 * k], left[m][1][2 * k],
                                 left[m][0][2 * k + 1], left[m][1][2 * k + 1]};
#pragma unroll
          for (int i = 0; i < V / 2; ++i)
            multiply(sums[i], a, right[group * (V / 2) + i] + 2 * k);
        }
        const int channel = group * (4 * V) + (int)inner * V;
        if (COLUMNS % (4 * V) == 0 || channel < COLUMNS) {
@HOISTED@
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = first + 16 * m + 8 * half;
            float total[V];
#pragma unroll
            for (int v = 0; v < V; ++v) total[v] = sums[v / 2][2 * half + v % 2];
            if (row < rows) {
              const int64_t pixel = row;
              @STORE@
            }
          }
        }
      }
@AFTER@
  }
}
"""

_READ = "    read_rows(x, x_pixel, first, rows, inner, left);"
_BEFORE = "  read_rows(x, x_pixel, first, rows, inner, left);"
_NEXT = """    uint32_t next[FRAGMENTS][2][2 * STEPS];
    /* `first + step` may be past the end, where the last row is read again. */
    read_rows(x, x_pixel, first + step, rows, inner, next);"""
_AFTER = """#pragma unroll
    for (int i = 0; i < FRAGMENTS * 2 * 2 * STEPS; ++i)
      (&left[0][0][0])[i] = (&next[0][0][0])[i];"""


@dataclass(frozen=True, slots=True)
class NarrowGemm:
    """x [rows, depth] times the transpose of a matrix [columns, depth], of one 16-bit ``dtype``.

    ``depth`` is a multiple of 8; ``vector`` (2, 4 or 8) divides ``columns`` and tells how many
    adjacent results a thread stores. Parameters: x, matrix, operands of the ending, y, then the
    open sizes of ``sizes``, which must name rows, x_pixel, y_pixel and the ending's pixel strides.
    """

    dtype: DType
    depth: int
    columns: int
    vector: int
    tile: NarrowTile
    ending: Ending

    @property
    def steps(self) -> int:
        """Products along k."""
        whole, rest = divmod(self.depth, CHUNK)
        return 2 * whole + (0 if rest == 0 else 1 if rest <= CHUNK // 2 else 2)

    @property
    def groups(self) -> int:
        """Groups of 4 * vector columns."""
        return -(-self.columns // (4 * self.vector))

    @property
    def registers(self) -> int:
        """About what a thread needs: the matrix, rows at hand and ahead, sums, the rest."""
        matrix = self.groups * self.vector * self.steps
        rows = 4 * self.steps * self.tile.fragments * (2 if self.tile.ahead else 1)
        operands = self.vector * sum(kind != "scalar" for kind in self.ending.kinds)
        return matrix + rows + 3 * self.vector + operands + 16

    def kernel(self, sizes: Sizes) -> DeviceKernel:
        """The kernel's text for these sizes."""
        if self.depth % 8 or self.columns % self.vector or self.vector not in (2, 4, 8):
            raise ValueError(
                f"a matrix of {self.columns} x {self.depth} has no vectors of {self.vector}"
            )
        kind, brain = _KINDS[self.dtype]
        threads, ahead = 32 * self.tile.warps, self.tile.ahead
        whole, rest = divmod(self.depth, CHUNK)
        numbers = {
            "DEPTH": self.depth,
            "COLUMNS": self.columns,
            "V": self.vector,
            "STEPS": self.steps,
            "WIDE": whole + (rest > CHUNK // 2),
            "GROUPS": self.groups,
            "FRAGMENTS": self.tile.fragments,
            "WARPS": self.tile.warps,
        }
        constants = "\n".join(f"constexpr int {name} = {value};" for name, value in numbers.items())
        ending = self.ending
        body = fill(
            _MULTIPLY + "\n" + constants + _TEXT,
            {
                "CONSTANTS": sizes.constants,
                "PARAMETERS": sizes.parameters,
                "BEFORE": _BEFORE if ahead else "",
                "READ": _NEXT if ahead else _READ,
                "AFTER": _AFTER if ahead else "",
                "HOISTED": ending.hoisted("channel", self.vector),
                "STORE": ending.store("total", "pixel", "channel", self.vector),
                "OPERANDS": ending.parameters,
                "THREADS": threads,
                "KIND": kind,
                "BRAIN": brain,
                "X": storage_type(self.dtype),
                "Y": storage_type(ending.out),
            },
        )
        source = PRELUDE + STORES + ending.functions(self.vector) + body
        return DeviceKernel("nvrtc", "narrow_gemm", source, threads, waits=True)
