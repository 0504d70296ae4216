"""The text of the matrix product for Hopper; `engine.cuda.hopper_gemm` fills it in.

Upper-case names are macros that the configuration defines. Of a block's warpgroups the first
loads, the others (GROUPS) compute. Shared memory holds a ring of stages (rows of A, then rows of B,
64 elements of k each), buffers of 16 rows x PART columns of the result for every computing warp,
and the barriers.
"""

from __future__ import annotations

__all__ = ["BODY", "HELPERS", "PLACES", "SETTINGS"]

SETTINGS = r"""
#define BK 64
#define THREADS (128 + 128 * GROUPS)
#define WARPS (4 * GROUPS)
#define GROUP_ROWS (PINGPONG ? BM : BM / GROUPS)
#define BLOCKS (GROUP_ROWS / 64)
#define A_NBYTES (BM * 128)
#define STAGE_NBYTES (A_NBYTES + BN * 128)
#define ROW_NBYTES (PART * 2)
#define BUFFER_NBYTES (16 * ROW_NBYTES)
#define PARTS (BLOCKS * (BN / PART))
/* Registers are shared out anew: of the 512 of four threads each begins with 128 where two blocks
   of two groups or one of four share them, with 168 in three groups. */
#define LOADING_REGISTERS (GROUPS == 1 ? 24 : GROUPS == 2 ? 40 : 32)
#define COMPUTING_REGISTERS (GROUPS == 3 ? 160 : 232)
#ifdef __CUDACC__
#define EF_MEMBER __device__ __forceinline__
#else
#define EF_MEMBER inline
#endif
#if IMAGES
#define OUTSIDE(row) false
#else
#define OUTSIDE(row) ((row) >= M)
#define TAPS 1
#endif
#define BOXES 0
#define ROWS 1
#define ELEMENTS 2
#ifdef __CUDACC__
#define EF_THREAD ((int)threadIdx.x)
#define EF_BLOCK ((int)blockIdx.x)
#define EF_GRID ((int)gridDim.x)
#else
#define EF_THREAD ((int)threadIdx.x % THREADS)
#define EF_BLOCK ((int)blockIdx.x * CLUSTER + (int)threadIdx.x / THREADS)
#define EF_GRID ((int)gridDim.x * CLUSTER)
#endif
"""

#: Where tiles lie. Rows of a product are rows of matrices, or pixels in boxes of TN images, TH rows
#: and TW columns (powers of two); a step of k is 64 channels of one tap of the filters then.
PLACES = r"""
struct ef_tiles { int units_m, tiles_n, tiles_h, tiles_w; };
struct ef_place { int row, column, high, wide; };
/* Neighbours in time share GROUP rows of tiles, so that both operands are found in the level-two
   cache. A tile past the last one begins outside of the tensor. */
EF_FUNCTION ef_place ef_placed(int unit, int rank, const ef_tiles &all) {
  const int per_group = GROUP * all.tiles_n, group = unit / per_group, first = group * GROUP;
  const int left = all.units_m - first, size = left < GROUP ? left : GROUP;
  const int inside = unit - group * per_group, column = inside / size;
  const int tile = (first + inside - column * size) * CLUSTER + rank;
#if IMAGES
  const int row = tile / all.tiles_w, image = row / all.tiles_h;
  return {image * TN, column * BN, (row - image * all.tiles_h) * TH,
          (tile - row * all.tiles_w) * TW};
#else
  return {tile * BM, column * BN, 0, 0};
#endif
}
#if IMAGES
EF_FUNCTION void ef_load_a(uint32_t to, const ef_map *a, const ef_place &at, int step, int blocks,
                           uint32_t barrier) {
  const int tap = step / blocks, r = tap / TAPS_W, s = tap - r * TAPS_W;
  ef_load_pixels(to, a, at.row, at.high * STRIDE_H + r * DILATION_H - PAD_H,
                 at.wide * STRIDE_W + s * DILATION_W - PAD_W, (step - tap * blocks) * BK,
                 barrier); }
EF_FUNCTION int ef_column_of_b(int step, int blocks, int K) {
  const int tap = step / blocks;
  return tap * K + (step - tap * blocks) * BK; }
EF_FUNCTION void ef_load_part(uint32_t to, const ef_map *map, const ef_place &at, int row,
                              int column, uint32_t barrier) {
  ef_load_pixels(to, map, at.row + row / (TH * TW), at.high + row / TW % TH, at.wide + row % TW,
                 at.column + column, barrier); }
EF_FUNCTION void ef_store_part(const ef_map *map, const ef_place &at, int row, int column,
                               uint32_t from) {
  ef_store_pixels(map, at.row + row / (TH * TW), at.high + row / TW % TH, at.wide + row % TW,
                  at.column + column, from); }
#else
EF_FUNCTION void ef_load_a(uint32_t to, const ef_map *a, const ef_place &at, int step, int blocks,
                           uint32_t barrier) { ef_load(to, a, at.row, step * BK, barrier); }
EF_FUNCTION int ef_column_of_b(int step, int blocks, int K) { return step * BK; }
EF_FUNCTION void ef_load_part(uint32_t to, const ef_map *map, const ef_place &at, int row,
                              int column, uint32_t barrier) {
  ef_load(to, map, at.row + row, at.column + column, barrier); }
EF_FUNCTION void ef_store_part(const ef_map *map, const ef_place &at, int row, int column,
                               uint32_t from) {
  ef_store(map, at.row + row, at.column + column, from); }
#endif
/* The place of a stage in the ring, and the parity of its current turn. */
struct ef_turn {
  int stage; uint32_t phase;
  EF_MEMBER void next() { if (++stage == STAGES) { stage = 0; phase ^= 1; } } };
"""

