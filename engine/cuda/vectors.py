"""CUDA C text that moves several neighbouring elements of any type by accesses of up to 16 bytes.

``ef_kind_float16`` and its neighbours stand for element types: ``memory`` is the element in memory,
``value`` what carries it in arithmetic. Elements travel as 32-bit words and are decoded where they
are used, so that many loads can be in flight with few registers.
"""

from __future__ import annotations

from engine.cuda.c_expression import read_text, storage_type, value_type, write_text
from engine.ir.types import DType

__all__ = ["VECTORS", "kind_text", "word_count"]

_KINDS = [
    *(DType.FLOAT32, DType.FLOAT64, DType.FLOAT16, DType.BFLOAT16, DType.BOOL),
    *(DType.INT8, DType.INT16, DType.INT32, DType.INT64),
    *(DType.UINT8, DType.UINT16, DType.UINT32, DType.UINT64),
]

_MOVES = r"""
template <int bytes> EF_FUNCTION void ef_fetch(const void *p, uint32_t *w) {
  if constexpr (bytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < bytes / 16; ++i) {
      const uint4 v = ((const uint4 *)p)[i];
      w[4 * i] = v.x; w[4 * i + 1] = v.y; w[4 * i + 2] = v.z; w[4 * i + 3] = v.w;
    }
  } else if constexpr (bytes == 8) {
    const uint2 v = *(const uint2 *)p;
    w[0] = v.x; w[1] = v.y;
  } else if constexpr (bytes == 4) w[0] = *(const uint32_t *)p;
  else if constexpr (bytes == 2) w[0] = *(const uint16_t *)p;
  else w[0] = *(const uint8_t *)p;
}
template <int bytes> EF_FUNCTION void ef_put(void *p, const uint32_t *w) {
  if constexpr (bytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < bytes / 16; ++i)
      ((uint4 *)p)[i] = make_uint4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);
  } else if constexpr (bytes == 8) *(uint2 *)p = make_uint2(w[0], w[1]);
  else if constexpr (bytes == 4) *(uint32_t *)p = w[0];
  else if constexpr (bytes == 2) *(uint16_t *)p = (uint16_t)w[0];
  else *(uint8_t *)p = (uint8_t)w[0];
}

#ifdef __CUDACC__
EF_FUNCTION uint64_t ef_bits(double x) { return (uint64_t)__double_as_longlong(x); }
EF_FUNCTION double ef_double(uint64_t u) { return __longlong_as_double((int64_t)u); }
#else
EF_FUNCTION uint64_t ef_bits(double x) { uint64_t u; memcpy(&u, &x, 8); return u; }
EF_FUNCTION double ef_double(uint64_t u) { double x; memcpy(&x, &u, 8); return x; }
#endif
template <class T> struct ef_cell {
  EF_FUNCTION T from(uint64_t u) { return (T)u; }
  EF_FUNCTION uint64_t to(T x) { return (uint64_t)x; }
};
template <> struct ef_cell<float> {
  EF_FUNCTION float from(uint64_t u) { return ef_float((uint32_t)u); }
  EF_FUNCTION uint64_t to(float x) { return ef_bits(x); }
};
template <> struct ef_cell<double> {
  EF_FUNCTION double from(uint64_t u) { return ef_double(u); }
  EF_FUNCTION uint64_t to(double x) { return ef_bits(x); }
};

/* The values of N neighbouring elements, from and to words. */
template <class K, int N> EF_FUNCTION void ef_decode(const uint32_t *w, typename K::value *x) {
  typedef typename K::memory M;
  const int bytes = sizeof(M), each = bytes < 4 ? 4 / bytes : 1;
  if constexpr (K::pairs && N > 1) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) K::unpack(w[i], x[2 * i], x[2 * i + 1]);
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      if constexpr (bytes == 8)
        x[e] = K::read(ef_cell<M>::from(w[2 * e] | (uint64_t)w[2 * e + 1] << 32));
      else if constexpr (bytes == 4) x[e] = K::read(ef_cell<M>::from(w[e]));
      else x[e] = K::read((M)(w[e / each] >> 8 * bytes * (e % each)));
    }
  }
}
template <class K, int N> EF_FUNCTION void ef_encode(const typename K::value *x, uint32_t *w) {
  typedef typename K::memory M;
  const int bytes = sizeof(M), each = bytes < 4 ? 4 / bytes : 1;
  if constexpr (K::pairs && N > 1) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) w[i] = K::pack(x[2 * i], x[2 * i + 1]);
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const uint64_t u = ef_cell<M>::to(K::write(x[e]));
      if constexpr (bytes == 8) { w[2 * e] = (uint32_t)u; w[2 * e + 1] = (uint32_t)(u >> 32); }
      else if constexpr (bytes == 4) w[e] = (uint32_t)u;
      else {
        const uint32_t part = ((uint32_t)u & ((1u << 8 * bytes) - 1u)) << 8 * bytes * (e % each);
        w[e / each] = e % each ? w[e / each] | part : part;
      }
    }
  }
}
/* Vectors at the end of an array, of which only the first `count` elements exist. */
template <class K, int N> EF_FUNCTION void ef_fetch_part(const void *p, int count, uint32_t *w) {
  typename K::value x[N];
#pragma unroll
  for (int e = 0; e < N; ++e)
    x[e] = e < count ? K::read(((const typename K::memory *)p)[e]) : typename K::value(0);
  ef_encode<K, N>(x, w);
}
template <class K, int N>
EF_FUNCTION void ef_put_part(void *p, int count, const typename K::value *x) {
#pragma unroll
  for (int e = 0; e < N; ++e)
    if (e < count) ((typename K::memory *)p)[e] = K::write(x[e]);
}
"""


def _kind(dtype: DType) -> str:
    pairs = dtype in (DType.FLOAT16, DType.BFLOAT16)
    memory, value = storage_type(dtype), value_type(dtype)
    name = dtype.value if pairs else "float16"  # the others never call it
    return (
        f"struct ef_kind_{dtype.value} {{\n"
        f"  typedef {memory} memory; typedef {value} value; enum {{ pairs = {int(pairs)} }};\n"
        f"  EF_FUNCTION value read(memory m) {{ return {read_text(dtype, 'm')}; }}\n"
        f"  EF_FUNCTION memory write(value v) {{ return {write_text(dtype, 'v')}; }}\n"
        + (
            f"  EF_FUNCTION void unpack(uint32_t w, float &a, float &b) {{\n"
            f"    ef_unpack_{name}(w, a, b); }}\n"
            f"  EF_FUNCTION uint32_t pack(float a, float b) {{\n"
            f"    return ef_pack_{name}(a, b); }}\n"
            if pairs
            else ""
        )
        + "};\n"
    )


#: To be put behind the prelude of `engine.cuda.c_expression`.
VECTORS = "".join(map(_kind, _KINDS)) + _MOVES


def kind_text(dtype: DType) -> str:
    """The C++ type that stands for an element type."""
    storage_type(dtype)
    return f"ef_kind_{dtype.value}"


def word_count(dtype: DType, width: int) -> int:
    """The 32-bit words that hold ``width`` elements."""
    return max(1, dtype.nbytes * width // 4)
