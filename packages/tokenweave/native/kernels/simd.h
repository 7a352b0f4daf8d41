// Sixteen float lanes and their arithmetic, on whatever registers the instruction set of this build has.
//
// TW_ISA names the build: everything that is compiled for an instruction set lives in that namespace, so that
// the linker can never hand one build the code of another. For the same reason nothing here uses library
// templates.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "tokenweave.h"

#define TW_INLINE static inline __attribute__((always_inline))
// Loops of at most MAX_UNROLL turns become straight lines, so that arrays of vectors can live in registers.
#define TW_UNROLL _Pragma("GCC unroll 16")

namespace tokenweave::TW_ISA {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int MAX_UNROLL = 16;  // the number in TW_UNROLL, where a macro cannot stand
// One register of AVX-512, and as many on narrower ones: a sum falls into the same lanes on every instruction
// set.
constexpr int LANES = 16;
constexpr int PARTS = LANES / WIDTH;

typedef float FloatPart __attribute__((vector_size(4 * WIDTH)));
typedef int32_t IntPart __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t WordPart __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t HalfPart __attribute__((vector_size(2 * WIDTH)));

// Unaligned views of memory.
typedef FloatPart FloatMemory __attribute__((aligned(1), may_alias));
typedef WordPart WordMemory __attribute__((aligned(1), may_alias));
typedef HalfPart HalfMemory __attribute__((aligned(1), may_alias));
typedef uint32_t WordScalar __attribute__((aligned(1), may_alias));

struct Floats {
    FloatPart part[PARTS];
};
// One word of each of sixteen columns: a float, or two bfloat16 that follow each other along k.
struct Words {
    WordPart part[PARTS];
};

#define TW_EACH_PART TW_UNROLL for (int i = 0; i < PARTS; ++i)

TW_INLINE Floats broadcast(float value) {
    Floats out;
    TW_EACH_PART out.part[i] = FloatPart{} + value;
    return out;
}
TW_INLINE Floats zeros() { return broadcast(0.0f); }

TW_INLINE Floats operator+(Floats a, Floats b) {
    TW_EACH_PART a.part[i] += b.part[i];
    return a;
}
TW_INLINE Floats operator-(Floats a, Floats b) {
    TW_EACH_PART a.part[i] -= b.part[i];
    return a;
}
TW_INLINE Floats operator*(Floats a, Floats b) {
    TW_EACH_PART a.part[i] *= b.part[i];
    return a;
}
TW_INLINE Floats operator/(Floats a, Floats b) {
    TW_EACH_PART a.part[i] /= b.part[i];
    return a;
}

TW_INLINE FloatPart fma_part(FloatPart a, FloatPart b, FloatPart c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}
TW_INLINE FloatPart max_part(FloatPart a, FloatPart b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return _mm_max_ps(a, b);
#endif
}

// a * b + c
TW_INLINE Floats fma(Floats a, Floats b, Floats c) {
    TW_EACH_PART c.part[i] = fma_part(a.part[i], b.part[i], c.part[i]);
    return c;
}
TW_INLINE Floats max(Floats a, Floats b) {
    TW_EACH_PART a.part[i] = max_part(a.part[i], b.part[i]);
    return a;
}

TW_INLINE Floats load(const float* p) {
    Floats out;
    TW_EACH_PART out.part[i] = *reinterpret_cast<const FloatMemory*>(p + i * WIDTH);
    return out;
}
TW_INLINE void store(float* p, Floats a) {
    TW_EACH_PART* reinterpret_cast<FloatMemory*>(p + i * WIDTH) = a.part[i];
}

struct BFloat16 {
    uint16_t bits;
};
TW_INLINE Floats load(const BFloat16* p) {
    Floats out;
    TW_EACH_PART {
        const HalfPart half = *reinterpret_cast<const HalfMemory*>(p + i * WIDTH);
        out.part[i] = reinterpret_cast<FloatPart>(__builtin_convertvector(half, WordPart) << 16);
    }
    return out;
}
// Rounds to the nearest, ties to even.
TW_INLINE HalfPart to_bfloat16(FloatPart value) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<HalfPart>(_mm512_cvtneps_pbh(value));
#else
    // Half of the last place that is kept, less one, and one more if that place is odd: a tie goes to even. A
    // NaN would be carried into infinity or zero; it keeps its upper half, with the bit (0x40) that makes it
    // quiet.
    const WordPart word = reinterpret_cast<WordPart>(value);
    const WordPart rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    const WordPart quiet = (word >> 16) | 0x40;
    return __builtin_convertvector(value == value ? rounded : quiet, HalfPart);
#endif
}
TW_INLINE void store(BFloat16* p, Floats a) {
    TW_EACH_PART* reinterpret_cast<HalfMemory*>(p + i * WIDTH) = to_bfloat16(a.part[i]);
}

