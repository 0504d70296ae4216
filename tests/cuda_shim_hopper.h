// Hopper's asynchronous hardware on a processor: barriers in shared memory, copies of boxes, wgmma.
//
// What is asynchronous may happen at once or as late as the text allows (`shim_late`): loads only
// when everybody waits, the newest first; products and stores only when somebody waits for them. A
// kernel must be right both ways. Blocks of a cluster are one block of fibers here, each with a part
// of shared memory. Layouts: PTX ISA, "wgmma: Register Fragments and Shared Memory Matrix Layouts",
// "Swizzling modes".
//
// What the hardware answers with a fault, or not at all, is refused: shared memory past a block's own,
// barriers that are not initialised or were written over, more bytes than a barrier counts, a block
// that ends while copies into or out of its memory are under way, and one that is reached after that.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#ifndef SHIM_BLOCK_THREADS
#define SHIM_BLOCK_THREADS 384
#define SHIM_BLOCK_SHARED (128u << 10)
#endif
// With late loads, `SHIM_LATE_OTHERS` lets those of other barriers than the one waited for be latest.
enum { SHIM_LATE_LOADS = 1, SHIM_LATE_PRODUCTS = 2, SHIM_LATE_STORES = 4, SHIM_LATE_OTHERS = 8 };
constexpr int SHIM_MOST_BYTES = (1 << 20) - 1;  // that a barrier counts
inline int shim_late;
// Of one block: its bytes, and how far they were used; threads that run per block of a cluster.
inline uint32_t shim_own_nbytes = SHIM_MAX_SHARED, shim_reached;
inline int shim_running[16];
// Barriers and what they count.
inline std::map<uint32_t, int> shim_barriers;
inline uint64_t shim_progress;

// Four axes, outermost first; a matrix has its rows and columns in the last two.
struct ShimMap {
    uint64_t base, strides[4];
    uint32_t sizes[4];
    uint16_t box[4], steps[4];
    uint32_t element_nbytes, swizzle;
};
struct ShimBarrierWord {
    uint16_t count : 15, phase : 1;
    int16_t pending;
    int32_t nbytes;
};
struct ShimCopy { ShimMap map; int at[4]; uint32_t shared, barrier; };
// With `left` the first factor is in registers, which are read when the product is; the second then
// has its columns innermost.
struct ShimProduct {
    float *d; int n; uint64_t a, b; int add; bool bfloat16; const unsigned *left = nullptr; };

struct ShimSend { float values[4]; uint32_t shared, barrier; };

inline std::vector<ShimCopy> shim_loads;
inline std::vector<ShimSend> shim_sends;
inline std::vector<ShimCopy> shim_stores[SHIM_MAX_THREADS];
// Groups that are not done yet; the last one is open.
inline std::vector<std::vector<ShimProduct>> shim_products[SHIM_MAX_THREADS];
inline bool shim_unpublished[SHIM_MAX_THREADS];

inline int shim_rank() { return shim_current / SHIM_BLOCK_THREADS; }
inline uint32_t shim_base(int rank) { return rank * SHIM_BLOCK_SHARED; }
inline uint32_t shim_shared_address(const void *p) {
    return (uint32_t)((const unsigned char *)p - shim_dynamic);
}
inline unsigned char *shim_at(uint32_t address, uint32_t nbytes = 1) {
    uint32_t end = address % SHIM_BLOCK_SHARED + nbytes;
    if (address >= SHIM_MAX_SHARED || end > shim_own_nbytes)
        shim_fail("an address outside of the block's shared memory"), shim_leave();
    if (!shim_running[address / SHIM_BLOCK_SHARED])
        shim_fail("an access to the memory of a block that has ended"), shim_leave();
    if (end > shim_reached) shim_reached = end;
    return shim_dynamic + address;
}
// Memory that is written as data: no barrier lies there.
inline void shim_no_barrier(uint32_t address, uint32_t nbytes) {
    auto next = shim_barriers.lower_bound(address < 7 ? 0 : address - 7);
    if (next != shim_barriers.end() && next->first < address + nbytes)
        shim_fail("data is written over a barrier"), shim_leave();
}
// Under a swizzle of 128 bytes three bits of the address change, under one of 64 bytes two.
inline uint32_t shim_swizzled(uint32_t address, uint32_t row = 128) {
    return address ^ (address >> 7 & (row / 16 - 1)) << 4;
}

