// CUDA C on a processor: the threads of a block are fibers that take turns, blocks follow each other.
//
// A fiber runs until it waits (__syncthreads, a warp's exchange) or ends. A block in which nobody can
// run is reported as a deadlock. Shared memory is poisoned before every block. What a generator puts
// into inline PTX it writes again in plain C++ where __CUDACC__ is not defined; helpers for that begin
// with shim_ (half conversion, warp gather, matrix fragments, named barriers).
#pragma once

#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#if !defined(__x86_64__) || defined(SHIM_UCONTEXT)
#define SHIM_PORTABLE 1
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#undef __noinline__
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(condition) ((void)0)
#define __builtin_assume_aligned(pointer, ...) (pointer)
// A section of its own: found and poisoned before every block. The host turns
// "extern __shared__ T name[];" into a pointer to shim_dynamic.
#define __shared__ static __attribute__((section("shim_shared"), aligned(16)))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---------------------------------------------------------------------------------------------
// Fibers
// ---------------------------------------------------------------------------------------------

enum ShimState { SHIM_READY, SHIM_BARRIER, SHIM_WARP, SHIM_DONE };

struct ShimFiber {
#ifdef SHIM_PORTABLE
    ucontext_t context;
#else
    void *stack_pointer;
#endif
    char *stack;
    uint3 thread;
    ShimState state;
    int barrier;
    // What a lane brings to an exchange of its warp, and what it takes home.
    unsigned mask;
    int kind;
    const void *mine;
    void *result;
    int source;
    size_t bytes;
};

constexpr size_t SHIM_STACK = 128 << 10, SHIM_MAX_SHARED = 256 << 10;
constexpr int SHIM_MAX_THREADS = 1024, SHIM_BARRIERS = 16;
constexpr unsigned char SHIM_POISON = 0xff;

inline ShimFiber shim_fibers[SHIM_MAX_THREADS];
inline ShimFiber shim_scheduler;
inline int shim_current, shim_count, shim_alive;
inline int shim_arrived[SHIM_BARRIERS], shim_sum[SHIM_BARRIERS], shim_verdict[SHIM_BARRIERS];
inline char shim_error[512];
alignas(1024) inline unsigned char shim_dynamic[SHIM_MAX_SHARED + 4096];
__shared__ __attribute__((used)) unsigned char shim_keeps_the_section[16];
extern "C" __attribute__((visibility("hidden"))) unsigned char __start_shim_shared[],
    __stop_shim_shared[];
using ShimBody = void (*)(void **);
inline ShimBody shim_body;
inline void **shim_parameters;

#ifdef SHIM_PORTABLE
inline void shim_switch(ShimFiber &from, ShimFiber &to) { swapcontext(&from.context, &to.context); }
#else
extern "C" void shim_switch_stacks(void **save, void *next);
asm(R"(
.text
.hidden shim_switch_stacks
.globl shim_switch_stacks
.type shim_switch_stacks, @function
shim_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch_stacks, .-shim_switch_stacks
)");
inline void shim_switch(ShimFiber &from, ShimFiber &to) {
    shim_switch_stacks(&from.stack_pointer, to.stack_pointer);
}
#endif