HELPERS = r"""
EF_FUNCTION int ef_least(int a, int b) { return a < b ? a : b; }
/* Two neighbours, the first in the low half; `column` is even, what lies past the end is zero. */
EF_FUNCTION uint32_t ef_pair(const uint16_t *p, int column, int count) {
  if (column + 1 < count) return *(const uint32_t *)(p + column);
  return column < count ? p[column] : 0; }
/* A warp writes 16 rows x 64 columns of a buffer to rows that begin anywhere, two elements a lane.
   Where a row begins at an odd element, a lane writes the second element of the lane before it and
   its first one, and the ends go by themselves. Every other row begins alike. */
EF_FUNCTION void ef_store_rows(uint16_t *y, long long pitch, uint32_t buffer, int lane) {
  const uint32_t own = buffer + lane * 4, other = buffer + (lane > 0 ? lane - 1 : 0) * 4;
  #pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint16_t *to = y + h * pitch;
    const int odd = (int)((uint64_t)to >> 1 & 1);
    const bool pairs = !odd || lane > 0, head = odd && lane == 0, end = odd && lane == 31;
    to += 2 * lane - odd;
    uint32_t words[8], before[8];
    #pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = 2 * i + h, turned = (r & 7) << 4;
      words[i] = ef_shared_word((own ^ turned) + r * 128);
      before[i] = ef_shared_word((other ^ turned) + r * 128); }
    #pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (pairs) *(uint32_t *)to = __funnelshift_l(before[i], words[i], 16 * odd);
      if (head) to[1] = (uint16_t)words[i];
      if (end) to[2] = (uint16_t)(words[i] >> 16);
      to += 2 * pitch; } } }
/* The same where the result ends after some rows or columns. */
EF_FUNCTION void ef_store_edge(uint16_t *y, long long pitch, uint32_t buffer, int rows, int columns,
                               int lane) {
  #pragma unroll 1
  for (int r = 0; r < ef_least(rows, 16); ++r)
    #pragma unroll 1
    for (int c = lane; c < ef_least(columns, 64); c += 32) {
      const uint32_t at = buffer + r * 128 + ((c / 8 ^ (r & 7)) << 4) + (c % 8 / 2) * 4;
      y[r * pitch + c] = (uint16_t)(ef_shared_word(at) >> (c % 2 * 16)); } }
"""

