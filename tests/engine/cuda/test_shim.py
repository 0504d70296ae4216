"""The host shim: what it runs, and what it must notice."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cuda.kernel import DeviceKernel
from tests.cuda_shim import ShimError, load_function, run_kernel


def kernel(body: str, parameters: str, *, threads: int = 64, shared: int = 0) -> DeviceKernel:
    source = f"""
extern "C" __global__ void __launch_bounds__({threads}) f({parameters}) {{
    int t = threadIdx.x, block = blockIdx.x;
    {body}
}}
"""
    return DeviceKernel("nvrtc", "f", source, threads, shared)


def test_a_block_sums_through_static_shared_memory_and_barriers() -> None:
    summed = kernel(
        """
        __shared__ float part[64];
        part[t] = x[block * 64 + t];
        for (int half = 32; half > 0; half /= 2) {
            __syncthreads();
            if (t < half) part[t] += part[t + half];
        }
        __syncthreads();
        if (t == 0) y[block] = part[0];
        """,
        "const float *x, float *y",
    )
    x, y = np.arange(192, dtype=np.float32), np.zeros(3, np.float32)
    run_kernel(summed, (3,), [x, y])
    assert y.tolist() == x.reshape(3, 64).sum(1).tolist()


def test_a_missing_barrier_is_noticed() -> None:
    racing = kernel(
        "__shared__ float part[64]; part[t] = x[t]; y[t] = part[(t + 1) % 64];",
        "const float *x, float *y",
    )
    with pytest.raises(ShimError, match="depends on the order of its threads"):
        run_kernel(racing, (1,), [np.arange(64, dtype=np.float32), np.zeros(64, np.float32)])


def test_shuffles_votes_and_reductions_follow_the_lanes() -> None:
    body = """
    int v = x[t], o = 8 * t;
    y[o] = __shfl_sync(0xffffffff, v, 5);
    y[o + 1] = __shfl_xor_sync(0xffffffff, v, 3);
    y[o + 2] = __shfl_down_sync(0xffffffff, v, 2, 8);
    y[o + 3] = __shfl_up_sync(0xffffffff, v, 1);
    y[o + 4] = (int)__ballot_sync(0xffffffff, v % 3 == 0);
    y[o + 5] = __reduce_max_sync(0xffffffff, v);
    y[o + 6] = __any_sync(0xffffffff, v == 7) * 2 + __all_sync(0xffffffff, v >= 0);
    y[o + 7] = t % 32 < 16 ? __shfl_xor_sync(0xffff, v, 1) : __shfl_sync(0xffff0000, v, 16);
    """
    x = (np.arange(64, dtype=np.int32) * 37) % 61
    y = np.zeros((64, 8), np.int32)
    run_kernel(kernel(body, "const int *x, int *y"), (1,), [x, y])
    lanes, warps = np.arange(64) % 32, x.reshape(2, 32)
    first = np.arange(64) - lanes
    assert (y[:, 0] == x[first + 5]).all()
    assert (y[:, 1] == x[first + (lanes ^ 3)]).all()
    inside = lanes % 8 + 2 < 8
    assert (y[:, 2] == np.where(inside, x[(np.arange(64) + 2) % 64], x)).all()
    assert (y[:, 3] == np.where(lanes > 0, x[np.arange(64) - 1], x)).all()
    bits = [(row % 3 == 0) @ (1 << np.arange(32, dtype=np.int64)) for row in warps]
    assert (y[:, 4].view(np.uint32) == np.repeat(bits, 32)).all()
    assert (y[:, 5] == np.repeat(warps.max(1), 32)).all()
    assert (y[:, 6] == np.repeat((warps == 7).any(1) * 2 + 1, 32)).all()
    assert (y[:, 7] == x[first + np.where(lanes < 16, lanes ^ 1, 16)]).all()


def test_dynamic_shared_memory_grids_scalars_and_atomics() -> None:
    body = """
    extern __shared__ __align__(16) unsigned char memory[];
    float *held = (float *)memory;
    held[t] = x[t] * scale;
    __syncthreads();
    y[(blockIdx.y * gridDim.x + block) * 64 + t] = held[63 - t] + (float)shift;
    if (t == 0) {
        unsigned before = atomicInc(count, (unsigned)blocks - 1);
        if (before == blocks - 1) y[0] = -1.0f;
    }
    """
    parameters = (
        "const float *x, float *y, unsigned *count, float scale, long long shift, int blocks"
    )
    x, y = np.arange(64, dtype=np.float32), np.zeros((2, 3, 64), np.float32)
    count = np.zeros(1, np.uint32)
    dynamic = kernel(body, parameters, shared=256)
    run_kernel(
        dynamic,
        (3, 2),
        [x, y, count, np.float32(0.5), np.int64(2), ("i32", 6)],
        deterministic=False,
    )
    expected = np.broadcast_to(x[::-1] * 0.5 + 2, (2, 3, 64)).copy()
    expected[0, 0, 0] = -1
    assert (y == expected).all()
    assert count[0] == 0
    assert load_function(dynamic).parameters == "pppfli"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("y[t + 1] = 0;", "not there.*thread 63.*: 0 bytes past the end of an array"),
        ("y[t - 1] = 0;", "writes before"),
        ("if (t == 5) y[0] = y[65536];", r"not there.*thread 5,.*: \d+ bytes past the end"),
        ("if (t == 5) y[0] = y[-65536];", r"not there.*: \d+ bytes before an array"),
        ("if (t < 32) __syncthreads(); else __syncwarp(0x1);", "exchange whose mask"),
        ("if (t == 3) shim_barrier(1, 64, 0);", "deadlock: a thread waits"),
        ("if (t == 3) __syncwarp();", "names a lane that has ended|deadlock: a lane"),
        ("*(float4 *)(y + t) = make_float4(0, 0, 0, 0);", "not aligned in line 4"),
        ("__shared__ float s[8]; s[t] = 1; y[t] = s[t];", "outside of its array"),
        ("__trap();", "__trap"),
        ("extern __shared__ float s[]; s[t + 1] = 1;", "past the dynamic shared memory"),
    ],
)
def test_what_no_kernel_may_do_is_told(body: str, told: str) -> None:
    wrong = kernel(body, "float *y", shared=256)
    with pytest.raises(ShimError, match=told):
        run_kernel(wrong, (1,), [np.zeros(64, np.float32)])


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    scalar = kernel("y[t] = n;", "float *y, int n")
    y = np.zeros(64, np.float32)
    for wrong in ([y], [y, np.int64(1)], [y, y], [np.int32(1), np.int32(1)]):
        with pytest.raises(ShimError):
            run_kernel(scalar, (1,), wrong)


def test_views_of_one_array_share_its_memory() -> None:
    moved = kernel("if (t < 4) y[t] = x[t];", "const float *x, float *y")
    both = np.arange(8, dtype=np.float32)
    run_kernel(moved, (1,), [both[:4], both[4:]])
    assert both.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_half_and_bfloat16_conversions_agree_with_numpy_for_every_pattern() -> None:
    import ml_dtypes

    body = """
    for (int i = t; i < 65536; i += 64) {
        wide[i] = shim_half_to_float((unsigned short)i);
        narrow[i] = shim_float_to_half(x[i]);
        brain[i] = shim_float_to_bfloat16(x[i]);
    }
    """
    every = np.arange(65536, dtype=np.uint16)
    bits = np.random.default_rng(1).integers(0, 2**32, 65536, dtype=np.uint32)
    x = np.concatenate([bits[:32768].view(np.float32), every[:32768].view(np.float16) * 1.0003])
    x = x.astype(np.float32)
    wide, narrow, brain = np.zeros(65536, np.float32), np.zeros_like(every), np.zeros_like(every)
    parameters = "const float *x, float *wide, unsigned short *narrow, unsigned short *brain"
    run_kernel(kernel(body, parameters), (1,), [x, wide, narrow, brain])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(wide, every.view(np.float16).astype(np.float32))
        np.testing.assert_array_equal(narrow.view(np.float16), x.astype(np.float16))
        np.testing.assert_array_equal(
            brain.view(ml_dtypes.bfloat16).astype(np.float32),
            x.astype(ml_dtypes.bfloat16).astype(np.float32),
        )


def test_matrix_fragments_multiply_as_the_instruction_does() -> None:
    """A tile loaded by ldmatrix and multiplied; the layouts are those of the PTX manual."""
    body = """
    __shared__ __align__(16) unsigned short a[16 * 16], b[16 * 8];
    for (int i = t; i < 256; i += 32) a[i] = x[i];
    for (int i = t; i < 128; i += 32) b[i] = w[i];
    __syncthreads();
    unsigned left[4], right[2];
    float sums[4] = {0, 0, 0, 0};
    shim_ldmatrix(left, a + t % 16 * 16 + t / 16 * 8, 4);
    shim_ldmatrix(right, b + t % 16 * 8, 2, true);
    shim_mma_m16n8k16(sums, left, right);
    for (int i = 0; i < 4; ++i) y[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = sums[i];
    """
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(16, 16)).astype(np.float16), rng.normal(size=(16, 8)).astype(np.float16)
    y = np.zeros((16, 8), np.float32)
    parameters = "const unsigned short *x, const unsigned short *w, float *y"
    run_kernel(kernel(body, parameters, threads=32), (1,), [x, w, y])
    np.testing.assert_allclose(y, x.astype(np.float32) @ w.astype(np.float32), rtol=1e-5, atol=1e-5)
