"""C text that printed expressions rest on: branch-free float functions, conversions, integers.

All float32 functions are straight-line code with selects, so that a compiler turns a loop over them
into vector code; they keep NaN, infinities and subnormal numbers. The polynomials are weighted
least-squares fits of this project, each with a relative error far below half a unit in the last
place; the whole functions are within 3 units. Double precision goes to libm.
"""

from __future__ import annotations

__all__ = ["PRELUDE"]

_HEAD = r"""
#ifndef EF_PRELUDE
#define EF_PRELUDE
#include <math.h>
#include <stdint.h>
#include <string.h>
#define EF_FUNCTION static inline __attribute__((always_inline, unused))

EF_FUNCTION uint32_t ef_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
EF_FUNCTION float ef_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
"""

_FLOAT = r"""
/* r and n of x = n ln 2 + r, n given as the bits of an integer; |x| must be below 2**21. */
EF_FUNCTION float ef_reduce(float x, int32_t *n) {
  float shifted = x * 0x1.715476p+0f + 0x1.8p+23f;
  float whole = shifted - 0x1.8p+23f;
  *n = (int32_t)(ef_bits(shifted) - 0x4b400000u);
  return (x - whole * 0x1.62e400p-1f) - whole * 0x1.7f7d1cp-20f;
}
/* (exp(r) - 1 - r) / r**2 for |r| <= ln 2 / 2 */
EF_FUNCTION float ef_exp_tail(float r) {
  float p = 0x1.6dbc5ap-10f;
  p = p * r + 0x1.12414ap-7f;
  p = p * r + 0x1.555454p-5f;
  p = p * r + 0x1.555486p-3f;
  return p * r + 0.5f;
}
EF_FUNCTION float ef_power_of_two(int32_t n) { return ef_float((uint32_t)(n + 127) << 23); }
EF_FUNCTION float ef_exp(float x) {
  int32_t n;
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  float r = ef_reduce(x, &n);
  float y = (r * r) * ef_exp_tail(r) + r + 1.0f;
  int32_t half = n >> 1;
  return y * ef_power_of_two(half) * ef_power_of_two(n - half);
}
EF_FUNCTION float ef_expm1(float x) {
  int32_t n;
  float z = x < -30.0f ? -30.0f : x;
  z = z > 89.0f ? 89.0f : z;
  float r = ef_reduce(z, &n);
  float y = (r * r) * ef_exp_tail(r) + r;
  /* two steps, because 2**128 is no float */
  float scale = ef_power_of_two(n - 1);
  float large = (y * scale + (scale - 0.5f)) * 2.0f;
  return x == 0.0f ? x : large;
}
/* log of a positive normal number times 2**-extra */
EF_FUNCTION float ef_log_normal(float x, float extra) {
  uint32_t u = ef_bits(x) - 0x3f3504f3u;
  float e = (float)((int32_t)u >> 23) - extra;
  float f = ef_float((u & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 0x1.145612p-4f;
  p = p * f - 0x1.de3bb4p-4f;
  p = p * f + 0x1.e6f0f0p-4f;
  p = p * f - 0x1.fc2220p-4f;
  p = p * f + 0x1.233760p-3f;
  p = p * f - 0x1.555c4cp-3f;
  p = p * f + 0x1.99a4b6p-3f;
  p = p * f - 0x1.000006p-2f;
  p = p * f + 0x1.555548p-2f;
  float s = f * f;
  float low = e * 0x1.7f7d1cp-20f + s * (f * p);
  return (f + (low - 0.5f * s)) + e * 0x1.62e400p-1f;
}
EF_FUNCTION float ef_log(float x) {
  int small = x < 0x1p-126f;
  float y = ef_log_normal(small ? x * 0x1p+24f : x, small ? 24.0f : 0.0f);
  y = x == 0.0f ? -INFINITY : y;
  y = x == INFINITY ? x : y;
  y = x < 0.0f ? NAN : y;
  return x != x ? x : y;
}
EF_FUNCTION float ef_log1p(float x) {
  float u = 1.0f + x;
  float lost = (x - (u - 1.0f)) / u; /* what rounding u took away */
  float y = ef_log_normal(u, 0.0f) + lost;
  y = u == 1.0f ? x : y;
  y = x == -1.0f ? -INFINITY : y;
  y = x == INFINITY ? x : y;
  y = x < -1.0f ? NAN : y;
  return x != x ? x : y;
}
EF_FUNCTION float ef_sigmoid(float x) {
  float e = ef_exp(-__builtin_fabsf(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}
EF_FUNCTION float ef_tanh(float x) {
  float a = __builtin_fabsf(x), s = x * x;
  float p = 0x1.0e9e3ap-9f;
  p = p * s - 0x1.092836p-7f;
  p = p * s + 0x1.62fb36p-6f;
  p = p * s - 0x1.b9e18ep-5f;
  p = p * s + 0x1.111026p-3f;
  p = p * s - 0x1.555552p-2f;
  float near = x + x * (s * p);
  float far = __builtin_copysignf(1.0f - 2.0f / (ef_exp(a + a) + 1.0f), x);
  far = x != x ? x : far;
  return a < 0.65f ? near : far;
}
EF_FUNCTION float ef_erf(float x) {
  float a = __builtin_fabsf(x), s = x * x;
  float p = 0x1.4ae4aap-14f;
  p = p * s - 0x1.a485dep-11f;
  p = p * s + 0x1.5419f4p-8f;
  p = p * s - 0x1.b7fbb4p-6f;
  p = p * s + 0x1.ce2d20p-4f;
  p = p * s - 0x1.81273ep-2f;
  p = p * s + 0x1.06eba8p-3f;
  float near = x + x * p;
  float t = a > 4.0f ? 4.0f : a;
  /* erfc(t) = exp(-q) */
  float q = 0x1.67cd10p-16f;
  q = q * t - 0x1.cbd5b6p-12f;
  q = q * t + 0x1.12a71ap-8f;
  q = q * t - 0x1.9c6a5ap-6f;
  q = q * t + 0x1.bbd960p-4f;
  q = q * t + 0x1.443c46p-1f;
  q = q * t + 0x1.212a52p+0f;
  q = q * t - 0x1.7ea79cp-13f;
  float far = __builtin_copysignf(1.0f - ef_exp(-q), x);
  return (a < 1.0f) | (x != x) ? near : far;
}
EF_FUNCTION float ef_minimum(float a, float b) { return (a < b) | (a != a) ? a : b; }
EF_FUNCTION float ef_maximum(float a, float b) { return (a > b) | (a != a) ? a : b; }
EF_FUNCTION float ef_sign(float x) { return x != x ? x : (float)((x > 0.0f) - (x < 0.0f)); }
EF_FUNCTION float ef_floor_mod(float a, float b) {
  float m = fmodf(a, b);
  float moved = (b < 0.0f) != (m < 0.0f) ? m + b : m;
  return m == 0.0f ? __builtin_copysignf(0.0f, b) : moved;
}
"""