// ---------------------------------------------------------------------------------------------
// Barriers
// ---------------------------------------------------------------------------------------------

inline ShimBarrierWord *shim_word(uint32_t barrier) {
    if (barrier % 8) shim_fail("a barrier that is not aligned"), shim_leave();
    ShimBarrierWord *word = (ShimBarrierWord *)shim_at(barrier, 8);
    auto known = shim_barriers.find(barrier);
    if (known == shim_barriers.end()) shim_fail("a barrier that is not initialised"), shim_leave();
    if (known->second != word->count) shim_fail("a barrier that was written over"), shim_leave();
    return word;
}
inline void shim_barrier_init(uint32_t barrier, int count) {
    ShimBarrierWord *word = (ShimBarrierWord *)shim_at(barrier, 8);
    if (count < 1 || !shim_barriers.emplace(barrier, count).second)
        shim_fail("a barrier that is initialised twice, or for nobody"), shim_leave();
    word->count = count, word->phase = 0, word->pending = count, word->nbytes = 0;
}
inline void shim_settle(ShimBarrierWord *word) {
    ++shim_progress;
    if (word->nbytes > SHIM_MOST_BYTES || word->nbytes < -SHIM_MOST_BYTES)
        shim_fail("more bytes than a barrier counts"), shim_leave();
    if (word->pending < 0) shim_fail("more arrivals at a barrier than it counts"), shim_leave();
    if (word->pending == 0 && word->nbytes == 0) word->phase ^= 1, word->pending = word->count;
}
inline uint32_t shim_elsewhere(uint32_t address, int block) {
    return block < 0 ? address : address - shim_base(shim_rank()) + shim_base(block);
}
inline void shim_arrive(uint32_t barrier, int block) {
    ShimBarrierWord *word = shim_word(shim_elsewhere(barrier, block));
    --word->pending;
    shim_settle(word);
}
inline void shim_expect(uint32_t barrier, int nbytes) {
    ShimBarrierWord *word = shim_word(barrier);
    word->nbytes += nbytes, --word->pending;
    shim_settle(word);
}

// ---------------------------------------------------------------------------------------------
// Copies of boxes
// ---------------------------------------------------------------------------------------------

