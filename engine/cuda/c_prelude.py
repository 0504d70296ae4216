"""CUDA C text that printed expressions rest on: conversions, saturation, integers, hardware.

Compiled by NVRTC it needs no header; what is particular to the device stands behind `__CUDACC__`
with a plain C++17 form beside it, so that a kernel also runs on a processor. Transcendental
functions are CUDA's own (within 2 units in the last place of float32), division and square root
are rounded correctly.
"""

from __future__ import annotations

__all__ = ["PRELUDE"]

_HEAD = r"""
#ifndef EF_PRELUDE
#define EF_PRELUDE
#ifdef __CUDACC__
#pragma nv_diag_suppress 177 /* functions that a kernel does not use */
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define EF_FUNCTION static __device__ __forceinline__
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif
#ifndef INT64_MIN
#define INT64_MIN (-9223372036854775807ll - 1)
#endif
EF_FUNCTION uint32_t ef_bits(float x) { return __float_as_uint(x); }
EF_FUNCTION float ef_float(uint32_t u) { return __uint_as_float(u); }
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#define EF_FUNCTION static inline __attribute__((always_inline, unused))
EF_FUNCTION uint32_t ef_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
EF_FUNCTION float ef_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
#endif

/* Programmatic dependent launch: until ef_wait returns, kernels before this one may still write;
   after ef_launch_dependents of all blocks the next kernel may begin up to its own ef_wait. */
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
EF_FUNCTION void ef_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#ifdef EF_QUIET /* what comes next may not wait */
EF_FUNCTION void ef_launch_dependents() {}
#else
EF_FUNCTION void ef_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#endif
#else
EF_FUNCTION void ef_wait() {}
EF_FUNCTION void ef_launch_dependents() {}
#endif
"""

_FLOAT = r"""
#ifdef __CUDACC__
EF_FUNCTION float ef_minimum(float a, float b) {
  float y; asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b)); return y; }
EF_FUNCTION float ef_maximum(float a, float b) {
  float y; asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b)); return y; }
/* within 2 units in the last place for divisors of magnitude up to 2**126 */
EF_FUNCTION float ef_near_quotient(float a, float b) { return __fdividef(a, b); }
EF_FUNCTION float ef_rsqrt(float x) { return rsqrtf(x); }
EF_FUNCTION double ef_rsqrt(double x) { return rsqrt(x); }
#else
EF_FUNCTION float ef_minimum(float a, float b) { return (a < b) | (a != a) ? a : b; }
EF_FUNCTION float ef_maximum(float a, float b) { return (a > b) | (a != a) ? a : b; }
EF_FUNCTION float ef_near_quotient(float a, float b) { return a / b; }
EF_FUNCTION float ef_rsqrt(float x) { return 1.0f / sqrtf(x); }
EF_FUNCTION double ef_rsqrt(double x) { return 1.0 / sqrt(x); }
#endif
EF_FUNCTION float ef_sigmoid(float x) {
  float e = expf(-fabsf(x));
  return ef_near_quotient(x >= 0.0f ? 1.0f : e, 1.0f + e);
}
EF_FUNCTION float ef_sign(float x) { return x != x ? x : (float)((x > 0.0f) - (x < 0.0f)); }
EF_FUNCTION float ef_floor_mod(float a, float b) {
  float m = fmodf(a, b);
  float moved = (b < 0.0f) != (m < 0.0f) ? m + b : m;
  return m == 0.0f ? copysignf(0.0f, b) : moved;
}
EF_FUNCTION double ef_minimum(double a, double b) { return (a < b) | (a != a) ? a : b; }
EF_FUNCTION double ef_maximum(double a, double b) { return (a > b) | (a != a) ? a : b; }
EF_FUNCTION double ef_sigmoid(double x) {
  double e = exp(-fabs(x));
  return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}
EF_FUNCTION double ef_sign(double x) { return x != x ? x : (double)((x > 0.0) - (x < 0.0)); }
EF_FUNCTION double ef_floor_mod(double a, double b) {
  double m = fmod(a, b);
  double moved = (b < 0.0) != (m < 0.0) ? m + b : m;
  return m == 0.0 ? copysign(0.0, b) : moved;
}
"""

