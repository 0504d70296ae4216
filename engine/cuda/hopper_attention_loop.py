"""Attention on Hopper over any number of keys: blocks of them pass through a ring.

As `engine.cuda.hopper_attention`, with a running maximum and sum of each row (Milakov and
Gimelshein, "Online normalizer calculation for softmax"; Dao, "FlashAttention-2"). The warpgroups of
a block, with a tile of 64 queries each, read the same blocks of keys and values, which the tensor
memory accelerator puts into a ring of stages; the product with the values of one block is under way
while the scores of the next are computed. Parameters and grid are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from engine.cuda.hopper_attention import (
    HopperAttentionForm,
    attention_body,
    attention_head,
    attention_maps,
    attention_text,
)
from engine.cuda.hopper_prelude import wgmma_text
from engine.cuda.kernel import DeviceKernel
from engine.target import CudaTarget

__all__ = ["HopperLoopTile", "hopper_attention_loop_kernel", "ranked_loop_tiles"]

_QUERIES = 64
#: Candidates of one layer that are worth compiling.
_MOST = 5

_BODY = r"""
#define STAGE_NBYTES (2 * PARTS * PART_NBYTES)
/* One block of keys: scores, their powers of two above the running maximum, and the sums of blocks
   before in terms of it. `edge` is ROWS where every query sees every key of the block, else 0. */
template <int edge> EF_FUNCTION void ef_pass(const ef_tile &at, float (&s)[ROWS / 2],
                                             uint32_t (&words)[ROWS / 16][4],
                                             float (&tops)[2], float (&shifts)[2],
                                             float (&totals)[2][2], float (&o)[COLUMNS / 2]) {
  float higher[2][2] = {{tops[0], tops[0]}, {tops[1], tops[1]}};
  ef_tops<2, 0, edge>(at, s, higher);
  #pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float top = ef_row_top(fmaxf(higher[half][0], higher[half][1]));
    const float shift = !ADDED ? top * SCALE : top == -INFINITY ? 0.0f : top;
    const float shrink = tops[half] == -INFINITY ? 0.0f : ef_two_to(shifts[half] - shift);
    tops[half] = top;
    shifts[half] = shift;
    totals[half][0] *= shrink;
    totals[half][1] *= shrink;
    #pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) {
      o[j * 4 + half * 2] *= shrink;
      o[j * 4 + half * 2 + 1] *= shrink;
    }
  }
  ef_powers<2>(s, shifts, words, totals);
}
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
hopper_attention_loop(@PARAMETERS@) {
    extern __shared__ __align__(1024) unsigned char ef_dynamic[];
    const uint32_t start = ef_shared_address(ef_dynamic), ring = (start + 1023u) & ~1023u;
    const uint32_t tiles = ring + STAGES * STAGE_NBYTES;
    const uint32_t barriers = tiles + GROUPS * PARTS * TILE_NBYTES;
    const uint32_t full = barriers, empty = full + 8 * STAGES, asked = empty + 8 * STAGES;
    const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0);
    const int lane = (int)threadIdx.x % 32, group = warp / 4;
    const int head = (int)blockIdx.y, batch = (int)blockIdx.z;
    // The last queries see the most keys: they begin first.
    const int block = CAUSAL ? (int)gridDim.x - 1 - (int)blockIdx.x : (int)blockIdx.x;
    const int first = (block * GROUPS + group) * 64;
    const uint32_t queries_at = tiles + group * PARTS * TILE_NBYTES;
    if (threadIdx.x == 0) {
        ef_prefetch(&q);
        ef_prefetch(&k);
        ef_prefetch(&v);
        for (int i = 0; i < STAGES; ++i) {
            ef_barrier_init(full + 8 * i, 1);
            ef_barrier_init(empty + 8 * i, 4 * GROUPS);
        }
        for (int i = 0; i < GROUPS; ++i) ef_barrier_init(asked + 8 * i, 1);
        ef_fence_barriers();
    }
    __syncthreads();
    // Blocks of keys that some query of this block, and of this warpgroup, sees.
    auto passes = [&](int end) {
        const int seen = CAUSAL && end + PAST < KEYS ? end + PAST : KEYS;
        return (seen + ROWS - 1) / ROWS;
    };
    const int all = passes((block + 1) * GROUPS * 64);
    const int own = first < QUERIES ? passes(first + 64) : 0;
    auto load = [&](int pass) {
        const int stage = pass % STAGES;
        const uint32_t to = ring + stage * STAGE_NBYTES;
        ef_expect(full + 8 * stage, STAGE_NBYTES);
        for (int i = 0; i < PARTS; ++i) {
            ef_load_pixels(to + i * PART_NBYTES, &k, batch, head / SHARED, pass * ROWS, i * 64,
                           full + 8 * stage);
            ef_load_pixels(to + (PARTS + i) * PART_NBYTES, &v, batch, head / SHARED, pass * ROWS,
                           i * 64, full + 8 * stage);
        }
    };
    ef_wait();
    if (threadIdx.x % 128 == 0 && own > 0) {
        ef_expect(asked + 8 * group, PARTS * TILE_NBYTES);
        for (int i = 0; i < PARTS; ++i)
            ef_load_pixels(queries_at + i * TILE_NBYTES, &q, batch, head, first, i * 64,
                           asked + 8 * group);
    }
    if (threadIdx.x == 0)
        for (int pass = 0; pass < STAGES && pass < all; ++pass) load(pass);
    ef_launch_dependents();
    ef_two *const added = (ef_two *)(ef_dynamic + (barriers - start) + 128);
