"""A kernel that says how far a tensor is from what it should be, without bringing both home."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from engine.cuda.c_prelude import PRELUDE
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType

__all__ = ["RESULT_NBYTES", "Difference", "compare_kernel", "read_difference"]

THREADS = 256
#: Greatest difference (float32), wrong elements (uint32), sum and sum of squares (float64).
RESULT_NBYTES = 24

_READERS = {
    DType.FLOAT16: ("uint16_t", "ef_from_float16({})"),
    DType.BFLOAT16: ("uint16_t", "ef_float((uint32_t){} << 16)"),
    DType.FLOAT32: ("float", "{}"),
    DType.FLOAT64: ("double", "(float){}"),
}
_INTEGERS = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}

_FLOATS = """
extern "C" __global__ void compare(
    const {type} *found, const {type} *wanted, int64_t count, char *result) {{
  __shared__ double sums[{threads}], squares[{threads}];
  float greatest = 0.0f;
  unsigned wrong = 0;
  double sum = 0.0, square = 0.0;
  int64_t step = (int64_t)gridDim.x * {threads};
  for (int64_t i = (int64_t)blockIdx.x * {threads} + threadIdx.x; i < count; i += step) {{
    float a = {found}, b = {wanted};
    bool same = a == b || (a != a && b != b);
    float off = same ? 0.0f : fabsf(a - b);
    if (off != off || off == INFINITY) wrong++;
    else if (off > greatest) greatest = off;
    if (b - b == 0.0f) {{ sum += b; square += (double)b * b; }}
  }}
  sums[threadIdx.x] = sum;
  squares[threadIdx.x] = square;
  __syncthreads();
  for (int half = {threads} / 2; half > 0; half /= 2) {{
    if (threadIdx.x < half) {{
      sums[threadIdx.x] += sums[threadIdx.x + half];
      squares[threadIdx.x] += squares[threadIdx.x + half];
    }}
    __syncthreads();
  }}
  if (greatest > 0.0f) atomicMax((unsigned *)result, ef_bits(greatest));
  if (wrong) atomicAdd((unsigned *)(result + 4), wrong);
  if (threadIdx.x == 0) {{
    atomicAdd((double *)(result + 8), sums[0]);
    atomicAdd((double *)(result + 16), squares[0]);
  }}
}}
"""
_BITS = """
extern "C" __global__ void compare(
    const {type} *found, const {type} *wanted, int64_t count, char *result) {{
  unsigned wrong = 0;
  int64_t step = (int64_t)gridDim.x * {threads};
  for (int64_t i = (int64_t)blockIdx.x * {threads} + threadIdx.x; i < count; i += step)
    wrong += found[i] != wanted[i];
  if (wrong) atomicAdd((unsigned *)(result + 4), wrong);
}}
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """How two tensors differ.

    ``greatest`` is the greatest distance of two numbers, ``wrong`` counts elements where only one
    is finite (for integers: that differ), ``spread`` is the standard deviation of what was wanted.
    """

    greatest: float
    wrong: int
    spread: float


def compare_kernel(dtype: DType) -> DeviceKernel:
    """The kernel for one element type.

    Parameters: two pointers, the count as i64, a pointer to `RESULT_NBYTES` zero bytes. Any grid
    does.
    """
    if dtype in _READERS:
        kind, reader = _READERS[dtype]
        body = _FLOATS.format(
            type=kind,
            threads=THREADS,
            found=reader.format("found[i]"),
            wanted=reader.format("wanted[i]"),
        )
    else:
        body = _BITS.format(type=_INTEGERS[dtype.nbytes], threads=THREADS)
    return DeviceKernel("nvrtc", "compare", PRELUDE + body, THREADS)


def read_difference(result: bytes, count: int) -> Difference:
    """What the kernel left in its result, over ``count`` elements."""
    greatest, wrong, total, squares = struct.unpack("<fIdd", result)
    mean = total / count if count else 0.0
    variance = squares / count - mean * mean if count else 0.0
    return Difference(greatest, wrong, max(variance, 0.0) ** 0.5)