_DOUBLE = r"""
EF_FUNCTION double ef_minimum_d(double a, double b) { return (a < b) | (a != a) ? a : b; }
EF_FUNCTION double ef_maximum_d(double a, double b) { return (a > b) | (a != a) ? a : b; }
EF_FUNCTION double ef_sign_d(double x) { return x != x ? x : (double)((x > 0.0) - (x < 0.0)); }
EF_FUNCTION double ef_sigmoid_d(double x) {
  double e = exp(-__builtin_fabs(x));
  return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}
EF_FUNCTION double ef_floor_mod_d(double a, double b) {
  double m = fmod(a, b);
  double moved = (b < 0.0) != (m < 0.0) ? m + b : m;
  return m == 0.0 ? __builtin_copysign(0.0, b) : moved;
}
"""

_NARROW = r"""
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
EF_FUNCTION float ef_from_bfloat16(uint16_t h) { return ef_float((uint32_t)h << 16); }
EF_FUNCTION uint16_t ef_to_bfloat16(float x) {
  uint32_t u = ef_bits(x), rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  return (uint16_t)(x != x ? u >> 16 | 0x40u : rounded);
}
EF_FUNCTION float ef_round_float16(float x) { return ef_from_float16(ef_to_float16(x)); }
EF_FUNCTION float ef_round_bfloat16(float x) { return ef_from_bfloat16(ef_to_bfloat16(x)); }
/* double to float, rounded to odd, so that a second rounding to fewer bits is right */
EF_FUNCTION float ef_round_to_odd(double x) {
  float f = (float)x;
  uint32_t u = ef_bits(f);
  int even = !(u & 1u) && (double)f != x && x == x && __builtin_fabs(x) <= 0x1.fffffep+127;
  uint32_t odd = __builtin_fabs((double)f) > __builtin_fabs(x) ? u - 1u : u + 1u;
  return ef_float(even ? odd : u);
}
"""