@STAGE@
    // Lets go of a stage that this warp has read; one thread fills those that nobody reads.
    auto release = [&](int pass) {
        if (pass >= 0 && lane == 0) ef_arrive(empty + 8 * (pass % STAGES));
        const int past = pass - LAG;
        if (threadIdx.x == 0 && past >= 0 && past + STAGES < all) {
            ef_await(empty + 8 * (past % STAGES), past / STAGES & 1);
            load(past + STAGES);
        }
        __syncwarp();
    };
    float o[COLUMNS / 2], tops[2] = {-INFINITY, -INFINITY}, shifts[2] = {0.0f, 0.0f};
    float totals[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
    float s[ROWS / 2];
    uint32_t words[ROWS / 16][4];
    #pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) o[i] = 0.0f;
    ef_tile at = {first, warp % 4, lane, QUERIES, KEYS, queries_at, 0, added};
    if (own > 0) ef_await(asked + 8 * group, 0);
    // Up to this key every query of the tile sees all.
    const int whole = ADDED && !CAUSAL ? 1 << 30
        : CAUSAL && first + PAST + 1 < KEYS ? first + PAST + 1 : KEYS;
    int pass = 0;
    for (; pass < own; ++pass) {
        const int stage = pass % STAGES;
        at.k = ring + stage * STAGE_NBYTES;
        ef_await(full + 8 * stage, pass / STAGES & 1);
        ef_hold(s);
        ef_wgmma_begin();
        ef_scores(at, s, 0);
        ef_hold(s);
        ef_wgmma_wait<0>();
        ef_hold(s);
        ef_hold(o);
        release(pass - 1);
        at.first = first - pass * ROWS;
        at.keys = KEYS - pass * ROWS;
        at.added = added + pass * ROWS / 2;
        if ((pass + 1) * ROWS <= whole) ef_pass<ROWS>(at, s, words, tops, shifts, totals, o);
        else ef_pass<0>(at, s, words, tops, shifts, totals, o);
        const uint32_t values = at.k + PARTS * PART_NBYTES;
        ef_hold(o);
        ef_sums(o, words, ef_descriptor_of_rows(values, PART_NBYTES), false);
        ef_hold(o);
    }
    ef_wgmma_wait<0>();
    ef_hold(o);
    for (; pass < all; ++pass) {
        ef_await(full + 8 * (pass % STAGES), pass / STAGES & 1);
        release(pass - 1);
    }
    at.first = first;
    const float inverse[2] = {ef_inverse(totals[0]), ef_inverse(totals[1])};
    // The tile of queries has been read by all warps of the group: the result takes its place.
    ef_meet(group);
    if (first + warp % 4 * 16 < QUERIES)
        ef_store_tile(at, &y, batch, head, o, inverse,
                      queries_at + warp % 4 * PARTS * BUFFER_NBYTES);
    if (lane == 0) ef_await_stores();
}
"""


@dataclass(frozen=True, slots=True)
class HopperLoopTile:
    """How an attention over many keys is cut.

    ``groups`` warpgroups of a block (1 to 4), blocks of ``columns`` keys (a multiple of 16 up to
    128), ``stages`` of the ring (2 to 4), ``resident`` blocks for which a multiprocessor shall have
    registers. With a mask, ``most_keys`` says for how many keys there is room, else it is 0.
    """

    groups: int
    columns: int
    stages: int
    resident: int
    most_keys: int = 0

    def to_json(self) -> dict[str, object]:
        """The choice as JSON."""
        return asdict(self)

    def shared_nbytes(self, form: HopperAttentionForm) -> int:
        """Dynamic shared memory, with room to begin at a multiple of 1024."""
        ring = self.stages * 2 * self.columns * 128
        return 1024 + form.parts * (ring + self.groups * 8192) + 128 + 4 * self.most_keys


def hopper_attention_loop_kernel(form: HopperAttentionForm, tile: HopperLoopTile) -> DeviceKernel:
    """The kernel; ``form.columns`` are the tile's. ValueError for what it cannot do."""
    if not 1 <= form.head_size <= 128 or form.scale <= 0 or form.past < 0:
        raise ValueError("heads have 1 to 128 elements, the scale is positive, the past is not < 0")
    if form.columns != tile.columns or tile.columns % 16 or not 16 <= tile.columns <= 128:
        raise ValueError(f"no blocks of {tile.columns} keys")
    if not 1 <= tile.groups <= 4 or not 2 <= tile.stages <= 4 or tile.resident < 1:
        raise ValueError(f"no block of {tile.groups} warpgroups with {tile.stages} stages")
    if form.mask is not None and (tile.most_keys < form.keys or tile.most_keys % tile.columns):
        raise ValueError(f"room for what a mask adds to {tile.most_keys} keys is not enough")
    named = {"GROUPS": tile.groups, "STAGES": tile.stages, "RESIDENT": tile.resident}
    # With two stages, one is filled again as soon as it has been read.
    named |= {"LAG": int(tile.stages > 2), "ADDED_KEYS": tile.most_keys}
    text = [attention_head(form, named), wgmma_text(form.dtype, tile.columns)]
    text += [attention_text(form), attention_body(form, _BODY)]
    return DeviceKernel(
        "nvrtc",
        "hopper_attention_loop",
        "".join(text),
        128 * tile.groups,
        shared_nbytes=tile.shared_nbytes(form),
        waits=True,
        maps=attention_maps(form),
    )


