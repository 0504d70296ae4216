"""CUDA C text for Hopper's asynchronous hardware: barriers, tensor memory accelerator, wgmma.

Addresses in shared memory are 32-bit numbers. Beside the inline PTX for compute capability 9.0
stands a plain C++ form that calls what a host shim defines (names that begin with ``shim_``), so
that the same kernel text also runs on a processor. Instructions and layouts follow the PTX ISA,
"Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions", "mbarrier" and
"cp.async.bulk.tensor".
"""

from __future__ import annotations

from engine.ir.types import DType
from engine.target import CudaTarget, Target

__all__ = ["HOPPER_PRELUDE", "hopper_target", "wgmma_sums", "wgmma_text"]

_BARRIERS = r"""
/* A tensor map as the driver encodes it. */
struct __align__(64) ef_map { uint64_t words[16]; };
#ifdef __CUDACC__
EF_FUNCTION uint32_t ef_shared_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p); }
EF_FUNCTION void ef_barrier_init(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(count) : "memory"); }
/* Makes initialised barriers visible to the cluster and to asynchronous copies. */
EF_FUNCTION void ef_fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
EF_FUNCTION void ef_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory"); }
/* Arrives at the barrier of the same address in a block of the cluster. Releasing at the scope of
   the cluster would be a fence of the whole device; what this says is that products have read. */
EF_FUNCTION void ef_arrive_at(uint32_t barrier, int block) {
  asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
      " mbarrier.arrive.shared::cluster.b64 _, [there]; }"
      :: "r"(barrier), "r"(block) : "memory"); }
EF_FUNCTION void ef_expect(uint32_t barrier, int nbytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
      :: "r"(barrier), "r"(nbytes) : "memory"); }
/* Waits until the phase of this parity has ended; a new barrier is in phase 0. */
EF_FUNCTION void ef_await(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
        " selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  } while (!done); }
EF_FUNCTION void ef_cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
EF_FUNCTION int ef_cluster_rank() {
  int rank; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)); return rank; }
template <int count> EF_FUNCTION void ef_fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(count)); }
template <int count> EF_FUNCTION void ef_more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(count)); }
#else
EF_FUNCTION uint32_t ef_shared_address(const void *p) { return shim_shared_address(p); }
EF_FUNCTION void ef_barrier_init(uint32_t barrier, int count) { shim_barrier_init(barrier, count); }
EF_FUNCTION void ef_fence_barriers() {}
EF_FUNCTION void ef_arrive(uint32_t barrier) { shim_arrive(barrier, -1); }
EF_FUNCTION void ef_arrive_at(uint32_t barrier, int block) { shim_arrive(barrier, block); }
EF_FUNCTION void ef_expect(uint32_t barrier, int nbytes) { shim_expect(barrier, nbytes); }
EF_FUNCTION void ef_await(uint32_t barrier, uint32_t parity) { shim_await(barrier, parity); }
EF_FUNCTION void ef_cluster_sync() { __syncthreads(); }
EF_FUNCTION int ef_cluster_rank() { return shim_rank(); }
template <int count> EF_FUNCTION void ef_fewer_registers() {}
template <int count> EF_FUNCTION void ef_more_registers() {}
#endif
"""

_COPIES = r"""
#ifdef __CUDACC__
EF_FUNCTION void ef_prefetch(const ef_map *map) {
  asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory"); }
/* A box whose first element lies at a row and a column; its bytes count at the barrier. */
EF_FUNCTION void ef_load(uint32_t to, const ef_map *map, int row, int column, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];"
      :: "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory"); }
/* The same of a tensor of images, rows, columns and channels. */
EF_FUNCTION void ef_load_pixels(uint32_t to, const ef_map *map, int image, int row, int column,
                                int channel, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" :: "r"(to), "l"(map), "r"(channel), "r"(column),
      "r"(row), "r"(image), "r"(barrier) : "memory"); }
EF_FUNCTION void ef_store_pixels(const ef_map *map, int image, int row, int column, int channel,
                                 uint32_t from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
      :: "l"(map), "r"(channel), "r"(column), "r"(row), "r"(image), "r"(from) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* Rows of a matrix to the same place of every block of the cluster in a mask. */
EF_FUNCTION void ef_load_all(uint32_t to, const ef_map *map, int row, int column, uint32_t barrier,
                             uint16_t mask) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
      :: "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(mask) : "memory"); }
EF_FUNCTION void ef_store(const ef_map *map, int row, int column, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
      :: "l"(map), "r"(column), "r"(row), "r"(from) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* Waits until all but the last `left` stores of this thread have read shared memory. */
template <int left> EF_FUNCTION void ef_await_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(left) : "memory"); }
EF_FUNCTION void ef_await_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
/* What this thread wrote to shared memory is seen by copies that are started after it. */
EF_FUNCTION void ef_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
EF_FUNCTION void ef_load_matrices(uint32_t (&w)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(row) : "memory"); }
EF_FUNCTION void ef_store_matrices(uint32_t row, const uint32_t (&w)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
      :: "r"(row), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory"); }
EF_FUNCTION uint32_t ef_shared_word(uint32_t at) {
  uint32_t w; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(at)); return w; }
#else
EF_FUNCTION void ef_prefetch(const ef_map *map) {}
EF_FUNCTION void ef_load(uint32_t to, const ef_map *map, int row, int column, uint32_t barrier) {
  shim_tma_load(to, map, 0, 0, row, column, barrier, 0); }
EF_FUNCTION void ef_load_pixels(uint32_t to, const ef_map *map, int image, int row, int column,
                                int channel, uint32_t barrier) {
  shim_tma_load(to, map, image, row, column, channel, barrier, 0); }
EF_FUNCTION void ef_store_pixels(const ef_map *map, int image, int row, int column, int channel,
                                 uint32_t from) {
  shim_tma_store(map, image, row, column, channel, from); }
EF_FUNCTION void ef_load_all(uint32_t to, const ef_map *map, int row, int column, uint32_t barrier,
                             uint16_t mask) {
  shim_tma_load(to, map, 0, 0, row, column, barrier, mask); }
EF_FUNCTION void ef_store(const ef_map *map, int row, int column, uint32_t from) {
  shim_tma_store(map, 0, 0, row, column, from); }
template <int left> EF_FUNCTION void ef_await_reads() { shim_await_stores(left); }
EF_FUNCTION void ef_await_stores() { shim_await_stores(0); }
EF_FUNCTION void ef_publish() { shim_publish(); }
EF_FUNCTION void ef_load_matrices(uint32_t (&w)[4], uint32_t row) {
  shim_ldmatrix(w, shim_at(row), 4); }
EF_FUNCTION void ef_store_matrices(uint32_t row, const uint32_t (&w)[4]) {
  shim_stmatrix(row, w); }
EF_FUNCTION uint32_t ef_shared_word(uint32_t at) { return *(const uint32_t *)shim_at(at); }
#endif
"""

