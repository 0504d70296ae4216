"""The text of the product split along k for Hopper; `engine.cuda.hopper_split` fills it in.

Upper-case names are macros that the configuration defines. A block holds its whole part of k in
shared memory, or a ring of stages that it goes through: slabs of 64 elements, in each the rows of
the weights, then those of the activations. Behind them lie the parts of the sums that other blocks
of the cluster send, then two barriers per slab, and one for what is sent.
"""

from __future__ import annotations

__all__ = ["BODY", "EXCHANGE", "SETTINGS"]

SETTINGS = r"""
#define BK 64
#define CLUSTER (SPLIT * SHARE)
#define RING (STAGES < SLABS)
#define THREADS (GROUPS * 128 + (RING ? 32 : 0))
/* Who loads: threads of the multiplying warps, or one of a warp that does nothing else. */
#define LOADS_W (RING ? GROUPS * 128 : 0)
#define LOADS_X (RING ? GROUPS * 128 : 32)
#define WARPS (GROUPS * 4)
#define COLUMNS (SWAPPED ? PIXELS : FEATURES) /* of a warpgroup's product */
#define F_NBYTES (FEATURES * 128)
#define SLAB_NBYTES (F_NBYTES + PIXELS * 128)
/* A unit is what a warp holds of eight columns: 16 rows x 8, four values per lane. */
#define WARP_UNITS (COLUMNS / 8)
#define UNITS (WARPS * WARP_UNITS)
#define STEPS (BLOCKS * TAPS) /* of k, a slab each */
#define SLABS ((STEPS + SPLIT - 1) / SPLIT)
#define OWN ((UNITS + SPLIT - 1) / SPLIT)
#define PARTS_NBYTES (SPLIT > 1 ? OWN * SPLIT * 512 : 0)
#ifdef __CUDACC__
#define EF_THREAD ((int)threadIdx.x)
#define EF_BLOCK ((int)blockIdx.x)
#else
#define EF_THREAD ((int)threadIdx.x % THREADS)
#define EF_BLOCK ((int)blockIdx.x * CLUSTER + (int)threadIdx.x / THREADS)
#endif
"""