_NARROW = r"""
#ifdef __CUDACC__
EF_FUNCTION float ef_from_float16(uint16_t h) {
  float x; asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h)); return x; }
EF_FUNCTION uint16_t ef_to_float16(float x) {
  uint16_t h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
EF_FUNCTION uint16_t ef_to_bfloat16(float x) {
  uint16_t h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
/* Two values in one word, the first in its low half. */
EF_FUNCTION uint32_t ef_pack_float16(float low, float high) {
  uint32_t w; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low)); return w; }
EF_FUNCTION uint32_t ef_pack_bfloat16(float low, float high) {
  uint32_t w; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low)); return w; }
EF_FUNCTION void ef_unpack_float16(uint32_t w, float &low, float &high) {
  asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
      : "=f"(low), "=f"(high) : "r"(w)); }
#else
EF_FUNCTION float ef_from_float16(uint16_t h) {
  uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13, sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t number = ef_bits(ef_float(magnitude) * 0x1p+112f);
  uint32_t special = magnitude | 0x7f800000u;
  return ef_float((magnitude >= 0x0f800000u ? special : number) | sign);
}
EF_FUNCTION uint16_t ef_to_float16(float x) {
  uint32_t u = ef_bits(x), sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  uint32_t normal = (u + 0xc8000fffu + (u >> 13 & 1u)) >> 13;
  uint32_t subnormal = ef_bits(ef_float(u) + 0.5f) - 0x3f000000u;
  uint32_t h = u < 0x38800000u ? subnormal : normal;
  h = u >= 0x47800000u ? 0x7c00u : h;
  h = u > 0x7f800000u ? 0x7e00u : h;
  return (uint16_t)(h | sign);
}
EF_FUNCTION uint16_t ef_to_bfloat16(float x) {
  uint32_t u = ef_bits(x), rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  return (uint16_t)(x != x ? u >> 16 | 0x40u : rounded);
}
EF_FUNCTION uint32_t ef_pack_float16(float low, float high) {
  return ef_to_float16(low) | (uint32_t)ef_to_float16(high) << 16; }
EF_FUNCTION uint32_t ef_pack_bfloat16(float low, float high) {
  return ef_to_bfloat16(low) | (uint32_t)ef_to_bfloat16(high) << 16; }
EF_FUNCTION void ef_unpack_float16(uint32_t w, float &low, float &high) {
  low = ef_from_float16((uint16_t)w); high = ef_from_float16((uint16_t)(w >> 16)); }
#endif
EF_FUNCTION float ef_from_bfloat16(uint16_t h) { return ef_float((uint32_t)h << 16); }
EF_FUNCTION void ef_unpack_bfloat16(uint32_t w, float &low, float &high) {
  low = ef_float(w << 16); high = ef_float(w & 0xffff0000u); }
EF_FUNCTION float ef_round_float16(float x) { return ef_from_float16(ef_to_float16(x)); }
EF_FUNCTION float ef_round_bfloat16(float x) { return ef_from_bfloat16(ef_to_bfloat16(x)); }
/* double to float, rounded to odd, so that a second rounding to fewer bits is right */
EF_FUNCTION float ef_round_to_odd(double x) {
  float f = (float)x;
  uint32_t u = ef_bits(f);
  int even = !(u & 1u) && (double)f != x && x == x && fabs(x) <= 0x1.fffffep+127;
  uint32_t odd = fabs((double)f) > fabs(x) ? u - 1u : u + 1u;
  return ef_float(even ? odd : u);
}
"""