inline void shim_box(const ShimCopy &copy, bool store) {
    const ShimMap &map = copy.map;
    uint32_t row = map.box[3] * map.element_nbytes;
    if (map.swizzle != row || (row != 128 && row != 64) || copy.shared % (row * 8))
        shim_fail("a box that the model of the hardware does not know"), shim_leave();
    if (!store) shim_no_barrier(copy.shared, row * map.box[0] * map.box[1] * map.box[2]);
    uint32_t elements = map.box[0] * map.box[1] * map.box[2] * map.box[3];
    for (uint32_t i = 0; i < elements; ++i) {
        bool inside = true;
        auto *memory = (unsigned char *)map.base;
        for (uint32_t axis = 4, rest = i; axis--; rest /= map.box[axis]) {
            int64_t at = copy.at[axis] + (int64_t)(rest % map.box[axis]) * map.steps[axis];
            inside &= at >= 0 && at < map.sizes[axis];
            memory += at * (int64_t)map.strides[axis];
        }
        unsigned char *shared = shim_at(shim_swizzled(copy.shared + i * map.element_nbytes, row),
                                        map.element_nbytes);
        if (store && inside) memcpy(memory, shared, map.element_nbytes);
        if (!store && inside) memcpy(shared, memory, map.element_nbytes);
        if (!store && !inside) memset(shared, 0, map.element_nbytes);
    }
}
inline uint32_t shim_box_nbytes(const ShimMap &map) {
    return map.box[0] * map.box[1] * map.box[2] * map.box[3] * map.element_nbytes;
}
inline void shim_finish_load(const ShimCopy &copy) {
    shim_box(copy, false);
    ShimBarrierWord *word = shim_word(copy.barrier);
    word->nbytes -= shim_box_nbytes(copy.map);
    shim_settle(word);
}
inline void shim_tma_load(uint32_t to, const void *map, int image, int high, int row, int column,
                          uint32_t barrier, unsigned mask) {
    ShimCopy copy = {{}, {image, high, row, column}, to, barrier};
    memcpy(&copy.map, map, sizeof copy.map);
    for (int block = 0; block < 16; ++block) {
        if (mask ? !(mask >> block & 1) : block) continue;
        ShimCopy one = copy;
        if (mask) {
            one.shared = shim_elsewhere(to, block);
            one.barrier = shim_elsewhere(barrier, block);
        }
        if (shim_late & SHIM_LATE_LOADS) shim_loads.push_back(one);
        else shim_finish_load(one);
    }
}
// st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32
inline void shim_finish_send(const ShimSend &send) {
    shim_no_barrier(send.shared, sizeof send.values);
    memcpy(shim_at(send.shared, sizeof send.values), send.values, sizeof send.values);
    ShimBarrierWord *word = shim_word(send.barrier);
    word->nbytes -= sizeof send.values;
    shim_settle(word);
}
inline void shim_send(uint32_t to, uint32_t barrier, int block, const float *values) {
    ShimSend send = {{values[0], values[1], values[2], values[3]},
                     shim_elsewhere(to, block), shim_elsewhere(barrier, block)};
    if (send.shared % 16) shim_fail("four values that are not aligned"), shim_leave();
    if (shim_late & SHIM_LATE_LOADS) shim_sends.push_back(send);
    else shim_finish_send(send);
}
inline void shim_await(uint32_t barrier, uint32_t parity) {
    uint64_t seen = shim_progress;
    for (int rounds = 0; shim_word(barrier)->phase == parity; ++rounds) {
        if (seen != shim_progress) seen = shim_progress, rounds = 0;
        if (rounds > 20 && !shim_sends.empty()) {
            for (; !shim_sends.empty(); shim_sends.pop_back()) shim_finish_send(shim_sends.back());
            continue;
        }
        if (rounds > 20 && !shim_loads.empty()) {
            size_t place = shim_loads.size();
            for (size_t i = place; i-- && shim_late & SHIM_LATE_OTHERS;)
                if (shim_loads[i].barrier == barrier) { place = i + 1; break; }
            ShimCopy copy = shim_loads[place - 1];
            shim_loads.erase(shim_loads.begin() + (place - 1));
            shim_finish_load(copy);
            continue;
        }
        if (rounds > 20000) shim_fail("deadlock: a thread waits at a barrier"), shim_leave();
        shim_yield();
    }
    ++shim_progress;
}
inline void shim_publish() { shim_unpublished[shim_current] = false; }
inline void shim_tma_store(const void *map, int image, int high, int row, int column,
                           uint32_t from) {
    for (int lane = 0; lane < 32; ++lane)
        if (shim_unpublished[(shim_current & ~31) + lane])
            shim_fail("a store of what was not made visible to it"), shim_leave();
    ShimCopy copy = {{}, {image, high, row, column}, from, 0};
    memcpy(&copy.map, map, sizeof copy.map);
    if (!(shim_late & SHIM_LATE_STORES)) shim_box(copy, true);
    shim_stores[shim_current].push_back(copy);
}
inline void shim_await_stores(int left) {
    auto &queue = shim_stores[shim_current];
    while ((int)queue.size() > left) {
        if (shim_late & SHIM_LATE_STORES) shim_box(queue.front(), true);
        queue.erase(queue.begin());
    }
}
// stmatrix.sync.aligned.m8n8.x4.shared.b16: `row` is this lane's address.
inline void shim_stmatrix(uint32_t row, const unsigned *words) {
    struct { uint32_t row; unsigned words[4]; } mine = {row, {words[0], words[1], words[2], words[3]}};
    decltype(mine) all[32];
    shim_gather(mine, all);
    shim_unpublished[shim_current] = true;
    int lane = shim_lane();
    shim_no_barrier(row, 16);
    auto *to = (unsigned short *)shim_at(row, 16);
    for (int column = 0; column < 8; ++column) {
        unsigned word = all[lane % 8 * 4 + column / 2].words[lane / 8];
        to[column] = (unsigned short)(word >> 16 * (column % 2));
    }
    __syncwarp();
}