#: Sums on their way through the memory of a cluster, and where results lie.
EXCHANGE = r"""
#ifdef __CUDACC__
/* What was made visible to the cluster before is the barriers alone, by a fence of its own. */
EF_FUNCTION void ef_cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
EF_FUNCTION void ef_cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
/* Four values to the same place in the memory of a block of the cluster, where their bytes count
   at the barrier of the same place. */
EF_FUNCTION void ef_send(uint32_t to, uint32_t barrier, int block, const float *v) {
  asm volatile("{ .reg .b32 there, counts; mapa.shared::cluster.u32 there, %0, %2;"
      " mapa.shared::cluster.u32 counts, %1, %2;"
      " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32"
      " [there], {%3, %4, %5, %6}, [counts]; }"
      :: "r"(to), "r"(barrier), "r"(block), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
      : "memory"); }
/* Waits for what blocks of the cluster send to a new barrier. */
EF_FUNCTION void ef_await_sent(uint32_t barrier) {
  uint32_t done;
  do {
    asm volatile("{ .reg .pred p;"
        " mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;"
        " selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier) : "memory");
  } while (!done); }
/* A box of images, rows, columns and channels for every block of the cluster in a mask. */
EF_FUNCTION void ef_load_pixels_all(uint32_t to, const ef_map *map, int image, int row, int column,
                                    int channel, uint32_t barrier, uint16_t mask) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4, %5}], [%6], %7;"
      :: "r"(to), "l"(map), "r"(channel), "r"(column), "r"(row), "r"(image), "r"(barrier),
         "h"(mask) : "memory"); }
EF_FUNCTION void ef_receive(uint32_t from, float (&v)[4]) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]) : "r"(from) : "memory"); }
#else
EF_FUNCTION void ef_cluster_arrive() {}
EF_FUNCTION void ef_cluster_wait() { __syncthreads(); }
EF_FUNCTION void ef_send(uint32_t to, uint32_t barrier, int block, const float *v) {
  shim_send(to, barrier, block, v); }
EF_FUNCTION void ef_await_sent(uint32_t barrier) { shim_await(barrier, 0); }
EF_FUNCTION void ef_load_pixels_all(uint32_t to, const ef_map *map, int image, int row, int column,
                                    int channel, uint32_t barrier, uint16_t mask) {
  shim_tma_load(to, map, image, row, column, channel, barrier, mask); }
EF_FUNCTION void ef_receive(uint32_t from, float (&v)[4]) { memcpy(v, shim_at(from), 16); }
#endif
EF_FUNCTION int ef_least(int a, int b) { return a < b ? a : b; }
/* Two neighbours of 16 bits, the first in the low half; what lies past the end is zero. `at` is
   even where words are aligned. */
EF_FUNCTION uint32_t ef_neighbours(const uint16_t *p, int left, bool words) {
  if (words && left > 1) return *(const uint32_t *)p;
  uint32_t found = left > 0 ? p[0] : 0;
  return left > 1 ? found | (uint32_t)p[1] << 16 : found; }
EF_FUNCTION void ef_put(uint16_t *p, int left, bool words, uint32_t word) {
  if (words && left > 1) *(uint32_t *)p = word;
  else {
    if (left > 0) p[0] = (uint16_t)word;
    if (left > 1) p[1] = (uint16_t)(word >> 16);
  } }
/* A unit of a product of weights by activations: lane l holds features l / 4 and l / 4 + 8 of
   pixels 2 (l % 4) and the next. Afterwards it holds features 2 (l % 4) and the next, and these
   plus 8, of pixel l / 4. */
EF_FUNCTION void ef_turn(float (&v)[4], int lane) {
  const int from = lane % 4 * 8 + lane / 8;
  const bool odd = lane / 4 % 2;
  float found[4];
  #pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int source = from + i % 2 * 4;
    const float even_pixel = __shfl_sync(0xffffffffu, v[i / 2 * 2], source);
    const float odd_pixel = __shfl_sync(0xffffffffu, v[i / 2 * 2 + 1], source);
    found[i] = odd ? odd_pixel : even_pixel;
  }
  for (int i = 0; i < 4; ++i) v[i] = found[i]; }

/* Where a tile begins, and the tensor that it is a part of. */
#if IMAGES
struct ef_spot { int image, high, wide, feature, images, height, width; };
/* The number of a tile's pixel among those of the result, or -1 outside of it. */
EF_FUNCTION int ef_row(const ef_spot &at, int pixel) {
  const int n = pixel / (TH * TW), inside = pixel - n * (TH * TW), h = inside / TW;
  const int image = at.image + n, high = at.high + h, wide = at.wide + inside - h * TW;
  const bool is = pixel < TN * TH * TW && image < at.images && high < at.height && wide < at.width;
  return is ? (image * at.height + high) * at.width + wide : -1; }
EF_FUNCTION ef_spot ef_placed(int box, int feature, int images, int height, int width) {
  const int tiles_h = (height + TH - 1) / TH, tiles_w = (width + TW - 1) / TW;
  const int row = box / tiles_w, image = row / tiles_h;
  return {image * TN, (row - image * tiles_h) * TH, (box - row * tiles_w) * TW,
          feature, images, height, width}; }
EF_FUNCTION void ef_load_x(uint32_t to, const ef_map *x, const ef_spot &at, int step,
                           uint32_t barrier, uint16_t mask) {
  const int tap = step / BLOCKS, r = tap / TAPS_W, s = tap - r * TAPS_W;
  const int high = at.high * STRIDE_H + r * DILATION_H - PAD_H;
  const int wide = at.wide * STRIDE_W + s * DILATION_W - PAD_W;
  const int channel = (step - tap * BLOCKS) * BK;
#if SHARE > 1
  ef_load_pixels_all(to, x, at.image, high, wide, channel, barrier, mask);
#else
  ef_load_pixels(to, x, at.image, high, wide, channel, barrier);
#endif
}
EF_FUNCTION int ef_column_of_w(int step, int K) {
  const int tap = step / BLOCKS;
  return tap * K + (step - tap * BLOCKS) * BK; }
#else
struct ef_spot { int pixel, feature, pixels; };
EF_FUNCTION int ef_row(const ef_spot &at, int pixel) {
  return pixel < BOX && at.pixel + pixel < at.pixels ? at.pixel + pixel : -1; }
EF_FUNCTION ef_spot ef_placed(int box, int feature, int pixels) {
  return {box * BOX, feature, pixels}; }
EF_FUNCTION void ef_load_x(uint32_t to, const ef_map *x, const ef_spot &at, int step,
                           uint32_t barrier, uint16_t mask) {
#if SHARE > 1
  ef_load_all(to, x, at.pixel, step * BK, barrier, mask);
#else
  ef_load(to, x, at.pixel, step * BK, barrier);
#endif
}
EF_FUNCTION int ef_column_of_w(int step, int K) { return step * BK; }
#endif
"""

