"""The text of the attention for Hopper; `engine.cuda.hopper_attention` fills it in.

Upper-case names are macros that the configuration defines. Shared memory holds keys, then values
(rows of 128 bytes, heads over 64 elements in two parts), a tile of 64 queries per warpgroup,
buffers of 16 rows of the result per warp, the barriers, and what a mask adds to each key's scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.cuda.hopper_prelude import wgmma_sums
from engine.ir.types import DType

__all__ = ["BODY", "SETTINGS", "STAGE", "TILE", "attend_text", "product_text"]

SETTINGS = r"""
#define THREADS (128 * GROUPS)
#define PARTS ((HEAD + 63) / 64)
#define COLUMNS ((HEAD + 7) / 8 * 8)
#define PART_NBYTES (ROWS * 128)
#define TILE_NBYTES 8192
#define BUFFER_NBYTES 2048
#ifdef __CUDACC__
EF_FUNCTION float ef_two_to(float x) {
  float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
/* Waits for the threads of one warpgroup. */
EF_FUNCTION void ef_meet(int group) {
  asm volatile("bar.sync %0, 128;" :: "r"(group + 1) : "memory"); }
#else
EF_FUNCTION float ef_two_to(float x) { return exp2f(x); }
EF_FUNCTION void ef_meet(int group) { shim_barrier(group + 1, 128, 0); }
#endif
/* Reduces over the four lanes that share a row. */
EF_FUNCTION float ef_row_top(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2)); }
EF_FUNCTION float ef_row_total(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2); }
"""

_PRODUCT = r"""
/* d [64, {n}] (+)= a [64, 16] b [16, {n}]: a in registers, columns of b adjacent in memory. */
#ifdef __CUDACC__
EF_FUNCTION void ef_wgmma_rows(float (&d)[{count}], const uint32_t (&a)[4], uint64_t b, int add) {{
  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{add}, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{type}.{type} {{"
{places}
      "}}, {{%{a}, %{a1}, %{a2}, %{a3}}}, %{b}, p, 1, 1, 1; }}"
      : {outputs}
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)); }}
#else
EF_FUNCTION void ef_wgmma_rows(float (&d)[{count}], const uint32_t (&a)[4], uint64_t b, int add) {{
  shim_wgmma_rows(d, {n}, a, b, add, {bfloat16}); }}
#endif
/* Columns past 64 lie `apart` bytes further; rows of 128 bytes, eight after eight. */
EF_FUNCTION uint64_t ef_descriptor_of_rows(uint32_t address, uint32_t apart) {{
  return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(apart >> 4) << 16
      | (uint64_t)64 << 32 | (uint64_t)1 << 62; }}
"""


def product_text(dtype: DType, columns: int) -> str:
    """The function ``ef_wgmma_rows``; ``columns`` is a multiple of 8 up to 256.

    Layouts: PTX ISA, "wgmma: Register Fragments and Shared Memory Matrix Layouts". The second
    factor lies with its columns innermost, under the 128-byte swizzle: blocks of 64 columns of
    eight rows are 1024 bytes, the next eight rows follow, the leading offset parts blocks of
    columns.
    """
    count = columns // 2
    return _PRODUCT.format(
        **wgmma_sums(dtype, columns),
        a=count,
        a1=count + 1,
        a2=count + 2,
        a3=count + 3,
        b=count + 4,
        add=count + 5,
    )


_ATTEND = r"""
/* One tile of 64 queries over the first {n} keys. `ready` is called when queries have been read,
   `valued` before values are. */
