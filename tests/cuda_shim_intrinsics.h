// Vector types, arithmetic, atomics and matrix fragments as NVRTC has them built in.
#pragma once

#define SHIM_VECTOR(name, type, count_bytes) \
    struct __attribute__((aligned(count_bytes * 2))) name##2 { type x, y; }; \
    struct name##3 { type x, y, z; }; \
    struct __attribute__((aligned(count_bytes * 4 > 16 ? 16 : count_bytes * 4))) name##4 { \
        type x, y, z, w; \
    }; \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SHIM_VECTOR(char, signed char, 1)
SHIM_VECTOR(uchar, unsigned char, 1)
SHIM_VECTOR(short, short, 2)
SHIM_VECTOR(ushort, unsigned short, 2)
SHIM_VECTOR(int, int, 4)
SHIM_VECTOR(float, float, 4)
SHIM_VECTOR(longlong, long long, 8)
SHIM_VECTOR(ulonglong, unsigned long long, 8)
SHIM_VECTOR(double, double, 8)
struct __attribute__((aligned(8))) uint2 { unsigned x, y; };
struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// A GPU faults on an access that is not aligned to its own size; so does the shim.
template <class T> inline const T *shim_aligned(const T *pointer) {
    if ((uintptr_t)pointer % alignof(T)) shim_fail("an access that is not aligned"), shim_leave();
    return pointer;
}
template <class T> inline T __ldg(const T *p) { return *shim_aligned(p); }
template <class T> inline T __ldcs(const T *p) { return *shim_aligned(p); }
template <class T> inline T __ldcg(const T *p) { return *shim_aligned(p); }
template <class T> inline T __ldca(const T *p) { return *shim_aligned(p); }
template <class T> inline T __ldcv(const T *p) { return *shim_aligned(p); }
template <class T> inline T __ldlu(const T *p) { return *shim_aligned(p); }
template <class T> inline void __stcs(T *p, T v) { *(T *)shim_aligned(p) = v; }
template <class T> inline void __stcg(T *p, T v) { *(T *)shim_aligned(p) = v; }
template <class T> inline void __stwb(T *p, T v) { *(T *)shim_aligned(p) = v; }
template <class T> inline void __stwt(T *p, T v) { *(T *)shim_aligned(p) = v; }

// Overloads for float, which C++ keeps in its own namespace.
using std::abs, std::ceil, std::cos, std::erf, std::exp, std::fabs, std::floor, std::fma, std::fmax;
using std::fmin, std::fmod, std::isfinite, std::isinf, std::isnan, std::log, std::pow, std::rint;
using std::round, std::signbit, std::sin, std::sqrt, std::tan, std::tanh, std::trunc;

template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return (T)std::fmin((T)a, (T)b);
    else return (T)a < (T)b ? (T)a : (T)b;
}
template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return (T)std::fmax((T)a, (T)b);
    else return (T)a > (T)b ? (T)a : (T)b;
}

template <class To, class From> inline To shim_bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}
inline int __float_as_int(float v) { return shim_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return shim_bits<unsigned>(v); }
inline float __int_as_float(int v) { return shim_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return shim_bits<float>(v); }
inline long long __double_as_longlong(double v) { return shim_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return shim_bits<double>(v); }

inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }
// The C library declares functions of these names.
#define __expf(v) expf(v)
#define __exp10f(v) powf(10.0f, v)
#define __logf(v) logf(v)
#define __log2f(v) log2f(v)
#define __log10f(v) log10f(v)
#define __sinf(v) sinf(v)
#define __cosf(v) cosf(v)
#define __tanhf(v) tanhf(v)
#define __powf(a, b) powf(a, b)
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline float __frsqrt_rn(float v) { return 1.0f / sqrtf(v); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float v) { return v > 0 ? (v < 1 ? v : 1.0f) : 0.0f; }
inline float normcdff(float v) { return 0.5f * erfcf(-v * 0.70710678f); }
template <class T> inline T shim_saturated(double v, double low, double high, T least, T most) {
    return v != v ? 0 : v < low ? least : v > high ? most : (T)v;
}
inline int shim_to_int(double v) {
    return shim_saturated<int>(v, -2147483648.0, 2147483647.0, INT32_MIN, INT32_MAX);
}
inline int __float2int_rn(float v) { return shim_to_int(nearbyint((double)v)); }
inline int __float2int_rz(float v) { return shim_to_int(trunc((double)v)); }
inline int __float2int_rd(float v) { return shim_to_int(floor((double)v)); }
inline int __float2int_ru(float v) { return shim_to_int(ceil((double)v)); }
inline float __int2float_rn(int v) { return (float)v; }
inline float __uint2float_rn(unsigned v) { return (float)v; }
inline float __ll2float_rn(long long v) { return (float)v; }
inline float __double2float_rn(double v) { return (float)v; }

inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i)
        result |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (by & 31));
}
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += (int)(signed char)(a >> 8 * i) * (signed char)(b >> 8 * i);
    return c;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { shim_yield(); }