inline void shim_fail(const char *what) {
    if (!shim_error[0])
        snprintf(shim_error, sizeof shim_error, "%s (block %u,%u,%u, thread %u,%u,%u)", what,
                 blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
}

inline void shim_yield() {
    ShimFiber &self = shim_fibers[shim_current];
    shim_switch(self, shim_scheduler);
}

// The end of a thread that gave up: never returns.
[[noreturn]] inline void shim_leave() {
    shim_fibers[shim_current].state = SHIM_DONE;
    for (;;) shim_yield();
}

// An access to memory that is not there ends the thread that makes it; `shim_fault` is the address.
inline uint64_t shim_fault;
inline bool shim_in_thread;
inline void shim_faulted(int number, siginfo_t *info, void *) {
    if (!shim_in_thread) {  // none of a kernel's: as if nobody had asked
        signal(number, SIG_DFL);
        return;
    }
    if (!shim_error[0]) shim_fault = (uint64_t)info->si_addr;
    shim_fail("an access to memory that is not there");
    shim_leave();
}

// What the compiler's checks call: accesses that are not aligned, indices past an array.
struct ShimCheck { const char *file; unsigned line, column; };
inline void shim_checked(const char *what, const ShimCheck *place) {
    char text[160];
    snprintf(text, sizeof text, "%s in line %u of the source", what, place->line);
    shim_fail(text);
    shim_leave();
}
extern "C" inline void __attribute__((used)) __ubsan_handle_type_mismatch_v1(ShimCheck *p, void *) {
    shim_checked("an access that is not aligned", p);
}
extern "C" inline void __attribute__((used)) __ubsan_handle_out_of_bounds(ShimCheck *p, void *) {
    shim_checked("an index outside of its array", p);
}

inline void shim_release(int barrier) {
    for (int i = 0; i < shim_count; ++i)
        if (shim_fibers[i].state == SHIM_BARRIER && shim_fibers[i].barrier == barrier)
            shim_fibers[i].state = SHIM_READY;
    shim_verdict[barrier] = shim_sum[barrier];
    shim_sum[barrier] = shim_arrived[barrier] = 0;
}

inline void shim_entry() {
    shim_body(shim_parameters);
    ShimFiber &self = shim_fibers[shim_current];
    --shim_alive;
    // Threads that have ended do not hold up the others' __syncthreads.
    if (shim_arrived[0] && shim_arrived[0] == shim_alive) shim_release(0);
    self.state = SHIM_DONE;
    for (;;) shim_yield();
}

// bar.sync id, threads: `threads` 0 means all that still run. Returns the sum of all values.
inline int shim_barrier(int barrier, int threads, int value) {
    shim_sum[barrier] += value;
    int wanted = threads ? threads : shim_alive;
    if (++shim_arrived[barrier] == wanted) {
        shim_release(barrier);
    } else {
        ShimFiber &self = shim_fibers[shim_current];
        self.state = SHIM_BARRIER;
        self.barrier = barrier;
        shim_yield();
    }
    return shim_verdict[barrier];
}

inline void __syncthreads() { shim_barrier(0, 0, 0); }
inline int __syncthreads_count(int p) { return shim_barrier(0, 0, p != 0); }
inline int __syncthreads_or(int p) { return shim_barrier(0, 0, p != 0) != 0; }
inline int __syncthreads_and(int p) { return shim_barrier(0, 0, p == 0) == 0; }

// ---------------------------------------------------------------------------------------------
// Exchanges inside a warp
// ---------------------------------------------------------------------------------------------

enum { SHIM_SHUFFLE, SHIM_GATHER, SHIM_MEET };

inline int shim_lane() { return shim_current & 31; }
// The lanes of a mask that exist: the last warp of a block may be short.
inline unsigned shim_present(unsigned mask) {
    int lanes = shim_count - (shim_current & ~31);
    return lanes < 32 ? mask & ((1u << lanes) - 1) : mask;
}

inline void shim_complete(int first, unsigned mask) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        ShimFiber &to = shim_fibers[first + lane];
        if (to.kind == SHIM_SHUFFLE) {
            bool there = mask >> to.source & 1;
            // What a lane outside of the mask holds is not defined: poison shows it.
            if (there) memcpy(to.result, shim_fibers[first + to.source].mine, to.bytes);
            else memset(to.result, SHIM_POISON, to.bytes);
        } else if (to.kind == SHIM_GATHER) {
            for (int other = 0; other < 32; ++other) {
                char *place = (char *)to.result + other * to.bytes;
                if (mask >> other & 1) memcpy(place, shim_fibers[first + other].mine, to.bytes);
                else memset(place, SHIM_POISON, to.bytes);
            }
        }
    }
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) shim_fibers[first + lane].state = SHIM_READY;
}