template <class Ready, class Valued>
EF_FUNCTION void ef_attend_{n}(const ef_tile &at, uint32_t v, float (&o)[COLUMNS / 2],
                               float (&inverse)[2], Ready ready, Valued valued) {{
  const int left = WHOLE ? 64 : at.queries - at.first - at.warp * 16;
  const uint64_t values = ef_descriptor_of_rows(v, PART_NBYTES);
  float tops[2][2] = {{{{-INFINITY, -INFINITY}}, {{-INFINITY, -INFINITY}}}};
  float totals[2][2] = {{{{0.0f, 0.0f}}, {{0.0f, 0.0f}}}};
{body}
}}
"""


def attend_text(chunks: Sequence[int], edge: int) -> str:
    """The function ``ef_attend_N`` over the N keys of all chunks.

    Chunks of scores are separate registers, so that those of one are free when its probabilities
    are packed; all but the last are multiples of 16. From key ``edge`` on some query does not see
    every key.
    """
    starts = [sum(chunks[:place]) for place in range(len(chunks))]
    count = len(chunks)
    lines = [f"float s{place}[{size // 2}];" for place, size in enumerate(chunks)]
    lines += [f"uint32_t w{place}[{(size + 15) // 16}][4];" for place, size in enumerate(chunks)]
    lines += [f"ef_hold(s{place});" for place in range(count)]
    lines.append("ef_wgmma_begin();")
    lines += [f"ef_scores(at, s{place}, {start});" for place, start in enumerate(starts)]
    for place, start in enumerate(starts):
        lines.append(f"ef_wgmma_wait<{count - 1 - place}>();")
        lines.append(f"ef_hold(s{place});")
        lines += ["ready();"] if place == count - 1 else []
        lines.append(_by_halves("ef_tops", f", {start}, {edge}>(at, s{place}, tops)"))
    lines.append("const float shifts[2] = {ef_shift(tops[0]), ef_shift(tops[1])};")
    for place, start in enumerate(starts):
        # Not begun while the probabilities before are in the making: registers would not suffice.
        lines += [f"ef_hold(s{place});"] if place else []
        lines.append(_by_halves("ef_powers", f">(s{place}, shifts, w{place}, totals)"))
        lines += ["valued();", "ef_hold(o);"] if place == 0 else []
        fresh = "true" if place == 0 else "false"
        lines.append(f"ef_sums(o, w{place}, values + {start * 8}, {fresh});")
    lines += ["inverse[0] = ef_inverse(totals[0]);", "inverse[1] = ef_inverse(totals[1]);"]
    lines += ["ef_hold(o);", "ef_wgmma_wait<0>();", "ef_hold(o);"]
    return _ATTEND.format(n=sum(chunks), body="\n".join(f"  {line}" for line in lines))


def _by_halves(function: str, rest: str) -> str:
    """A call for the halves of this warp's rows that there are."""
    return (
        f"if (left > 8) {function}<2{rest};\n  else if (left > 0) {function}<1{rest};\n"
        f"  else {function}<0{rest};"
    )