inline void __trap() { shim_fail("__trap"), shim_leave(); }

// ---------------------------------------------------------------------------------------------
// Atomics: nothing interrupts a fiber between a read and a write.
// ---------------------------------------------------------------------------------------------

template <class T> struct ShimSame { using type = T; };
template <class T> using shim_same = typename ShimSame<T>::type;
#define SHIM_ATOMIC(name, expression) \
    template <class T> inline T atomic##name(T *address, shim_same<T> v) { \
        T old = *shim_aligned(address); \
        *address = (T)(expression); \
        return old; \
    }
SHIM_ATOMIC(Add, old + v)
SHIM_ATOMIC(Sub, old - v)
SHIM_ATOMIC(Min, v < old ? v : old)
SHIM_ATOMIC(Max, v > old ? v : old)
SHIM_ATOMIC(Exch, v)
SHIM_ATOMIC(And, old & v)
SHIM_ATOMIC(Or, old | v)
SHIM_ATOMIC(Xor, old ^ v)
SHIM_ATOMIC(Inc, old >= v ? 0 : old + 1)
SHIM_ATOMIC(Dec, old == 0 || old > v ? v : old - 1)
template <class T> inline T atomicCAS(T *address, shim_same<T> expected, shim_same<T> v) {
    T old = *shim_aligned(address);
    if (old == expected) *address = v;
    return old;
}

// ---------------------------------------------------------------------------------------------
// Narrow floats by their bits, rounded half to even; NaN stays NaN.
// ---------------------------------------------------------------------------------------------

inline float shim_half_to_float(unsigned short h) {
    unsigned sign = (unsigned)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) return shim_bits<float>(sign | 0x7f800000u | fraction << 13);
    float magnitude = exponent ? ldexpf((float)(1024 + fraction), (int)exponent - 25)
                               : ldexpf((float)fraction, -24);
    return sign ? -magnitude : magnitude;
}
inline unsigned short shim_float_to_half(float v) {
    unsigned bits = shim_bits<unsigned>(v), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (unsigned short)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (unsigned short)(sign | 0x7c00);
    if (rest < 0x38800000) {
        float scaled = ldexpf(shim_bits<float>(rest), 24);
        return (unsigned short)(sign | (unsigned)nearbyintf(scaled));
    }
    rest += 0xfff + (rest >> 13 & 1);
    return (unsigned short)(sign | (rest - 0x38000000) >> 13);
}
inline float shim_bfloat16_to_float(unsigned short b) { return shim_bits<float>((unsigned)b << 16); }
inline unsigned short shim_float_to_bfloat16(float v) {
    unsigned bits = shim_bits<unsigned>(v);
    if ((bits & 0x7fffffff) > 0x7f800000) return (unsigned short)(bits >> 16 | 0x40);
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// ---------------------------------------------------------------------------------------------
// Matrix fragments (PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix")
// ---------------------------------------------------------------------------------------------

struct ShimFragments { unsigned a[4], b[2]; };

// d += a b, 16 x 8 x 16, as mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}; whole warps only.
inline void shim_mma_m16n8k16(float *d, const unsigned *a, const unsigned *b, bool bfloat16 = false) {
    ShimFragments mine, all[32];
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    shim_gather(mine, all);
    auto value = [bfloat16](unsigned pair, int half) {
        unsigned short bits = (unsigned short)(pair >> 16 * half);
        return bfloat16 ? shim_bfloat16_to_float(bits) : shim_half_to_float(bits);
    };
    int group = shim_lane() / 4, inner = shim_lane() % 4;
    for (int i = 0; i < 4; ++i) {
        int row = group + 8 * (i / 2), column = inner * 2 + i % 2;
        float sum = d[i];
        for (int k = 0; k < 16; ++k) {
            const ShimFragments &left = all[row % 8 * 4 + k % 8 / 2];
            const ShimFragments &right = all[column * 4 + k % 8 / 2];
            sum += value(left.a[row / 8 + 2 * (k / 8)], k % 2) * value(right.b[k / 8], k % 2);
        }
        d[i] = sum;
    }
}
// ldmatrix.sync.aligned.m8n8.x{count}{.trans}.shared.b16: `row` is this lane's address.
inline void shim_ldmatrix(unsigned *result, const void *row, int count, bool transposed = false) {
    const void *rows[32];
    shim_gather(row, rows);
    int lane = shim_lane();
    for (int i = 0; i < count; ++i) {
        unsigned short pair[2];
        for (int half = 0; half < 2; ++half) {
            int r = transposed ? lane % 4 * 2 + half : lane / 4;
            int c = transposed ? lane / 4 : lane % 4 * 2 + half;
            if ((uintptr_t)rows[8 * i + r] % 16) shim_fail("a row of ldmatrix that is not aligned");
            pair[half] = ((const unsigned short *)rows[8 * i + r])[c];
        }
        result[i] = (unsigned)pair[1] << 16 | pair[0];
    }
}