// ---------------------------------------------------------------------------------------------
// Products
// ---------------------------------------------------------------------------------------------

inline float shim_value(unsigned short bits, bool bfloat16) {
    static float *table = [] {
        float *found = new float[2 << 16];
        for (int i = 0; i < 1 << 16; ++i) {
            found[i] = shim_half_to_float((unsigned short)i);
            found[(1 << 16) + i] = shim_bfloat16_to_float((unsigned short)i);
        }
        return found;
    }();
    return table[(bfloat16 ? 1 << 16 : 0) + bits];
}
inline float shim_factor(uint64_t descriptor, int row, int k, bool bfloat16) {
    uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4;
    uint32_t groups = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    uint32_t place = shim_swizzled(start + row / 8 * groups + row % 8 * 128 + k * 2);
    return shim_value(*(const unsigned short *)shim_at(place), bfloat16);
}
// A second factor with its columns innermost: 64 columns of eight rows of k, the next eight rows at
// the stride offset, the next 64 columns at the leading offset (PTX ISA, "Strides", MN-major).
inline float shim_turned_factor(uint64_t descriptor, int column, int k, bool bfloat16) {
    uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4;
    uint32_t leading = (uint32_t)(descriptor >> 16 & 0x3fff) << 4;
    uint32_t groups = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    if (start % 1024) shim_fail("a factor that begins inside of a block of eight rows"), shim_leave();
    uint32_t place = start + column / 64 * leading + k / 8 * groups + k % 8 * 128 + column % 64 * 2;
    return shim_value(*(const unsigned short *)shim_at(shim_swizzled(place)), bfloat16);
}
// Where the 16 numbers of one row lie in the registers of four lanes, as the sums do.
inline void shim_rows_of_lanes(const unsigned *mine, float (&left)[2][16], bool bfloat16) {
    struct { unsigned words[4]; } own = {{mine[0], mine[1], mine[2], mine[3]}};
    decltype(own) all[32];
    shim_gather(own, all);
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 16; ++k) {
            unsigned word = all[shim_lane() / 4 * 4 + k % 8 / 2].words[k / 8 * 2 + half];
            left[half][k] = shim_value((unsigned short)(word >> 16 * (k % 2)), bfloat16);
        }
}
inline void shim_multiply(const ShimProduct &product) {
    if ((!product.left && product.a >> 62 != 1) || product.b >> 62 != 1)
        shim_fail("a descriptor without the 128-byte swizzle"), shim_leave();
    int warp = shim_current % SHIM_BLOCK_THREADS / 32 % 4, lane = shim_lane();
    float left[2][16];
    if (product.left) shim_rows_of_lanes(product.left, left, product.bfloat16);
    for (int half = 0; half < 2 && !product.left; ++half)
        for (int k = 0; k < 16; ++k)
            left[half][k] = shim_factor(product.a, warp * 16 + lane / 4 + half * 8, k,
                                        product.bfloat16);
    for (int i = 0; i < product.n / 2; i += 4)
        for (int e = 0; e < 2; ++e) {
            float right[16];
            auto *factor = product.left ? shim_turned_factor : shim_factor;
            for (int k = 0; k < 16; ++k)
                right[k] = factor(product.b, i / 4 * 8 + lane % 4 * 2 + e, k, product.bfloat16);
            for (int half = 0; half < 2; ++half) {
                float &d = product.d[i + half * 2 + e];
                float sum = product.add ? d : 0.0f;
                for (int k = 0; k < 16; ++k) sum += left[half][k] * right[k];
                d = sum;
            }
        }
}
inline void shim_product(const ShimProduct &product) {
    if (!(shim_late & SHIM_LATE_PRODUCTS)) return shim_multiply(product);
    auto &groups = shim_products[shim_current];
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back(product);
}
inline void shim_wgmma(float *d, int n, uint64_t a, uint64_t b, int add, bool bfloat16) {
    shim_product({d, n, a, b, add, bfloat16});
}
inline void shim_wgmma_rows(float *d, int n, const unsigned *a, uint64_t b, int add,
                            bool bfloat16) {
    shim_product({d, n, 0, b, add, bfloat16, a});
}
inline void shim_wgmma_commit() {
    if (shim_late & SHIM_LATE_PRODUCTS) shim_products[shim_current].emplace_back();
}
inline void shim_wgmma_wait(int left) {
    auto &groups = shim_products[shim_current];
    while ((int)groups.size() > left + 1) {
        for (const ShimProduct &product : groups.front()) shim_multiply(product);
        groups.erase(groups.begin());
    }
    __syncwarp();  // whole warps execute these instructions
}