# A thread holds rows lane / 4 and lane / 4 + 8 of its warp's 16 (half 0 and 1), and of every eight
# columns the two from lane % 4 * 2 on: sums 4 j + 2 half + 0 and 1 of eight columns j. Packed, the
# words of 16 columns are the first factor of the next product.
TILE = r"""
/* What is added to the scores of two neighbouring keys. */
struct __align__(8) ef_two { float x[2]; };
struct ef_tile { int first, warp, lane, queries, keys; uint32_t q, k; const ef_two *added; };
/* Scores of n keys from a place on. */
template <int n> EF_FUNCTION void ef_scores(const ef_tile &at, float (&s)[n], int start) {
  #pragma unroll
  for (int k = 0; k < (HEAD + 15) / 16; ++k)
    ef_wgmma(s, ef_descriptor(at.q + k / 4 * TILE_NBYTES) + k % 4 * 2,
             ef_descriptor(at.k + k / 4 * PART_NBYTES + start * 128) + k % 4 * 2, k != 0);
  ef_wgmma_commit();
}
/* The highest scores of rows of the first `halves`; keys that are not seen are marked. From the
   column `edge` on there are keys that some query of the tile does not see. */
template <int halves, int start, int edge, int n>
EF_FUNCTION void ef_tops(const ef_tile &at, float (&s)[n], float (&tops)[2][2]) {
  #pragma unroll
  for (int j = 0; j < n / 4; ++j) {
#if ADDED
    const ef_two added = at.added[(start + j * 8) / 2 + at.lane % 4];
#endif
    #pragma unroll
    for (int half = 0; half < halves; ++half) {
      const int row = at.first + at.warp * 16 + half * 8 + at.lane / 4;
      const int last = CAUSAL && (ADDED || row + PAST < at.keys) ? row + PAST : at.keys - 1;
      #pragma unroll
      for (int e = 0; e < 2; ++e) {
        float &x = s[j * 4 + half * 2 + e];
        const int column = start + j * 8 + at.lane % 4 * 2 + e;
#if ADDED
        x = fmaf(x, SCALE, added.x[e]);
#endif
        if ((CAUSAL || !ADDED) && start + j * 8 + 8 > edge) x = column <= last ? x : -INFINITY;
        tops[half][e] = fmaxf(tops[half][e], x);
      }
    }
  }
}
/* Exponentials of scores above the shifts, rounded to 16 bits, and their totals. Rows of other
   halves are zero. */
template <int halves, int n>
EF_FUNCTION void ef_powers(const float (&s)[n], const float (&shifts)[2],
                           uint32_t (&words)[(n + 7) / 8][4], float (&totals)[2][2]) {
  #pragma unroll
  for (int j = 0; j < (n + 7) / 8 * 2; ++j) {
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t &word = words[j / 2][j % 2 * 2 + half];
      word = 0;
      if (half >= halves || j >= n / 4) continue;
      float power[2];
      #pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float x = s[j * 4 + half * 2 + e];
        power[e] = ef_two_to(ADDED ? x - shifts[half] : fmaf(x, SCALE, -shifts[half]));
        totals[half][e] += power[e];
      }
      word = PACK(power[0], power[1]);
    }
  }
}
/* Adds the products of probabilities and values to the result; `fresh` begins with zero. */
template <int n> EF_FUNCTION void ef_sums(float (&o)[COLUMNS / 2], const uint32_t (&words)[n][4],
                                          uint64_t values, bool fresh) {
  ef_wgmma_begin();
  #pragma unroll
  for (int k = 0; k < n; ++k) ef_wgmma_rows(o, words[k], values + k * 128, !fresh || k != 0);
  ef_wgmma_commit();
}
/* Stores this warp's rows of the result from a buffer of shared memory. */
EF_FUNCTION void ef_store_tile(const ef_tile &at, const ef_map *y, int batch, int head,
                               const float (&o)[COLUMNS / 2], const float (&inverse)[2],
                               uint32_t buffer) {
  // Where this lane's row of a matrix lies, for stmatrix.
  const int row = at.lane % 8 + (at.lane / 8 & 1) * 8;
  const uint32_t spot = row * 128 + ((at.lane / 16 ^ (row & 7)) << 4);
  #pragma unroll
  for (int i = 0; i < PARTS * 4; ++i) {
    if (i * 16 >= COLUMNS) continue;
    uint32_t packed[4];
    #pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int sum = i * 8 + w * 2;
      packed[w] = 0;
      if (i * 16 + w / 2 * 8 < COLUMNS)
        packed[w] = PACK(o[sum] * inverse[w % 2], o[sum + 1] * inverse[w % 2]);
    }
    ef_store_matrices(buffer + i / 4 * BUFFER_NBYTES + (spot ^ i % 4 << 5), packed);
  }
  ef_publish();
  __syncwarp();
  if (at.lane == 0)
    for (int i = 0; i < PARTS; ++i)
      ef_store_pixels(y, batch, head, at.first + at.warp * 16, i * 64, buffer + i * BUFFER_NBYTES);
}
EF_FUNCTION float ef_shift(const float (&tops)[2]) {
  const float top = ef_row_top(fmaxf(tops[0], tops[1]));
  return !ADDED ? top * SCALE : top == -INFINITY ? 0.0f : top; }
EF_FUNCTION float ef_inverse(const float (&totals)[2]) {
  const float total = ef_row_total(totals[0] + totals[1]);
  return GUARDED && total == 0.0f ? 0.0f : 1.0f / total; }
"""