# Division truncates, gives 0 for a zero divisor and wraps for the least number by -1.
_INTEGER = r"""
#define EF_COMMON(T, U, name, bits)                                                              \
EF_FUNCTION T ef_min_##name(T a, T b) { return a < b ? a : b; }                                 \
EF_FUNCTION T ef_max_##name(T a, T b) { return a > b ? a : b; }                                 \
EF_FUNCTION T ef_shift_left_##name(T a, T b) {                                                  \
  return b >= 0 && b < bits ? (T)((U)a << (b & (bits - 1))) : (T)0; }                           \
EF_FUNCTION T ef_power_##name(T a, T b) {                                                       \
  U result = 1, factor = (U)a;                                                                  \
  if (b < 0) return a == 1 ? 1 : a == (T)-1 ? (b & 1 ? a : 1) : 0;                              \
  for (; b; b >>= 1) { if (b & 1) result *= factor; factor *= factor; }                         \
  return (T)result; }
#define EF_SIGNED(T, U, name, bits)                                                              \
EF_COMMON(T, U, name, bits)                                                                     \
EF_FUNCTION T ef_abs_##name(T a) { return (T)(a < 0 ? (U)0 - (U)a : (U)a); }                    \
EF_FUNCTION T ef_sign_##name(T a) { return (T)((a > 0) - (a < 0)); }                            \
EF_FUNCTION T ef_divide_##name(T a, T b) {                                                      \
  return b == 0 ? (T)0 : b == -1 ? (T)((U)0 - (U)a) : (T)(a / (b == 0 || b == -1 ? 1 : b)); }   \
EF_FUNCTION T ef_fmod_##name(T a, T b) {                                                        \
  return b == 0 || b == -1 ? (T)0 : (T)(a % (b == 0 || b == -1 ? 1 : b)); }                     \
EF_FUNCTION T ef_floor_mod_##name(T a, T b) {                                                   \
  T m = ef_fmod_##name(a, b);                                                                   \
  return m != 0 && (m < 0) != (b < 0) ? (T)(m + b) : m; }                                       \
EF_FUNCTION T ef_shift_right_##name(T a, T b) {                                                 \
  return (T)(a >> (b >= 0 && b < bits ? b : bits - 1)); }
#define EF_UNSIGNED(T, U, name, bits)                                                            \
EF_COMMON(T, U, name, bits)                                                                     \
EF_FUNCTION T ef_abs_##name(T a) { return a; }                                                  \
EF_FUNCTION T ef_sign_##name(T a) { return a != 0; }                                            \
EF_FUNCTION T ef_divide_##name(T a, T b) { return b == 0 ? (T)0 : (T)(a / (b == 0 ? 1 : b)); }  \
EF_FUNCTION T ef_fmod_##name(T a, T b) { return b == 0 ? (T)0 : (T)(a % (b == 0 ? 1 : b)); }    \
EF_FUNCTION T ef_floor_mod_##name(T a, T b) { return ef_fmod_##name(a, b); }                    \
EF_FUNCTION T ef_shift_right_##name(T a, T b) {                                                 \
  return b < bits ? (T)(a >> (b & (bits - 1))) : (T)0; }
EF_SIGNED(int8_t, uint32_t, i8, 8)
EF_SIGNED(int16_t, uint32_t, i16, 16)
EF_SIGNED(int32_t, uint32_t, i32, 32)
EF_SIGNED(int64_t, uint64_t, i64, 64)
EF_UNSIGNED(uint8_t, uint32_t, u8, 8)
EF_UNSIGNED(uint16_t, uint32_t, u16, 16)
EF_UNSIGNED(uint32_t, uint32_t, u32, 32)
EF_UNSIGNED(uint64_t, uint64_t, u64, 64)

/* Float to integer: truncated, saturated, 0 for NaN. I is a signed type that the clamped value
   fits; above and below are exact powers of two. */
#define EF_SATURATE(T, I, name, below, above, least, most)                                       \
EF_FUNCTION T ef_float_to_##name(float x) {                                                     \
  int inside = x > below && x < above;                                                          \
  T y = (T)(I)(inside ? x : 0.0f);                                                              \
  return inside ? y : x >= above ? most : x <= below ? least : (T)0; }                          \
EF_FUNCTION T ef_double_to_##name(double x) {                                                   \
  int inside = x > below && x < above;                                                          \
  T y = (T)(I)(inside ? x : 0.0);                                                               \
  return inside ? y : x >= above ? most : x <= below ? least : (T)0; }
EF_SATURATE(int8_t, int32_t, i8, -0x1p+7f, 0x1p+7f, INT8_MIN, INT8_MAX)
EF_SATURATE(int16_t, int32_t, i16, -0x1p+15f, 0x1p+15f, INT16_MIN, INT16_MAX)
EF_SATURATE(int32_t, int32_t, i32, -0x1p+31f, 0x1p+31f, INT32_MIN, INT32_MAX)
EF_SATURATE(int64_t, int64_t, i64, -0x1p+63f, 0x1p+63f, INT64_MIN, INT64_MAX)
EF_SATURATE(uint8_t, int32_t, u8, 0.0f, 0x1p+8f, 0, UINT8_MAX)
EF_SATURATE(uint16_t, int32_t, u16, 0.0f, 0x1p+16f, 0, UINT16_MAX)
EF_SATURATE(uint32_t, int64_t, u32, 0.0f, 0x1p+32f, 0, UINT32_MAX)
EF_SATURATE(uint64_t, uint64_t, u64, 0.0f, 0x1p+64f, 0, UINT64_MAX)
#endif
"""

#: To be put at the head of every C file that holds printed expressions.
PRELUDE = _HEAD + _FLOAT + _DOUBLE + _NARROW + _INTEGER