// As store, but past the caches: p is a multiple of 64 bytes, or of 32 for bfloat16. A fence has to come
// before whatever tells other cores of it: reduce_norm_rows (elementwise.h) has it, before the pool counts
// the item as finished, and so before the rank arrives (comm/group.cpp).
TW_INLINE void stream(float* p, Floats a) {
    TW_EACH_PART {
#if defined(__AVX512F__)
        _mm512_stream_ps(p, a.part[i]);
#elif defined(__AVX2__)
        _mm256_stream_ps(p + i * WIDTH, a.part[i]);
#else
        _mm_stream_ps(p + i * WIDTH, a.part[i]);
#endif
    }
}
TW_INLINE void stream(BFloat16* p, Floats a) {
    TW_EACH_PART {
        const HalfPart half = to_bfloat16(a.part[i]);
#if defined(__AVX512F__)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(half));
#elif defined(__AVX2__)
        _mm_stream_si128(reinterpret_cast<__m128i*>(p + i * WIDTH), reinterpret_cast<__m128i>(half));
#else
        _mm_stream_si64(reinterpret_cast<long long*>(p + i * WIDTH), reinterpret_cast<long long>(half));
#endif
    }
}

// The first `count` lanes, the others 0.
template <typename T>
TW_INLINE Floats load_some(const T* p, int64_t count) {
    if (count >= LANES) return load(p);
    T lanes[LANES] = {};
    memcpy(lanes, p, count * sizeof(T));
    return load(lanes);
}
template <typename T>
TW_INLINE void store_some(T* p, Floats a, int64_t count) {
    if (count >= LANES) return store(p, a);
    T lanes[LANES];
    store(lanes, a);
    memcpy(p, lanes, count * sizeof(T));
}

#if !defined(__AVX512F__)
// Four lanes of sixteen: `join` takes lanes 8 to 15 with 0 to 7, then 4 to 7 with 0 to 3.
template <typename Join>
TW_INLINE __m128 join_to_four(Floats a, const Join& join) {
#if defined(__AVX2__)
    const __m128 low = join(_mm256_castps256_ps128(a.part[0]), _mm256_castps256_ps128(a.part[1]));
    const __m128 high = join(_mm256_extractf128_ps(a.part[0], 1), _mm256_extractf128_ps(a.part[1], 1));
    return join(low, high);
#else
    return join(join(a.part[0], a.part[2]), join(a.part[1], a.part[3]));
#endif
}
template <typename Join>
TW_INLINE float reduce(Floats a, const Join& join) {
    const __m128 four = join_to_four(a, join);
    const __m128 two = join(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(join(two, _mm_shuffle_ps(two, two, 1)));
}
#endif

// Sums and maxima of the sixteen lanes, always by halves.
TW_INLINE float reduce_add(Floats a) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(a.part[0]);
#else
    return reduce(
        a, [](__m128 low, __m128 high) __attribute__((always_inline)) { return _mm_add_ps(low, high); });
#endif
}
TW_INLINE float reduce_max(Floats a) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(a.part[0]);
#else
    return reduce(
        a, [](__m128 low, __m128 high) __attribute__((always_inline)) { return _mm_max_ps(low, high); });
#endif
}

