"""Running sums and the greatest elements of lines, as CUDA C.

A line is what an axis holds; lines of a tensor [outer, length, inner] lie ``inner`` elements apart.
Running sums: a thread per line, or a block that scans a piece of its line at a time (Hillis and
Steele, "Data parallel algorithms", 1986) and carries the sum on. Greatest elements: every element
becomes a 64-bit key of its rank and its place, so that equal ones keep their order; a block either
sorts the keys of a line in shared memory (Batcher's bitonic network) or looks for the next key k
times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.c_expression import PRELUDE, read_text, storage_type, value_type, write_text
from engine.cuda.indexing import Made
from engine.cuda.kernel import DeviceKernel
from engine.cuda.size_text import SizeText
from engine.ir.sizes import Dim, ceildiv, product
from engine.ir.types import DType
from engine.plan.expressions import Range

__all__ = ["LONGEST_SORT", "THREADS", "running_sums", "sortable", "top_elements"]

THREADS = 256
#: Keys of eight bytes that a block sorts in shared memory.
LONGEST_SORT = 4096

_LINES = r"""
extern "C" __global__ void __launch_bounds__(@THREADS@) running_sums(@PARAMETERS@) {
  ef_wait();
  ef_launch_dependents();
  const ef_index line = (ef_index)blockIdx.x * @THREADS@ + (int)threadIdx.x;
  if (line >= @LINES@) return;
  const ef_index first = line / @INNER@ * @LENGTH@ * @INNER@ + line % @INNER@;
  @VALUE@ sum = 0;
  for (ef_index i = 0; i < @LENGTH@; ++i) {
    const ef_index at = first + @PLACE@ * @INNER@;
    const @VALUE@ before = sum;
    sum = (@VALUE@)(sum + @READ@);
    y[at] = @WRITE@;
  }
}
"""

_BLOCKS = r"""
extern "C" __global__ void __launch_bounds__(@THREADS@) running_sums(@PARAMETERS@) {
  __shared__ @VALUE@ sums[2][@THREADS@];
  ef_wait();
  ef_launch_dependents();
  const int t = threadIdx.x;
  const ef_index line = blockIdx.x;
  const ef_index first = line / @INNER@ * @LENGTH@ * @INNER@ + line % @INNER@;
  @VALUE@ carried = 0;
  for (ef_index begin = 0; begin < @LENGTH@; begin += @THREADS@) {
    const ef_index i = begin + t;
    const bool live = i < @LENGTH@;
    const ef_index at = first + @PLACE@ * @INNER@;
    const @VALUE@ own = live ? (@VALUE@)@READ@ : (@VALUE@)0;
    int side = 0;
    sums[0][t] = own;
    __syncthreads();
    for (int step = 1; step < @THREADS@; step *= 2) {
      const @VALUE@ other = t >= step ? sums[side][t - step] : (@VALUE@)0;
      sums[1 - side][t] = (@VALUE@)(sums[side][t] + other);
      side = 1 - side;
      __syncthreads();
    }
    const @VALUE@ sum = (@VALUE@)(carried + sums[side][t]);
    const @VALUE@ before = t ? (@VALUE@)(carried + sums[side][t - 1]) : carried;
    if (live) y[at] = @WRITE@;
    carried = (@VALUE@)(carried + sums[side][@THREADS@ - 1]);
    __syncthreads();
  }
}
"""

_KEYS = r"""
/* Ascending keys in the order of the result: NaN ranks above all, equal elements by their place. */
EF_FUNCTION uint64_t ef_key(@VALUE@ x, uint32_t place) {
  uint32_t rank;
@RANK@
  return (uint64_t)(@LARGEST@ ? ~rank : rank) << 32 | place;
}
"""
_FLOAT_RANK = r"""  const uint32_t bits = x == 0.0f ? 0u : ef_bits(x);
  rank = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  rank = x != x ? 0xffffffffu : rank;"""
_SIGNED_RANK = "  rank = (uint32_t)(int32_t)x ^ 0x80000000u;"
_UNSIGNED_RANK = "  rank = (uint32_t)x;"

_SORT = r"""
extern "C" __global__ void __launch_bounds__(@THREADS@) top_elements(@PARAMETERS@) {
  __shared__ uint64_t keys[@SIZE@];
  ef_wait();
  ef_launch_dependents();
  const int t = threadIdx.x;
  const ef_index line = blockIdx.x;
  const ef_index outer = line / @INNER@, column = line % @INNER@;
  const ef_index first = outer * @LENGTH@ * @INNER@ + column;
  for (int i = t; i < @SIZE@; i += @THREADS@)
    keys[i] = i < @LENGTH@ ? ef_key(@READ_I@, (uint32_t)i) : ~(uint64_t)0;
  __syncthreads();
  for (int size = 2; size <= @SIZE@; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = t; i < @SIZE@ / 2; i += @THREADS@) {
        const int low = i / step * step * 2 + i % step, high = low + step;
        const uint64_t a = keys[low], b = keys[high];
        if ((a > b) == ((low & size) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  for (int i = t; i < @COUNT@; i += @THREADS@) {
    const int64_t place = min((int64_t)(uint32_t)keys[i], (int64_t)@LENGTH@ - 1);
    const ef_index to = (outer * @COUNT@ + i) * @INNER@ + column;
    y[to] = x[first + (ef_index)place * @INNER@];
    places[to] = place;
  }
}
"""

_SEARCH = r"""
extern "C" __global__ void __launch_bounds__(@THREADS@) top_elements(@PARAMETERS@) {
  __shared__ uint64_t best[@THREADS@];
  ef_wait();
  ef_launch_dependents();
  const int t = threadIdx.x;
  const ef_index line = blockIdx.x;
  const ef_index outer = line / @INNER@, column = line % @INNER@;
  const ef_index first = outer * @LENGTH@ * @INNER@ + column;
  uint64_t last = 0;
  for (int round = 0; round < @COUNT@; ++round) {
    uint64_t least = ~(uint64_t)0;
    for (ef_index i = t; i < @LENGTH@; i += @THREADS@) {
      const uint64_t key = ef_key(@READ_I@, (uint32_t)i);
      if ((round == 0 || key > last) && key < least) least = key;
    }
    best[t] = least;
    __syncthreads();
    for (int step = @THREADS@ / 2; step > 0; step /= 2) {
      if (t < step && best[t + step] < best[t]) best[t] = best[t + step];
      __syncthreads();
    }
    last = best[0];
    __syncthreads();
    if (t == 0) {
      const int64_t place = min((int64_t)(uint32_t)last, (int64_t)@LENGTH@ - 1);
      const ef_index to = (outer * @COUNT@ + round) * @INNER@ + column;
      y[to] = x[first + (ef_index)place * @INNER@];
      places[to] = place;
    }
  }
}
"""


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _file(text: str, sizes: SizeText, pointers: Sequence[str], values: Mapping[str, str]) -> str:
    parameters = ", ".join([*pointers, *sizes.declarations])
    whole = {**values, "PARAMETERS": parameters, "THREADS": str(THREADS)}
    return f"{PRELUDE}typedef {sizes.index_type} ef_index;\n" + _filled(text, whole)


def running_sums(
    dtype: DType,
    shape: tuple[Dim, Dim, Dim],
    *,
    exclusive: bool,
    reverse: bool,
    blocks: bool,
    ranges: Mapping[str, Range],
) -> Made:
    """Sums of all elements up to each one along the middle axis, in float32 for 16-bit floats.

    ``exclusive`` leaves the element itself out, ``reverse`` begins at the end; with ``blocks`` a
    block serves a line. Pointers are x and y; ValueError for a type that is not added.
    """
    if dtype is DType.BOOL:
        raise ValueError("booleans are not added")
    outer, length, inner = shape
    lines = outer * inner
    sizes = SizeText(SizeText.needs_wide((product(shape), lines), ranges), ranges)
    extent = sizes(length)
    values = {
        "INNER": sizes(inner),
        "LENGTH": extent,
        "LINES": sizes(lines) if not blocks else "",
        "VALUE": value_type(dtype),
        "PLACE": f"({extent} - 1 - i)" if reverse else "i",
        "READ": read_text(dtype, "x[at]"),
        "WRITE": write_text(dtype, "before" if exclusive else "sum"),
    }
    kind = storage_type(dtype)
    pointers = [f"const {kind} *x", f"{kind} *y"]
    source = _file(_BLOCKS if blocks else _LINES, sizes, pointers, values)
    kernel = DeviceKernel("nvrtc", "running_sums", source, THREADS, waits=True)
    grid = lines if blocks else ceildiv(lines, THREADS)
    return Made(kernel, (grid,), sizes.scalars)


def sortable(dtype: DType) -> bool:
    """Whether an element's rank fits the 32 bits that keys have for it."""
    return dtype.nbytes <= 4 and (dtype.is_float or dtype.is_integer)


def top_elements(
    dtype: DType,
    shape: tuple[Dim, Dim, Dim],
    count: int,
    *,
    largest: bool,
    sort: bool,
    ranges: Mapping[str, Range],
) -> Made:
    """The first ``count`` elements of the sorted middle axis, and their places as int64.

    Pointers are x, y and the places. ValueError for a type without 32-bit ranks, and for a sort of
    lines that are longer than a block's shared memory holds or of open length.
    """
    outer, length, inner = shape
    if not sortable(dtype):
        raise ValueError(f"{dtype.value} has no rank of 32 bits")
    size = 2
    if sort:
        if not isinstance(length, int) or length > LONGEST_SORT:
            raise ValueError(f"lines of {length} are not sorted in shared memory")
        while size < length:
            size *= 2
    sizes = SizeText(SizeText.needs_wide((product(shape),), ranges), ranges)
    rank = _FLOAT_RANK
    if not dtype.is_float:
        rank = _SIGNED_RANK if dtype.numpy.kind == "i" else _UNSIGNED_RANK
    values = {
        "RANK": rank,
        "LARGEST": "1" if largest else "0",
        "VALUE": value_type(dtype),
        "INNER": sizes(inner),
        "LENGTH": sizes(length),
        "COUNT": str(count),
        "SIZE": str(size),
    }
    values["READ_I"] = read_text(dtype, f"x[first + (ef_index)i * {values['INNER']}]")
    kind = storage_type(dtype)
    pointers = [f"const {kind} *x", f"{kind} *y", "int64_t *places"]
    source = _file(_KEYS + (_SORT if sort else _SEARCH), sizes, pointers, values)
    kernel = DeviceKernel("nvrtc", "top_elements", source, THREADS, waits=True)
    return Made(kernel, (outer * inner,), sizes.scalars)