// ---------------------------------------------------------------------------------------------
// Ends
// ---------------------------------------------------------------------------------------------

// A thread has ended: nobody else waits for its stores and products, and copies into the memory of a
// block end before its last thread.
inline void shim_thread_ends() {
    int rank = shim_rank();
    if (!shim_stores[shim_current].empty()) shim_fail("stores that nobody waited for");
    for (auto &group : shim_products[shim_current])
        if (!group.empty()) shim_fail("products that nobody waited for");
    shim_products[shim_current].clear();
    if (--shim_running[rank]) return;
    auto here = [rank](uint32_t address) { return address / SHIM_BLOCK_SHARED == (uint32_t)rank; };
    for (const ShimCopy &copy : shim_loads)
        if (here(copy.shared)) shim_fail("loads that nobody waited for");
    for (const ShimSend &send : shim_sends)
        if (here(send.shared)) shim_fail("loads that nobody waited for");
    for (auto item = shim_barriers.begin(); item != shim_barriers.end();) {
        if (!here(item->first)) { ++item; continue; }
        if (((ShimBarrierWord *)(shim_dynamic + item->first))->nbytes)
            shim_fail("a barrier of a block that has ended expects bytes");
        item = shim_barriers.erase(item);
    }
}
inline void shim_thread_begins() {
    // The first thread of a block: those of its whole cluster are there.
    if (shim_alive == shim_count && !shim_running[shim_rank()])
        for (int i = 0; i < shim_count; ++i) ++shim_running[i / SHIM_BLOCK_THREADS];
}
inline void shim_forget(int late, uint64_t shared_nbytes, const unsigned *block) {
    int cluster = (int)(block[0] * block[1] * block[2]) / SHIM_BLOCK_THREADS;
    shim_late = late, shim_reached = 0;
    shim_own_nbytes = (uint32_t)shared_nbytes - shim_base(cluster > 1 ? cluster - 1 : 0);
    shim_loads.clear(), shim_sends.clear(), shim_barriers.clear();
    for (int &threads : shim_running) threads = 0;
    for (int i = 0; i < SHIM_MAX_THREADS; ++i) {
        shim_stores[i].clear(), shim_products[i].clear();
        shim_unpublished[i] = false;
    }
}
#define SHIM_EXPORT_HOPPER(kernel) \
    /* Bytes of shared memory from its beginning to the last that the run before used. */ \
    SHIM_PUBLIC uint32_t shim_shared_reached() { return shim_reached; } \
    SHIM_PUBLIC const char *shim_run_hopper(void **parameters, const unsigned *grid, \
                                           const unsigned *block, uint64_t shared_nbytes, \
                                           int backwards, int late) { \
        shim_forget(late | (backwards ? SHIM_LATE_OTHERS : 0), shared_nbytes, block); \
        return shim_grid( \
            [](void **p) { shim_thread_begins(), shim_call(kernel, p), shim_thread_ends(); }, \
            parameters, grid, block, shared_nbytes, backwards != 0); \
    }