// Lane i is a[i] where first <= i < last, else `other`.
TW_INLINE Floats select_lanes(Floats a, int first, int last, float other) {
    static const int32_t index[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    TW_EACH_PART {
        const IntPart lane =
            reinterpret_cast<IntPart>(*reinterpret_cast<const WordMemory*>(index + i * WIDTH));
        a.part[i] = ((lane >= first) & (lane < last)) ? a.part[i] : FloatPart{} + other;
    }
    return a;
}

// 2^x for x <= 127, to 2 units in the last place; exactly 1 at 0 and exactly 0 below -126, also at -infinity.
// The polynomial is the relative minimax of 2^r on [-1/2, 1/2] with its constant term held at 1.
TW_INLINE Floats exp2(Floats x) {
    // 1.5 * 2^23: adding it rounds to an integer, left in the low bits.
    const Floats magic = broadcast(12582912.0f);
    const Floats shifted = x + magic;
    const Floats r = x - (shifted - magic);
    Floats p = fma(broadcast(1.3264731969684362e-3f), r, broadcast(9.671513922512531e-3f));
    p = fma(p, r, broadcast(5.550733581185341e-2f));
    p = fma(p, r, broadcast(2.4022242426872253e-1f));
    p = fma(p, r, broadcast(6.931470036506653e-1f));
    p = fma(p, r, broadcast(1.0f));
    TW_EACH_PART {
        // The integer, moved to where a float has its exponent; what `magic` put above it falls off.
        const WordPart exponent = reinterpret_cast<WordPart>(shifted.part[i]) << 23;
        const FloatPart scaled =
            reinterpret_cast<FloatPart>(reinterpret_cast<WordPart>(p.part[i]) + exponent);
        p.part[i] = x.part[i] >= -126.0f ? scaled : FloatPart{};
    }
    return p;
}

TW_INLINE Words load_words(const char* p) {
    Words out;
    TW_EACH_PART out.part[i] = *reinterpret_cast<const WordMemory*>(p + i * 4 * WIDTH);
    return out;
}
TW_INLINE void store_words(char* p, Words a) {
    TW_EACH_PART* reinterpret_cast<WordMemory*>(p + i * 4 * WIDTH) = a.part[i];
}
// Past the caches; p is a multiple of 64. Other cores see it in order only after a fence: mix_bytes
// (limits.h) has it.
TW_INLINE void stream_words(char* p, Words a) {
    TW_EACH_PART {
#if defined(__AVX512F__)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(a.part[i]));
#elif defined(__AVX2__)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p + i * 32), reinterpret_cast<__m256i>(a.part[i]));
#else
        _mm_stream_si128(reinterpret_cast<__m128i*>(p + i * 16), reinterpret_cast<__m128i>(a.part[i]));
#endif
    }
}
TW_INLINE uint32_t load_word(const char* p) { return *reinterpret_cast<const WordScalar*>(p); }

// acc + a * b of one word along k: one float, or two bfloat16.
template <typename T>
inline __attribute__((always_inline)) Floats dot(Floats acc, uint32_t a, const Words& b);

template <>
inline __attribute__((always_inline)) Floats dot<float>(Floats acc, uint32_t a, const Words& b) {
    const FloatPart factor = reinterpret_cast<FloatPart>(WordPart{} + a);
    TW_EACH_PART acc.part[i] = fma_part(factor, reinterpret_cast<FloatPart>(b.part[i]), acc.part[i]);
    return acc;
}
template <>
inline __attribute__((always_inline)) Floats dot<BFloat16>(Floats acc, uint32_t a, const Words& b) {
    TW_EACH_PART {
#if defined(__AVX512BF16__)
        acc.part[i] = _mm512_dpbf16_ps(acc.part[i], reinterpret_cast<__m512bh>(WordPart{} + a),
                                       reinterpret_cast<__m512bh>(b.part[i]));
#else
        const WordPart pair = WordPart{} + a;
        acc.part[i] = fma_part(reinterpret_cast<FloatPart>(pair << 16),
                               reinterpret_cast<FloatPart>(b.part[i] << 16), acc.part[i]);
        acc.part[i] = fma_part(reinterpret_cast<FloatPart>(pair & 0xffff0000u),
                               reinterpret_cast<FloatPart>(b.part[i] & 0xffff0000u), acc.part[i]);
#endif
    }
    return acc;
}

template <typename T>
constexpr int WORD_ELEMENTS = 4 / sizeof(T);

// acc[r][c] += row r of a times column group c of b, over `steps` words along k, in ascending order.
// Row r's words are at a + r * lda; group c's sixteen words of a step are at b[c], each step b_stride on
// (bytes). PREFETCH_BYTES: how far ahead to ask for b, for a b that streams from memory.
template <typename T, int PREFETCH_BYTES = 0, int ROWS, int GROUPS>
TW_INLINE void accumulate(Floats (&acc)[ROWS][GROUPS], const char* a, int64_t lda,
                          const char* const (&b)[GROUPS], int64_t b_stride, int64_t steps) {
    for (int64_t step = 0; step < steps; ++step) {
        Words column[GROUPS];
        if (PREFETCH_BYTES > 0)
            TW_UNROLL for (int c = 0; c < GROUPS; ++c)
                _mm_prefetch(b[c] + step * b_stride + PREFETCH_BYTES, _MM_HINT_T0);
        TW_UNROLL for (int c = 0; c < GROUPS; ++c) column[c] = load_words(b[c] + step * b_stride);
        TW_UNROLL for (int r = 0; r < ROWS; ++r) {
            const uint32_t word = load_word(a + r * lda + step * 4);
            TW_UNROLL for (int c = 0; c < GROUPS; ++c) acc[r][c] = dot<T>(acc[r][c], word, column[c]);
        }
    }
}

// Calls f with T{} of the dtype.
template <typename F>
TW_INLINE void with_dtype(int dtype, F f) {
    if (dtype == TW_FLOAT32) f(float{});
    else f(BFloat16{});
}

}  // namespace tokenweave::TW_ISA
