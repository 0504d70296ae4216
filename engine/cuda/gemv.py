"""Products of few rows with a large matrix: weights pass once, in 16-byte loads, at full bandwidth.

Eight columns of the result are the narrow side of the tensor cores' 16 x 8 x 16 product, up to
sixteen rows the wide one, so that one row costs no more instructions than sixteen. A lane's eight
neighbouring elements of a weight serve two products: a sum over k may be taken in any order, as
long as both operands have the same one, so fragments are loaded without shuffles or shared memory
(layouts: PTX ISA, "Matrix fragments for mma.m16n8k16"). The warps of a block share k between
them, as do ``splits`` blocks, the last of which adds what the others left, always in one order.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.c_expression import PRELUDE
from engine.cuda.contraction import SumStore, joined
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType

__all__ = ["MOST_ROWS", "Gemv", "gemv_kernel", "ranked_gemvs"]

#: Rows that one pass over the weights serves; more rows take more passes.
MOST_ROWS = 16
_COLUMNS = 8
_CHUNK = 32
_MNEMONICS = {DType.FLOAT16: "f16", DType.BFLOAT16: "bf16"}


@dataclass(frozen=True, slots=True)
class Gemv:
    """How the work is cut.

    ``warps`` of a block, ``tiles`` of eight columns per block, ``splits`` of k between blocks,
    ``unroll`` steps of 32 elements of k in flight per warp, ``rows`` of a pass (8 or 16).
    """

    warps: int
    tiles: int
    splits: int
    unroll: int
    rows: int

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.tiles * _COLUMNS

    def to_json(self) -> dict[str, int]:
        """The choice as JSON."""
        return {
            "warps": self.warps,
            "tiles": self.tiles,
            "splits": self.splits,
            "unroll": self.unroll,
            "rows": self.rows,
        }


_MULTIPLY = r"""
#ifdef __CUDACC__
EF_FUNCTION void ef_multiply(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                             uint32_t b0, uint32_t b1) {{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{type}.{type}.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1)); }}
#else
EF_FUNCTION void ef_multiply(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                             uint32_t b0, uint32_t b1) {{
  uint32_t a[4] = {{a0, a1, a2, a3}}, b[2] = {{b0, b1}};
  shim_mma_m16n8k16(d, a, b, {bfloat16}); }}
#endif
/* Eight neighbours, of which `left` exist; the others are zero. */
EF_FUNCTION uint4 ef_eight(const uint16_t *p, int left) {{
  uint32_t h[8];
  #pragma unroll
  for (int i = 0; i < 8; ++i) h[i] = i < left ? p[i] : 0;
  return make_uint4(h[0] | h[1] << 16, h[2] | h[3] << 16, h[4] | h[5] << 16, h[6] | h[7] << 16); }}