BODY = r"""
extern "C" __global__ void DIMENSIONS __launch_bounds__(THREADS, BLOCKS_OF_SM)
hopper_gemm(@PARAMETERS@) {
    extern __shared__ __align__(1024) unsigned char ef_dynamic[];
    const int rank = CLUSTER > 1 ? ef_cluster_rank() : 0;
#ifdef __CUDACC__
    const uint32_t ring = (ef_shared_address(ef_dynamic) + 1023u) & ~1023u;
#else
    const uint32_t ring = ef_shared_address(ef_dynamic) + shim_base(rank);
#endif
    const uint32_t buffers = ring + STAGES * STAGE_NBYTES;
    const uint32_t full = buffers + WARPS * BUFFERS * BUFFER_NBYTES, empty = full + 8 * STAGES;
    const uint32_t order = empty + 8 * STAGES, arrived = order + 16;
    const int warp = __shfl_sync(0xffffffffu, EF_THREAD / 32, 0), lane = EF_THREAD % 32;
    const int tiles_n = (N + BN - 1) / BN, blocks = (K + BK - 1) / BK, steps = blocks * TAPS;
#if IMAGES
    const ef_tiles tiles = {(tile_count + CLUSTER - 1) / CLUSTER, tiles_n, tiles_h, tiles_w};
#else
    const ef_tiles tiles = {(M + BM * CLUSTER - 1) / (BM * CLUSTER), tiles_n, 1, 1};
#endif
    const int units = tiles.units_m * tiles_n;
    const int first = EF_BLOCK / CLUSTER, stride = EF_GRID / CLUSTER;
    if (EF_THREAD == 0) {
        ef_prefetch(&a);
        ef_prefetch(&b);
#if STORE == BOXES
        ef_prefetch(&y_map);
#endif
#if STAGED
        ef_prefetch(&@STAGED@_map);
#endif
        for (int i = 0; i < STAGES; ++i) {
            ef_barrier_init(full + 8 * i, 1);
            ef_barrier_init(empty + 8 * i, (PINGPONG ? 4 : WARPS) * CLUSTER);
        }
        for (int i = 0; i < 2; ++i) ef_barrier_init(order + 8 * i, 4);
        for (int i = 0; i < WARPS * BUFFERS && STAGED; ++i) ef_barrier_init(arrived + 8 * i, 1);
        ef_fence_barriers();
    }
    if (CLUSTER > 1) ef_cluster_sync(); else __syncthreads();

    if (warp < 4) {
        ef_fewer_registers<LOADING_REGISTERS>();
        if (EF_THREAD == 0) {
            auto load_b = [&](int stage, int step, int column) {
                const uint32_t to = ring + stage * STAGE_NBYTES + A_NBYTES;
                ef_expect(full + 8 * stage, STAGE_NBYTES);
#if CLUSTER > 1
                const int part = rank * (BN / CLUSTER);
                ef_load_all(to + part * 128, &b, column + part, ef_column_of_b(step, blocks, K),
                            full + 8 * stage, (1 << CLUSTER) - 1);
#else
                ef_load(to, &b, column, ef_column_of_b(step, blocks, K), full + 8 * stage);
#endif
            };
            // A constant operand may be asked for before earlier kernels have ended.
            const ef_place begin = ef_placed(first, rank, tiles);
            int ahead = CONSTANT_B ? (steps < STAGES ? steps : STAGES) : 0;
            for (int step = 0; step < ahead; ++step) load_b(step, step, begin.column);
            ef_wait();
            ef_turn turn = {0, 0};
            for (int unit = first; unit < units; unit += stride) {
                if (unit + stride >= units) ef_launch_dependents();
                const ef_place at = ef_placed(unit, rank, tiles);
                for (int step = 0; step < steps; ++step) {
                    if (ahead > 0) --ahead;
                    else {
                        ef_await(empty + 8 * turn.stage, turn.phase ^ 1);
                        load_b(turn.stage, step, at.column);
                    }
                    ef_load_a(ring + turn.stage * STAGE_NBYTES, &a, at, step, blocks,
                              full + 8 * turn.stage);
                    turn.next();
                }
            }
        } else ef_wait();
    } else {
        ef_more_registers<COMPUTING_REGISTERS>();
        ef_wait();
        const int group = warp / 4 - 1, consumer = warp - 4;
        const int row_in_tile = (PINGPONG ? 0 : group * GROUP_ROWS) + warp % 4 * 16;
        const int apart = PINGPONG ? 2 * stride : stride;
        const int begin = PINGPONG ? first + group * stride : first;
        const uint32_t own = buffers + consumer * BUFFERS * BUFFER_NBYTES;
        // Where this lane's row of a matrix lies in a buffer, for ldmatrix and stmatrix.
        const int matrix_row = lane % 8 + (lane / 8 & 1) * 8;
        // Pieces of 16 bytes change places within a row by the number of its 128 bytes.
        const int turned = PART == 64 ? matrix_row & 7 : matrix_row >> 1 & 3;
        const uint32_t spot = matrix_row * ROW_NBYTES + ((lane / 16 ^ turned) << 4);
        const int inner_row = lane / 4, inner_column = lane % 4 * 2;
@SCALARS@
@NAMES@
#if STAGED
        // One lane asks for parts of the staged operand, up to BUFFERS parts before they are used.
        ef_place ahead = ef_placed(begin, rank, tiles);
        int ahead_unit = begin, ahead_part = 0;
        auto ask = [&](int slot) {
            if (ahead_unit >= units) return;
            const uint32_t barrier = arrived + 8 * (consumer * BUFFERS + slot);
            ef_expect(barrier, BUFFER_NBYTES);
            ef_load_part(own + slot * BUFFER_NBYTES, &@STAGED@_map, ahead,
                         row_in_tile + ahead_part / (BN / PART) * 64,
                         ahead_part % (BN / PART) * PART, barrier);
            if (++ahead_part == PARTS) {
                ahead_part = 0;
                ahead_unit += apart;
                if (ahead_unit < units) ahead = ef_placed(ahead_unit, rank, tiles);
            }
        };
        if (lane == 0)
            for (int i = 0; i < BUFFERS; ++i) ask(i);
        bool stored = false;
#endif
        int slot = 0;
        uint32_t slot_phase = 0;
        int tile = PINGPONG ? group : 0;
        for (int unit = begin; unit < units; unit += apart) {
            const ef_place at = ef_placed(unit, rank, tiles);
            ef_turn turn = {tile * steps % STAGES, (uint32_t)(tile * steps / STAGES) & 1};
            float sums[BLOCKS][BN / 2];
@EARLY@
            // The two groups take turns at the main loop; one stores while the other multiplies.
            if (PINGPONG) ef_await(order + 8 * group, (tile / 2 & 1) ^ (group == 0));
            auto release = [&](int stage) {
#if CLUSTER > 1
                if (lane < CLUSTER) ef_arrive_at(empty + 8 * stage, lane);
#else
                if (lane == 0) ef_arrive(empty + 8 * stage);
#endif
            };
            int before = 0;
            for (int step = 0; step < steps; ++step) {
                ef_await(full + 8 * turn.stage, turn.phase);
                const uint32_t stage = ring + turn.stage * STAGE_NBYTES;
                const uint32_t rows = stage + (PINGPONG ? 0 : group * GROUP_ROWS * 128);
                const uint64_t left = ef_descriptor(rows);
                const uint64_t right = ef_descriptor(stage + A_NBYTES);
                #pragma unroll
                for (int i = 0; i < BLOCKS; ++i) ef_hold(sums[i]);
                ef_wgmma_begin();
                #pragma unroll
                for (int k = 0; k < 4; ++k)
                    #pragma unroll
                    for (int i = 0; i < BLOCKS; ++i)
                        ef_wgmma(sums[i], left + i * 512 + k * 2, right + k * 2, (step | k) != 0);
                ef_wgmma_commit();
                #pragma unroll
                for (int i = 0; i < BLOCKS; ++i) ef_hold(sums[i]);
                ef_wgmma_wait<1>();
                if (step > 0) release(before);
                before = turn.stage;
                turn.next();
            }
            if (PINGPONG && lane == 0) ef_arrive(order + 8 * (group ^ 1));
            ef_wgmma_wait<0>();
            #pragma unroll
            for (int i = 0; i < BLOCKS; ++i) ef_hold(sums[i]);
            release(before);
            tile += PINGPONG ? 2 : 1;
@LATE@

            #pragma unroll
            for (int i = 0; i < BLOCKS; ++i) {
                const int row = at.row + row_in_tile + i * 64;
@ROWS@
                #pragma unroll
                for (int j = 0; j < BN / PART; ++j) {
                    const int column = at.column + j * PART;
                    if (!STAGED && (OUTSIDE(row) || column >= N)) continue;
                    const uint32_t buffer = own + slot * BUFFER_NBYTES;
@COLUMNS@
                    // All results of a buffer are made before the first is written: nothing then
                    // stands between their chains of instructions.
                    uint32_t words[PART / 16][4];
#if STAGED
                    uint32_t staged[PART / 16][4];
                    ef_await(arrived + 8 * (consumer * BUFFERS + slot), slot_phase);
                    #pragma unroll
                    for (int p = 0; p < PART / 16; ++p)
                        ef_load_matrices(staged[p], buffer + (spot ^ p << 5));
#endif
                    #pragma unroll
                    for (int p = 0; p < PART / 16; ++p)
                        #pragma unroll
                        for (int q = 0; q < 4; ++q) {
                            // Two columns of row q % 2, eight columns further for q / 2.
                            const int at_row = row + inner_row + q % 2 * 8;
                            const int at_column = column + p * 16 + q / 2 * 8 + inner_column;
                            const float *sum = sums[i] + j * (PART / 2) + p * 8 + q * 2;
@RESULT@
                        }
#if STORE == BOXES && !STAGED
                    if (lane == 0) ef_await_reads<BUFFERS - 1>();
                    __syncwarp();
#elif STORE == ROWS
                    __syncwarp();
#endif
#if STORE != ELEMENTS
                    #pragma unroll
                    for (int p = 0; p < PART / 16; ++p)
                        ef_store_matrices(buffer + (spot ^ p << 5), words[p]);
#endif
@STORE@
                    if (++slot == BUFFERS) { slot = 0; slot_phase ^= 1; }
                }
            }
        }
        // The memory of a block stays until stores have read it; the grid's end waits for the rest.
        if (STORE == BOXES && lane == 0) ef_await_reads<0>();
    }
    // A block stays while others of its cluster may write to its memory.
    if (CLUSTER > 1) ef_cluster_sync();
}
"""