def ranked_loop_tiles(
    form: HopperAttentionForm, pairs: int, queries: int, keys: int, target: CudaTarget
) -> list[HopperLoopTile]:
    """Tiles that fit, the likeliest first; ``pairs`` are heads of all samples.

    A mask's room is the keys given, rounded up to the tile's.
    """
    found = {
        tile: _seconds(form, tile, pairs, queries, keys, target)
        for tile in _tiles(form, queries, keys, target)
    }
    return sorted(found, key=lambda tile: found[tile])[:_MOST]


def _tiles(
    form: HopperAttentionForm, queries: int, keys: int, target: CudaTarget
) -> Iterator[HopperLoopTile]:
    result = -(-form.head_size // 8) * 4
    # Blocks of one size that cover the keys with the least to spare.
    even = -(-keys // (-(-keys // 128) * 16)) * 16
    for groups in range(1, min(4, -(-queries // _QUERIES)) + 1):
        for columns in sorted({64, 128, even}):
            # Scores, probabilities, the result, and what else a thread needs.
            registers = columns * 3 // 4 + result + 36
            threads = 128 * groups
            room = [n for n in range(1, 5) if 65536 // (threads * n) // 8 * 8 >= registers]
            most_keys = -(-keys // columns) * columns if form.mask is not None else 0
            for resident in sorted({1, max(room)} if room else ()):
                fitting = [
                    tile
                    for stages in (4, 3, 2)
                    if (tile := HopperLoopTile(groups, columns, stages, resident, most_keys))
                    and resident * (tile.shared_nbytes(form) + 1024) <= target.shared_nbytes + 1024
                ]
                yield from fitting[:1]


def _seconds(
    form: HopperAttentionForm,
    tile: HopperLoopTile,
    pairs: int,
    queries: int,
    keys: int,
    target: CudaTarget,
) -> float:
    """A rough time: rounds of blocks, and in each the passes over blocks of keys.

    Per clock and multiprocessor: 4096 operations of products, 16 exponentials, 40 bytes of the
    level-two cache; 1.7 GHz.
    """
    blocks = -(-queries // (tile.groups * _QUERIES)) * pairs
    products = 4 * _QUERIES * tile.columns * form.head_size / 4096
    powers = _QUERIES * tile.columns / 16
    together = tile.groups * tile.resident
    nbytes = tile.resident * 4 * tile.columns * form.head_size
    one = max(products + powers + 400, together * max(products, powers), nbytes / 40)
    passes = -(-keys // tile.columns) * (0.55 if form.causal and queries > keys // 2 else 1.0)
    rounds = max(1.0, blocks / (target.multiprocessors * tile.resident))
    return 2e-6 + rounds * (1.5e-6 + passes * one / 1.7e9)