# Division truncates, gives 0 for a zero divisor and wraps for the least number by -1.
_INTEGER = r"""
template <int bytes> struct ef_word { typedef uint32_t type; };
template <> struct ef_word<8> { typedef uint64_t type; };
#define EF_WORD typename ef_word<sizeof(T)>::type
#define EF_SIGNED ((T)-1 < (T)1)
template <class T> EF_FUNCTION T ef_integer_min(T a, T b) { return a < b ? a : b; }
template <class T> EF_FUNCTION T ef_integer_max(T a, T b) { return a > b ? a : b; }
template <class T> EF_FUNCTION T ef_integer_negative(T a) { return (T)((EF_WORD)0 - (EF_WORD)a); }
template <class T> EF_FUNCTION T ef_integer_abs(T a) {
  return EF_SIGNED && a < (T)1 ? ef_integer_negative<T>(a) : a; }
template <class T> EF_FUNCTION T ef_integer_sign(T a) {
  return a == 0 ? (T)0 : EF_SIGNED && a < (T)1 ? (T)-1 : (T)1; }
template <class T> EF_FUNCTION T ef_integer_divide(T a, T b) {
  if (EF_SIGNED && b == (T)-1) return ef_integer_negative<T>(a);
  return b == 0 ? (T)0 : (T)(a / (b == 0 ? (T)1 : b)); }
template <class T> EF_FUNCTION T ef_integer_fmod(T a, T b) {
  if (EF_SIGNED && b == (T)-1) return (T)0;
  return b == 0 ? (T)0 : (T)(a % (b == 0 ? (T)1 : b)); }
template <class T> EF_FUNCTION T ef_integer_floor_mod(T a, T b) {
  T m = ef_integer_fmod<T>(a, b);
  return EF_SIGNED && m != 0 && (m < (T)1) != (b < (T)1) ? (T)(m + b) : m; }
template <class T> EF_FUNCTION T ef_integer_shift_left(T a, T b) {
  const int bits = 8 * (int)sizeof(T);
  const bool inside = (uint64_t)(int64_t)b < (uint64_t)bits;
  return inside ? (T)((EF_WORD)a << ((int)b & (bits - 1))) : (T)0; }
template <class T> EF_FUNCTION T ef_integer_shift_right(T a, T b) {
  const int bits = 8 * (int)sizeof(T);
  const bool inside = (uint64_t)(int64_t)b < (uint64_t)bits;
  if (!inside) return EF_SIGNED && a < (T)1 && a != 0 ? (T)-1 : (T)0;
  return (T)(a >> ((int)b & (bits - 1))); }
template <class T> EF_FUNCTION T ef_integer_power(T a, T b) {
  EF_WORD result = 1, factor = (EF_WORD)a;
  if (EF_SIGNED && b < (T)1 && b != 0)
    return a == 1 ? (T)1 : a == (T)-1 ? (T)(b & 1 ? -1 : 1) : (T)0;
  for (; b != 0; b = (T)(b >> 1)) { if (b & 1) result *= factor; factor *= factor; }
  return (T)result; }

/* Float to integer: truncated, saturated, 0 for NaN; above and below are exact powers of two. */
template <class T, class F> EF_FUNCTION T ef_saturate(F x, F below, F above, T least, T most) {
  const bool inside = x > below && x < above;
  T y = (T)(inside ? x : (F)0);
  return inside ? y : x >= above ? most : x <= below ? least : (T)0; }
#define EF_SATURATE(T, name, below, above, least, most)                                          \
EF_FUNCTION T ef_double_to_##name(double x) {                                                    \
  return ef_saturate<T, double>(x, below, above, least, most); }
EF_SATURATE(int8_t, i8, -0x1p+7, 0x1p+7, -128, 127)
EF_SATURATE(int16_t, i16, -0x1p+15, 0x1p+15, -32768, 32767)
EF_SATURATE(int32_t, i32, -0x1p+31, 0x1p+31, -2147483647 - 1, 2147483647)
EF_SATURATE(int64_t, i64, -0x1p+63, 0x1p+63, INT64_MIN, 9223372036854775807ll)
EF_SATURATE(uint8_t, u8, 0.0, 0x1p+8, 0, 255)
EF_SATURATE(uint16_t, u16, 0.0, 0x1p+16, 0, 65535)
EF_SATURATE(uint32_t, u32, 0.0, 0x1p+32, 0u, 4294967295u)
EF_SATURATE(uint64_t, u64, 0.0, 0x1p+64, 0ull, 18446744073709551615ull)
#ifdef __CUDACC__
EF_FUNCTION int32_t ef_float_to_i32(float x) { return __float2int_rz(x); }
EF_FUNCTION uint32_t ef_float_to_u32(float x) { return __float2uint_rz(x); }
#else
EF_FUNCTION int32_t ef_float_to_i32(float x) { return ef_double_to_i32(x); }
EF_FUNCTION uint32_t ef_float_to_u32(float x) { return ef_double_to_u32(x); }
#endif
EF_FUNCTION int32_t ef_clamped(float x, int32_t least, int32_t most) {
  int32_t y = ef_float_to_i32(x);
  y = y < least ? least : y;
  return y > most ? most : y; }
EF_FUNCTION int8_t ef_float_to_i8(float x) { return (int8_t)ef_clamped(x, -128, 127); }
EF_FUNCTION int16_t ef_float_to_i16(float x) { return (int16_t)ef_clamped(x, -32768, 32767); }
EF_FUNCTION uint8_t ef_float_to_u8(float x) { return (uint8_t)ef_clamped(x, 0, 255); }
EF_FUNCTION uint16_t ef_float_to_u16(float x) { return (uint16_t)ef_clamped(x, 0, 65535); }
EF_FUNCTION int64_t ef_float_to_i64(float x) {
  return ef_saturate<int64_t, float>(x, -0x1p+63f, 0x1p+63f, INT64_MIN, 9223372036854775807ll); }
EF_FUNCTION uint64_t ef_float_to_u64(float x) {
  return ef_saturate<uint64_t, float>(x, 0.0f, 0x1p+64f, 0ull, 18446744073709551615ull); }
#endif
"""

#: To be put at the head of every CUDA C file that holds printed expressions.
PRELUDE = _HEAD + _FLOAT + _NARROW + _INTEGER