BODY = r"""
extern "C" __global__ void DIMENSIONS __launch_bounds__(THREADS, 1) hopper_split(@PARAMETERS@) {
    extern __shared__ __align__(1024) unsigned char ef_dynamic[];
    // Neighbours in a cluster have tiles that share pixels; those with the same tile share k.
    const int rank = CLUSTER > 1 ? ef_cluster_rank() : 0, part = rank / SHARE, mate = rank % SHARE;
#ifdef __CUDACC__
    const uint32_t slabs = (ef_shared_address(ef_dynamic) + 1023u) & ~1023u;
#else
    const uint32_t slabs = ef_shared_address(ef_dynamic) + shim_base(rank);
#endif
    const uint32_t parts = slabs + STAGES * SLAB_NBYTES, full = parts + PARTS_NBYTES;
    const uint32_t empty = full + 8 * STAGES, sent = empty + 8 * STAGES;
    const int warp = __shfl_sync(0xffffffffu, EF_THREAD / 32, 0), lane = EF_THREAD % 32;
    const ef_spot at = ef_placed((int)blockIdx.y, (EF_BLOCK / CLUSTER * SHARE + mate) * FEATURES,
                                 @EXTENT@);
    // The steps of k of this block.
    const int begin = STEPS * part / SPLIT;
    const int count = STEPS % SPLIT ? STEPS * (part + 1) / SPLIT - begin : SLABS;
    auto load_w = [&](int i, int stage) {
        ef_expect(full + 8 * stage, F_NBYTES + BOX * 128);
        ef_load(slabs + stage * SLAB_NBYTES, &w, at.feature, ef_column_of_w(begin + i, K),
                full + 8 * stage);
    };
    auto load_weights = [&]() {
        #pragma unroll
        for (int i = 0; i < STAGES; ++i)
            if (i < count) load_w(i, i);
    };
    // Blocks that share pixels load them in turn, each for all of them.
    const uint16_t mask = (uint16_t)(((1 << SHARE) - 1) << part * SHARE);
    auto load_x = [&](int i, int stage) {
        if (i % SHARE == mate)
            ef_load_x(slabs + stage * SLAB_NBYTES + F_NBYTES, &x, at, begin + i, full + 8 * stage,
                      mask);
    };
    if (EF_THREAD == LOADS_W) {
        ef_prefetch(&w);
        #pragma unroll
        for (int i = 0; i < STAGES; ++i) {
            ef_barrier_init(full + 8 * i, 1);
            if (RING) ef_barrier_init(empty + 8 * i, WARPS * SHARE);
        }
        if (SPLIT > 1) ef_barrier_init(sent, 1);
        ef_fence_barriers();
        const int own = ef_least(OWN, UNITS - part * OWN);
        if (SPLIT > 1 && own > 0) ef_expect(sent, own * (SPLIT * 512));
    }
    // Others write to this block only after it has begun.
    if (CLUSTER > 1) ef_cluster_arrive();
    // Constant weights may be asked for before earlier kernels have ended.
    if (CONSTANT && EF_THREAD == LOADS_W) load_weights();
    if (EF_THREAD == 32) ef_prefetch(&x);
    // The next kernel may begin as soon as there is room beside this one: it waits for the end of
    // this one, which waits for the end of those before.
    ef_launch_dependents();
    __syncthreads();
    ef_wait();
    if (!CONSTANT && EF_THREAD == LOADS_W) load_weights();
    if (SHARE > 1 || (RING && CLUSTER > 1)) ef_cluster_wait();
    if (EF_THREAD == LOADS_X) {
        #pragma unroll
        for (int i = 0; i < STAGES; ++i)
            if (i < count) load_x(i, i);
    }
#if RING
    if (warp >= WARPS) {
        if (lane == 0) {
            int stage = 0;
            uint32_t phase = 0;
            for (int i = STAGES; i < count; ++i) {
                ef_await(empty + 8 * stage, phase);
                load_w(i, stage);
                load_x(i, stage);
                if (++stage == STAGES) { stage = 0; phase ^= 1; }
            }
        }
        return;
    }
#endif

    // Operands of the results that this block will finish.
@HELD@
    auto ask = [&](int unit, int u) {
        const int from = unit / WARP_UNITS, c = unit - from * WARP_UNITS;
        #pragma unroll
        for (int q = 0; q < 2; ++q) {
@PLACE@
@ASK@
        }
    };
    if (HELD > 0) {
        #pragma unroll
        for (int u = 0; u < HELD; ++u) {
            const int mine = warp + u * WARPS;
            if (mine < OWN && part * OWN + mine < UNITS) ask(part * OWN + mine, u);
        }
    }

    __syncwarp();  // products are of whole warps
    float sums[COLUMNS / 2];
    const uint32_t group = warp / 4 * 8192;
    int stage = 0, before = 0;
    uint32_t phase = 0;
    for (int i = 0; i < count; ++i) {
        ef_await(full + 8 * stage, phase);
        const uint32_t weights = slabs + stage * SLAB_NBYTES, pixels = weights + F_NBYTES;
        const uint64_t left = ef_descriptor((SWAPPED ? weights : pixels) + group);
        const uint64_t right = ef_descriptor(SWAPPED ? pixels : weights);
        ef_hold(sums);
        ef_wgmma_begin();
        #pragma unroll
        for (int k = 0; k < 4; ++k) ef_wgmma(sums, left + k * 2, right + k * 2, (i | k) != 0);
        ef_wgmma_commit();
        ef_hold(sums);
        ef_wgmma_wait<1>();
#if RING
        // The stage before this one is free in this block; whoever loads into it is told.
        if (i > 0 && i - 1 + STAGES < count) {
#if SHARE > 1
            if (lane < SHARE) ef_arrive_at(empty + 8 * before, part * SHARE + lane);
#else
            if (lane == 0) ef_arrive(empty + 8 * before);
#endif
        }
        before = stage;
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
#else
        ++stage;
#endif
    }
    ef_wgmma_wait<0>();
    ef_hold(sums);

    // The results of a unit; `u` is where its operands are held.
    auto finish = [&](int unit, int u, float (&sum4)[4]) {
        if (SWAPPED) ef_turn(sum4, lane);
        const int from = unit / WARP_UNITS, c = unit - from * WARP_UNITS;
        if (HELD == 0) {
            u = 0;
            ask(unit, 0);
        }
        #pragma unroll
        for (int q = 0; q < 2; ++q) {
@PLACE@
            const float *sum = sum4 + 2 * q;
            if (row < 0 || left < 1) continue;
@RESULT@
        }
    };
#if SPLIT > 1
    if (SHARE == 1 && !RING) ef_cluster_wait();
    #pragma unroll
    for (int c = 0; c < WARP_UNITS; ++c) {
        const int unit = warp * WARP_UNITS + c, owner = unit / OWN;
        const uint32_t slot = (unit - owner * OWN) * SPLIT + part;
        ef_send(parts + (slot * 32 + lane) * 16, sent, owner * SHARE + mate, sums + c * 4);
    }
    if (part * OWN >= UNITS) return;
    ef_await_sent(sent);
    #pragma unroll
    for (int u = 0; u < (OWN + WARPS - 1) / WARPS; ++u) {
        const int mine = warp + u * WARPS, unit = part * OWN + mine;
        if (mine >= OWN || unit >= UNITS) break;
        float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        #pragma unroll
        for (int s = 0; s < SPLIT; ++s) {
            float values[4];
            ef_receive(parts + ((mine * SPLIT + s) * 32 + lane) * 16, values);
            for (int i = 0; i < 4; ++i) total[i] += values[i];
        }
        finish(unit, u, total);
    }
#else
    #pragma unroll
    for (int c = 0; c < WARP_UNITS; ++c) {
        float total[4] = {sums[c * 4], sums[c * 4 + 1], sums[c * 4 + 2], sums[c * 4 + 3]};
        finish(warp * WARP_UNITS + c, 0, total);
    }
#endif
}
"""