inline void shim_exchange(int kind, unsigned mask, const void *mine, void *result, int source,
                          size_t bytes) {
    ShimFiber &self = shim_fibers[shim_current];
    int first = shim_current & ~31, lane = shim_lane();
    mask = shim_present(mask);
    if (!(mask >> lane & 1)) {
        shim_fail("a lane takes part in an exchange whose mask does not name it");
        shim_leave();
    }
    self.kind = kind, self.mask = mask, self.mine = mine, self.result = result;
    self.source = source, self.bytes = bytes, self.state = SHIM_WARP;
    for (int other = 0; other < 32; ++other) {
        if (!(mask >> other & 1)) continue;
        ShimFiber &fiber = shim_fibers[first + other];
        if (fiber.state == SHIM_DONE) {
            shim_fail("an exchange names a lane that has ended");
            shim_leave();
        }
        if (fiber.state != SHIM_WARP) return shim_yield();
        if (fiber.mask != mask || fiber.kind != kind || fiber.bytes != bytes) {
            if (fiber.mask & 1u << lane) {
                shim_fail("lanes of a warp meet in different exchanges");
                shim_leave();
            }
            return shim_yield();
        }
    }
    shim_complete(first, mask);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    shim_exchange(SHIM_MEET, mask, nullptr, nullptr, 0, 0);
}
template <class T> inline T shim_shuffle(unsigned mask, T value, int source) {
    T result;
    shim_exchange(SHIM_SHUFFLE, mask, &value, &result, source, sizeof(T));
    return result;
}
// Every lane's value, by lane.
template <class T> inline void shim_gather(const T &mine, T *all, unsigned mask = 0xffffffffu) {
    shim_exchange(SHIM_GATHER, mask, &mine, all, 0, sizeof(T));
}
template <class T> inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    return shim_shuffle(mask, v, (shim_lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
    int source = shim_lane() ^ bits;
    bool inside = source < (shim_lane() & ~(width - 1)) + width;
    return shim_shuffle(mask, v, inside ? source : shim_lane());
}
template <class T> inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    int source = shim_lane() + (int)by;
    bool inside = source < (shim_lane() & ~(width - 1)) + width;
    return shim_shuffle(mask, v, inside ? source : shim_lane());
}
template <class T> inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    int source = shim_lane() - (int)by;
    bool inside = source >= (shim_lane() & ~(width - 1));
    return shim_shuffle(mask, v, inside ? source : shim_lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    int all[32];
    unsigned bits = 0;
    mask = shim_present(mask);
    shim_gather(predicate, all, mask);
    for (int i = 0; i < 32; ++i) bits |= (unsigned)((mask >> i & 1) && all[i]) << i;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline unsigned __activemask() { return 0xffffffffu; }
template <class T, class F> inline T shim_reduce(unsigned mask, T value, F combine) {
    T all[32];
    bool begun = false;
    mask = shim_present(mask);
    shim_gather(value, all, mask);
    for (int i = 0; i < 32; ++i) {
        if (!(mask >> i & 1)) continue;
        value = begun ? combine(value, all[i]) : all[i];
        begun = true;
    }
    return value;
}
#define SHIM_REDUCE(name, expression) \
    template <class T> inline T __reduce_##name##_sync(unsigned mask, T value) { \
        return shim_reduce(mask, value, [](T a, T b) { return (T)(expression); }); \
    }
SHIM_REDUCE(add, a + b)
SHIM_REDUCE(min, a < b ? a : b)
SHIM_REDUCE(max, a > b ? a : b)
SHIM_REDUCE(and, a & b)
SHIM_REDUCE(or, a | b)
SHIM_REDUCE(xor, a ^ b)

// ---------------------------------------------------------------------------------------------
// Running a grid
// ---------------------------------------------------------------------------------------------

inline void shim_prepare(ShimFiber &fiber) {
    fiber.state = SHIM_READY;
#ifdef SHIM_PORTABLE
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = SHIM_STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, (void (*)())shim_entry, 0);
#else
    // Six registers, the address to return to, and a word that keeps the stack aligned.
    void **top = (void **)(fiber.stack + SHIM_STACK) - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = (void *)shim_entry;
    fiber.stack_pointer = top;
#endif
    memset(fiber.stack, SHIM_POISON, 64);
}

inline void shim_block(bool backwards, size_t shared_nbytes) {
    memset(__start_shim_shared, SHIM_POISON, __stop_shim_shared - __start_shim_shared);
    memset(shim_dynamic, SHIM_POISON, shared_nbytes + 4096);
    memset(shim_arrived, 0, sizeof shim_arrived);
    memset(shim_sum, 0, sizeof shim_sum);
    shim_alive = shim_count;
    for (int i = 0; i < shim_count; ++i) shim_prepare(shim_fibers[i]);
    for (bool moved = true; moved && !shim_error[0];) {
        moved = false;
        for (int step = 0; step < shim_count && !shim_error[0]; ++step) {
            shim_current = backwards ? shim_count - 1 - step : step;
            ShimFiber &fiber = shim_fibers[shim_current];
            if (fiber.state != SHIM_READY) continue;
            moved = true;
            threadIdx = fiber.thread;
            shim_in_thread = true;
            shim_switch(shim_scheduler, fiber);
            shim_in_thread = false;
        }
    }
    if (shim_alive && !shim_error[0]) {
        for (int i = 0; i < shim_count; ++i)
            if (shim_fibers[i].state == SHIM_BARRIER || shim_fibers[i].state == SHIM_WARP) {
                threadIdx = shim_fibers[i].thread;
                shim_fail(shim_fibers[i].state == SHIM_WARP ? "deadlock: a lane waits for its warp"
                                                            : "deadlock: a thread waits at a barrier");
            }
    }
    for (int i = 0; i < shim_count; ++i)
        for (int byte = 0; byte < 64; ++byte)
            if ((unsigned char)shim_fibers[i].stack[byte] != SHIM_POISON) shim_fail("stack overflow");
    for (size_t i = shared_nbytes; i < shared_nbytes + 4096; ++i)
        if (shim_dynamic[i] != SHIM_POISON) shim_fail("a write past the dynamic shared memory");
}