"""

_SOURCE = """{prelude}{multiply}
extern "C" __global__ void __launch_bounds__({threads}, 1) gemv({parameters}) {{
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, inner = threadIdx.x % 4;
    const int n0 = blockIdx.x * {columns}, first = (blockIdx.y * {warps} + warp) * 32;
    __shared__ float parts_of[{warps}][{values}];
    uint4 w[{unroll}][{tiles}];
    auto load_weights = [&](int base) {{
        #pragma unroll
        for (int u = 0; u < {unroll}; ++u) {{
            const int k = base + u * {step} + inner * 8;
            #pragma unroll
            for (int i = 0; i < {tiles}; ++i) {{
                const int n = n0 + i * 8 + group;
                w[u][i] = make_uint4(0, 0, 0, 0);
                if (k < K && n < N) w[u][i] = {load_b};
            }}
        }}
    }};
{begin}
    for (int m0 = 0; m0 < M; m0 += {rows}) {{
        float sums[{tiles}][4];
        #pragma unroll
        for (int i = 0; i < {tiles}; ++i)
            sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
        for (int base = first; base < K; base += {unroll} * {step}) {{
            if (m0 != 0 || base != first) load_weights(base);
            uint4 x[{unroll}], x8[{unroll}];
            #pragma unroll
            for (int u = 0; u < {unroll}; ++u) {{
                const int k = base + u * {step} + inner * 8, m = m0 + group;
                x[u] = x8[u] = make_uint4(0, 0, 0, 0);
                if (k < K && m < M) x[u] = {load_a};
{load_high}
            }}
            #pragma unroll
            for (int u = 0; u < {unroll}; ++u)
                #pragma unroll
                for (int i = 0; i < {tiles}; ++i) {{
                    ef_multiply(sums[i], x[u].x, x8[u].x, x[u].y, x8[u].y, w[u][i].x, w[u][i].y);
                    ef_multiply(sums[i], x[u].z, x8[u].z, x[u].w, x8[u].w, w[u][i].z, w[u][i].w);
                }}
        }}
        ef_launch_dependents();
        #pragma unroll
        for (int i = 0; i < {tiles}; ++i)
            #pragma unroll
            for (int half = 0; half < {rows}; half += 8) {{
                float *place = &parts_of[warp][(i * {rows} + group + half) * 8 + inner * 2];
                place[0] = sums[i][half / 4];
                place[1] = sums[i][half / 4 + 1];
            }}
        __syncthreads();
        for (int v = threadIdx.x; v < {values}; v += {threads}) {{
            const int row = m0 + v / 8 % {rows}, column = n0 + v / {eight_rows} * 8 + v % 8;
            float sum = 0.0f;
            #pragma unroll
            for (int i = 0; i < {warps}; ++i) sum += parts_of[i][v];
            if (row < M && column < N) {{
{store}
            }}
        }}
        __syncthreads();
    }}
{finish}
}}
"""

#: What blocks that share k do: the one that counts last adds all parts.
_FINISH = """    __shared__ unsigned before;
    __threadfence();
    __syncthreads();
    // Counting wraps round to zero, as the next launch wants it.
    if (threadIdx.x == 0) before = atomicInc(counters + blockIdx.x, {splits} - 1);
    __syncthreads();
    if (before != {splits} - 1) return;
    __threadfence();
    for (int v = threadIdx.x; v < M * {columns}; v += {threads}) {{
        const int row = v / {columns}, column = n0 + v % {columns};
        if (column >= N) continue;
        float sum = 0.0f;
        #pragma unroll
        for (int i = 0; i < {splits}; ++i)
            sum += __ldcg(parts + ((long long)i * M + row) * N + column);
{store}
    }}"""


def gemv_kernel(
    dtype: DType, store: SumStore, cut: Gemv, *, constant: bool, aligned_a: bool, aligned_b: bool
) -> DeviceKernel:
    """A [M, K] times the transpose of B [N, K], both of ``dtype`` (float16 or bfloat16).

    Parameters are a, b, those of `SumStore`, for several splits float32 parts [splits, M, N] and a
    counter per block of columns; M, N, K (int), the elements between rows of A (long) and the
    strides of `SumStore`. The grid is blocks of columns x splits. ``constant`` weights are asked
    for before earlier kernels have ended; rows of ``aligned`` operands begin on 16 bytes and hold
    whole groups of 8. Any M is right, up to `MOST_ROWS` fast.
    """
    split, values = cut.splits > 1, cut.tiles * cut.rows * 8
    parameters = ["const uint16_t *a", "const uint16_t *b"]
    parameters += store.pointers()
    parameters += ["float *parts", "unsigned *counters"] if split else []
    parameters += ["int M", "int N", "int K", "long long a_row"]
    parameters += [f"long long {name}" for name in store.strides()]
    stored = store.statements("sum", "row", "column")
    partial = ["parts[((long long)blockIdx.y * M + row) * N + column] = sum;"]
    begin = ["load_weights(first);", "ef_wait();"]
    threads = 32 * cut.warps
    finish = _FINISH.format(
        splits=cut.splits, columns=cut.columns, threads=threads, store=joined(stored, 8)
    )
    high = _load("a", "(m + 8) * a_row", aligned_a)
    source = _SOURCE.format(
        prelude=PRELUDE,
        multiply=_MULTIPLY.format(
            type=_MNEMONICS[dtype], bfloat16="true" if dtype is DType.BFLOAT16 else "false"
        ),
        parameters=", ".join(parameters),
        threads=threads,
        warps=cut.warps,
        tiles=cut.tiles,
        columns=cut.columns,
        unroll=cut.unroll,
        rows=cut.rows,
        eight_rows=8 * cut.rows,
        values=values,
        step=_CHUNK * cut.warps * cut.splits,
        begin=joined(begin if constant else begin[::-1], 4),
        load_a=_load("a", "m * a_row", aligned_a),
        load_b=_load("b", "(long long)n * K", aligned_b, constant=constant),
        load_high=joined([f"if (k < K && m + 8 < M) x8[u] = {high};"] if cut.rows > 8 else [], 16),
        store=joined(partial if split else stored, 16),
        finish=finish if split else "",
    )
    return DeviceKernel("nvrtc", "gemv", source, threads, waits=True)


def _load(name: str, row: str, aligned: bool, *, constant: bool = False) -> str:
    if not aligned:
        return f"ef_eight({name} + {row} + k, K - k)"
    place = f"(const uint4 *)({name} + {row} + k)"
    return f"__ldg({place})" if constant else f"*{place}"


def ranked_gemvs(m: int, n: int, k: int, multiprocessors: int, bandwidth: float) -> list[Gemv]:
    """Cuts worth measuring, the likeliest first; ``bandwidth`` in bytes per second."""
    rows = 8 if m <= 8 else 16
    found: list[tuple[float, int, Gemv]] = []
    for warps in (4, 8, 16):
        for tiles in (1, 2, 4):
            blocks = -(-n // (tiles * _COLUMNS))
            for splits in (1, 2, 4, 8):
                per_warp = -(-k // (_CHUNK * warps * splits))
                alone = warps == 4 and splits == 1
                if not alone and _CHUNK * warps * splits > max(k, _CHUNK):
                    continue
                if splits > 1 and blocks * splits > 4 * multiprocessors:
                    continue
                passes = -(-per_warp // max(1, 8 // tiles))
                cut = Gemv(warps, tiles, splits, -(-per_warp // passes), rows)
                cost = _seconds(cut, (m, n, k), blocks, passes, multiprocessors, bandwidth)
                found.append((cost, len(found), cut))
    return [cut for _, _, cut in sorted(found)]


def _seconds(
    cut: Gemv,
    sizes: tuple[int, int, int],
    blocks: int,
    passes: int,
    multiprocessors: int,
    bandwidth: float,
) -> float:
    """A guess: bytes over the bandwidth that so many loads in flight reach, waves, fixed costs."""
    m, n, k = sizes
    grid = blocks * cut.splits
    # Every block reads the rows again, out of the level-two cache.
    nbytes = 2.0 * n * k + 2.0 * blocks * min(m, cut.rows) * k / 3
    resident = min(multiprocessors * min(64 // cut.warps, 24), grid)
    in_flight = resident * cut.warps * cut.unroll * cut.tiles * 512.0
    reached = bandwidth * min(1.0, in_flight / (bandwidth * 0.8e-6))
    reached = min(reached, 1.4 * bandwidth * min(grid, multiprocessors) / multiprocessors)
    waves = grid / (multiprocessors * min(64 // cut.warps, 24))
    uneven = -(-waves // 1) / waves if waves > 1 else 1.0
    fixed = 0.5e-6 * passes + (1.2e-6 if cut.splits > 1 else 0.0) + 2e-8 * cut.warps
    return nbytes / reached * uneven + fixed