# Rows of 128 bytes under the 128-byte swizzle, eight rows after eight rows: the stride between
# groups of eight is 1024 bytes, the other stride is not used. A step of 16 along k is 32 bytes.
_WGMMA = r"""
EF_FUNCTION uint64_t ef_descriptor(uint32_t address) {
  return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32
      | (uint64_t)1 << 62; }
#ifdef __CUDACC__
EF_FUNCTION void ef_wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
EF_FUNCTION void ef_wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int left> EF_FUNCTION void ef_wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(left) : "memory"); }
/* The compiler may not move accesses to sums over this. */
template <int n> EF_FUNCTION void ef_hold(float (&d)[n]) {
  #pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i]) :: "memory"); }
#else
EF_FUNCTION void ef_wgmma_begin() {}
EF_FUNCTION void ef_wgmma_commit() { shim_wgmma_commit(); }
template <int left> EF_FUNCTION void ef_wgmma_wait() { shim_wgmma_wait(left); }
template <int n> EF_FUNCTION void ef_hold(float (&d)[n]) {}
#endif
"""

HOPPER_PRELUDE = _BARRIERS + _COPIES + _WGMMA

_INSTRUCTION = r"""
/* d [64, {n}] (+)= a [64, 16] b [{n}, 16], both along k; `add` 0 begins with zero. */
#ifdef __CUDACC__
EF_FUNCTION void ef_wgmma(float (&d)[{count}], uint64_t a, uint64_t b, int add) {{
  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{add}, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{type}.{type} {{"
{places}
      "}}, %{a}, %{b}, p, 1, 1, 0, 0; }}"
      : {outputs}
      : "l"(a), "l"(b), "r"(add)); }}
#else
EF_FUNCTION void ef_wgmma(float (&d)[{count}], uint64_t a, uint64_t b, int add) {{
  shim_wgmma(d, {n}, a, b, add, {bfloat16}); }}
#endif
"""


def hopper_target(target: Target) -> CudaTarget | str:
    """The target if its GPU has these instructions, which no later one has; else why not."""
    if not isinstance(target, CudaTarget):
        return "the target is no CUDA device"
    if target.capability != (9, 0):
        return "it needs the products and clusters of compute capability 9.0"
    return target


def wgmma_sums(dtype: DType, columns: int) -> dict[str, object]:
    """What the texts of all products say alike: the type, the sums d and their places."""
    count = columns // 2
    names = [f"%{place}" for place in range(count)]
    lines = [", ".join(names[start : start + 16]) for start in range(0, count, 16)]
    places = "\n".join(
        f'      "{line}{", " if place + 1 < len(lines) else ""}"'
        for place, line in enumerate(lines)
    )
    return {
        "n": columns,
        "count": count,
        "type": "bf16" if dtype is DType.BFLOAT16 else "f16",
        "bfloat16": "true" if dtype is DType.BFLOAT16 else "false",
        "places": places,
        "outputs": ", ".join(f'"+f"(d[{place}])' for place in range(count)),
    }


def wgmma_text(dtype: DType, columns: int) -> str:
    """The function ``ef_wgmma`` for float16 or bfloat16; ``columns`` is a multiple of 8 to 256."""
    count = columns // 2
    return _INSTRUCTION.format(
        **wgmma_sums(dtype, columns),
        a=count,
        b=count + 1,
        add=count + 2,
    )