inline const char *shim_grid(ShimBody body, void **parameters, const unsigned *grid,
                             const unsigned *block, size_t shared_nbytes, bool backwards) {
    shim_error[0] = 0, shim_fault = 0;
    shim_body = body, shim_parameters = parameters;
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
    shim_count = (int)(block[0] * block[1] * block[2]);
    if (shim_count < 1 || shim_count > SHIM_MAX_THREADS) return "a block of 1 to 1024 threads is wanted";
    if (shared_nbytes > SHIM_MAX_SHARED) return "more dynamic shared memory than any GPU has";
    for (int i = 0; i < shim_count; ++i) {
        ShimFiber &fiber = shim_fibers[i];
        unsigned u = (unsigned)i;
        fiber.thread = {u % block[0], u / block[0] % block[1], u / block[0] / block[1]};
        if (fiber.stack) continue;
        void *memory = mmap(nullptr, SHIM_STACK, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return "no memory for the stack of a thread";
        fiber.stack = (char *)memory;
    }
    // The handler runs on the thread's own stack and does not return: nothing is held back meanwhile.
    struct sigaction faults = {}, before[2];
    faults.sa_sigaction = shim_faulted, faults.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &faults, &before[0]), sigaction(SIGBUS, &faults, &before[1]);
    uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    for (uint64_t step = 0; step < blocks && !shim_error[0]; ++step) {
        uint64_t at = backwards ? blocks - 1 - step : step;
        blockIdx = {(unsigned)(at % grid[0]), (unsigned)(at / grid[0] % grid[1]),
                    (unsigned)(at / grid[0] / grid[1])};
        shim_block(backwards, shared_nbytes);
    }
    sigaction(SIGSEGV, &before[0], nullptr), sigaction(SIGBUS, &before[1], nullptr);
    return shim_error[0] ? shim_error : nullptr;
}

// The parameters of a kernel as cuLaunchKernel takes them: an array of addresses.
template <class... A, size_t... I>
inline void shim_invoke(void (*kernel)(A...), void **p, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A> *)p[I]...);
}
template <class... A> inline void shim_call(void (*kernel)(A...), void **p) {
    shim_invoke(kernel, p, std::index_sequence_for<A...>{});
}
// One letter per parameter: p(ointer), i(32), l(ong, 64), f(loat), s(tructure).
template <class A> constexpr char shim_letter() {
    if (std::is_pointer_v<A>) return 'p';
    if (std::is_floating_point_v<A>) return sizeof(A) == 4 ? 'f' : 'd';
    if (std::is_integral_v<A>) return sizeof(A) == 8 ? 'l' : sizeof(A) == 4 ? 'i' : '?';
    return 's';
}
template <class... A> inline const char *shim_letters(void (*)(A...)) {
    static const char letters[] = {shim_letter<A>()..., 0};
    return letters;
}
#define SHIM_PUBLIC extern "C" __attribute__((visibility("default")))
#define SHIM_EXPORT(kernel) \
    SHIM_PUBLIC uint64_t shim_faulted_at() { return shim_fault; } \
    SHIM_PUBLIC const char *shim_signature() { return shim_letters(kernel); } \
    SHIM_PUBLIC const char *shim_run(void **parameters, const unsigned *grid, const unsigned *block, \
                                    uint64_t shared_nbytes, int backwards) { \
        return shim_grid([](void **p) { shim_call(kernel, p); }, parameters, grid, block, \
                         shared_nbytes, backwards != 0); \
    }

#include "cuda_shim_intrinsics.h"