#: What a mask adds to the scores of each key, in shared memory.
STAGE = r"""#if ADDED
    // What is added is in powers of two; finite numbers stay so, for rows with nothing else.
    for (int i = (int)threadIdx.x; i < ADDED_KEYS; i += THREADS) {
        float x = -INFINITY;
        if (i < KEYS) x = @MASK@;
        const float y = x * 1.4426950408889634f;
        added[i / 2].x[i % 2] = x > -INFINITY && y < -3.0e38f ? -3.0e38f : y;
    }
    __syncthreads();
#endif
"""

BODY = r"""
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) hopper_attention(@PARAMETERS@) {
    extern __shared__ __align__(1024) unsigned char ef_dynamic[];
    const uint32_t start = ef_shared_address(ef_dynamic), base = (start + 1023u) & ~1023u;
    const uint32_t key_rows = base, value_rows = key_rows + PARTS * PART_NBYTES;
    const uint32_t tiles = value_rows + PARTS * PART_NBYTES;
    const uint32_t buffers = tiles + GROUPS * PARTS * TILE_NBYTES;
    const uint32_t barriers = buffers + GROUPS * 4 * PARTS * BUFFER_NBYTES;
    const uint32_t key_barrier = barriers, value_barrier = barriers + 8;
    const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0);
    const int lane = (int)threadIdx.x % 32, group = warp / 4;
    const int head = (int)blockIdx.y, batch = (int)blockIdx.z;
    const int begin = ((int)blockIdx.x * TILES * GROUPS + group) * 64;
    const uint32_t queries_at = tiles + group * PARTS * TILE_NBYTES;
    const uint32_t query_barrier = barriers + 16 + 8 * group;
    if (threadIdx.x == 0) {
        ef_prefetch(&q);
        ef_prefetch(&k);
        ef_prefetch(&v);
        for (int i = 0; i < 2 + GROUPS; ++i) ef_barrier_init(barriers + 8 * i, 1);
        ef_fence_barriers();
    }
    __syncthreads();
    auto load_queries = [&](int first) {
        ef_expect(query_barrier, PARTS * TILE_NBYTES);
        for (int i = 0; i < PARTS; ++i)
            ef_load_pixels(queries_at + i * TILE_NBYTES, &q, batch, head, first, i * 64,
                           query_barrier);
    };
    ef_wait();
    if (threadIdx.x % 128 == 0 && begin < QUERIES) load_queries(begin);
    if (threadIdx.x == 0) {
        ef_expect(key_barrier, PARTS * PART_NBYTES);
        for (int i = 0; i < PARTS; ++i)
            ef_load_pixels(key_rows + i * PART_NBYTES, &k, batch, head / SHARED, 0, i * 64,
                           key_barrier);
        ef_expect(value_barrier, PARTS * PART_NBYTES);
        for (int i = 0; i < PARTS; ++i)
            ef_load_pixels(value_rows + i * PART_NBYTES, &v, batch, head / SHARED, 0, i * 64,
                           value_barrier);
    }
    ef_launch_dependents();
    ef_two *const added = (ef_two *)(ef_dynamic + (barriers - start) + 64);
@STAGE@
    const uint32_t own = buffers + warp * PARTS * BUFFER_NBYTES;
    for (int turn = 0; turn < TILES; ++turn) {
        const int first = begin + turn * GROUPS * 64;
        if (first >= QUERIES) break;
        ef_await(query_barrier, turn & 1);
        ef_await(key_barrier, 0);
        float o[COLUMNS / 2], inverse[2];
        const ef_tile at = {first, warp % 4, lane, QUERIES, KEYS, queries_at, key_rows, added};
        auto ready = [&]() {
            const int next = first + GROUPS * 64;
            if (turn + 1 == TILES || next >= QUERIES) return;
            ef_meet(group);
            if (threadIdx.x % 128 == 0) load_queries(next);
            __syncwarp();
        };
        auto valued = [&]() { ef_await(value_barrier, 0); };
@ATTEND@
        if (first + warp % 4 * 16 >= QUERIES) continue;
        if (turn > 0) {
            if (lane == 0) ef_await_reads<0>();
            __syncwarp();
        }
        ef_store_tile(at, &y, batch, head, o, inverse, own);
    }
    if (lane == 0) ef_await_stores();
}
"""
