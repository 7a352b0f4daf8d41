#include "sum.h"

#include <algorithm>
#include <cstdint>

#include "tokenweave.h"

namespace tokenweave::shm {
namespace {

#define INLINE inline __attribute__((always_inline))

// `out` may be one of the parts, but then element by element: no iteration reads what another wrote.
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

// Each type: how it is stored, what it is summed in, and the way between the two. The conversions are written
// on bits, so that every instruction set gives the same ones (AVX512_BF16's own rounding flushes denormals to
// zero).
template <typename T>
struct Plain {
    using Stored = T;
    using Wide = T;
    static INLINE Wide widen(Stored value) { return value; }
    static INLINE Stored narrow(Wide value) { return value; }
};

INLINE uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
INLINE float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// Every NaN comes out as one bit pattern: which operand's payload survives a sum is up to the compiler.
struct Float32 : Plain<float> {
    static INLINE float narrow(float value) {
        return (bits_of(value) & 0x7fffffff) > 0x7f800000 ? float_of(0x7fc00000) : value;
    }
};

struct Bfloat16 {
    using Stored = uint16_t;
    using Wide = float;
    static INLINE Wide widen(Stored value) { return float_of(uint32_t(value) << 16); }
    static INLINE Stored narrow(Wide value) {
        const uint32_t bits = bits_of(value);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return Stored((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
    }
};

struct Float16 {
    using Stored = uint16_t;
    using Wide = float;
    static INLINE Wide widen(Stored value) {
        const uint32_t sign = uint32_t(value & 0x8000) << 16, magnitude = value & 0x7fff;
        const uint32_t normal = (magnitude << 13) + 0x38000000;
        const uint32_t special = (magnitude << 13) + 0x70000000;               // infinity and NaN
        const uint32_t small = bits_of(float(int32_t(magnitude)) * 0x1p-24f);  // zero and denormals, exact
        return float_of(sign | (magnitude >= 0x7c00 ? special : magnitude >= 0x400 ? normal : small));
    }
    static INLINE Stored narrow(Wide value) {
        const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
        const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
        // Below the least normal half, adding 0.5 leaves the rounded half's bits in the low bits of the sum.
        const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
        const uint32_t finite = magnitude < 0x38800000 ? small : normal;
        const uint32_t in_range = sign | (magnitude >= 0x477ff000 ? 0x7c00 : finite);
        return Stored(magnitude > 0x7f800000 ? 0x7e00 : in_range);
    }
};

constexpr size_t kBlock = 1024;  // elements accumulated at a time: 4 KiB, well inside the first-level cache

template <typename Type>
INLINE void sum_body(void* out_bytes, const void* const* parts, int num_parts, size_t count) {
    using Stored = typename Type::Stored;
    auto* out = static_cast<Stored*>(out_bytes);
    typename Type::Wide total[kBlock];
    const auto part = [&](int rank) { return static_cast<const Stored*>(parts[rank]); };
    if (num_parts == 2) {  // the common case, without the detour through `total`
        const Stored *a = part(0), *b = part(1);
        INDEPENDENT for (size_t i = 0; i < count; ++i) {
            out[i] = Type::narrow(Type::widen(a[i]) + Type::widen(b[i]));
        }
        return;
    }
    for (size_t first = 0; first < count; first += kBlock) {
        const size_t block = std::min(kBlock, count - first);
        const Stored* term = part(0) + first;
        for (size_t i = 0; i < block; ++i) total[i] = Type::widen(term[i]);
        for (int rank = 1; rank < num_parts; ++rank) {
            term = part(rank) + first;
            for (size_t i = 0; i < block; ++i) total[i] += Type::widen(term[i]);
        }
        INDEPENDENT for (size_t i = 0; i < block; ++i) out[first + i] = Type::narrow(total[i]);
    }
}

#define SUM_VARIANT(name, attributes)                                                        \
    template <typename Type>                                                                 \
    attributes void name(void* out, const void* const* parts, int num_parts, size_t count) { \
        sum_body<Type>(out, parts, num_parts, count);                                        \
    }

SUM_VARIANT(sum_portable, )
#if defined(__x86_64__)
SUM_VARIANT(sum_avx2, __attribute__((target("avx2"))))
SUM_VARIANT(sum_avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))))
#endif

template <typename Type>
SumFunction best() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        return sum_avx512<Type>;
    }
    if (__builtin_cpu_supports("avx2")) return sum_avx2<Type>;
#endif
    return sum_portable<Type>;
}

}  // namespace

SumFunction sum_function(int dtype) {
    switch (dtype) {
        case TW_SHM_FLOAT32:
            return best<Float32>();
        case TW_SHM_BFLOAT16:
            return best<Bfloat16>();
        case TW_SHM_FLOAT16:
            return best<Float16>();
        case TW_SHM_INT32:
            return best<Plain<uint32_t>>();  // unsigned, so that overflow wraps
        case TW_SHM_INT64:
            return best<Plain<uint64_t>>();
        case TW_SHM_UINT8:
            return best<Plain<uint8_t>>();
        default:
            return nullptr;
    }
}

size_t element_bytes(int dtype) {
    switch (dtype) {
        case TW_SHM_FLOAT32:
        case TW_SHM_INT32:
            return 4;
        case TW_SHM_BFLOAT16:
        case TW_SHM_FLOAT16:
            return 2;
        case TW_SHM_INT64:
            return 8;
        case TW_SHM_UINT8:
            return 1;
        default:
            return 0;
    }
}

}  // namespace tokenweave::shm
