// Vectors of codes: four bytes of each of WIDTH columns, their products with four codes of x, and numbers of
// 8 and 16 bits as floats.
#pragma once

#include "../simd.h"
#include "layout.h"

namespace tokenweave::TW_ISA {

constexpr int PANEL_VECTORS = PANEL / WIDTH;
constexpr int GROUP_WORDS = GROUP_VALUES / 4;

typedef int8_t SignedBytePart __attribute__((vector_size(WIDTH)));

#if defined(__AVX512VNNI__)
constexpr bool SIGNED_AS_OFFSET = true;  // codes of q8_0 as unsigned ones, 128 larger
#else
constexpr bool SIGNED_AS_OFFSET = false;
#endif

TW_INLINE WordPart load_part(const char* p) { return *reinterpret_cast<const WordMemory*>(p); }
TW_INLINE IntPart load_ints(const int32_t* p) {
    return reinterpret_cast<IntPart>(load_part(reinterpret_cast<const char*>(p)));
}

// Sums of neighbours, int16: unsigned codes times signed ones, two of a word.
TW_INLINE IntPart multiply_pairs(WordPart codes, WordPart x) {
#if defined(__AVX512BW__)
    return reinterpret_cast<IntPart>(
        _mm512_maddubs_epi16(reinterpret_cast<__m512i>(codes), reinterpret_cast<__m512i>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<IntPart>(
        _mm256_maddubs_epi16(reinterpret_cast<__m256i>(codes), reinterpret_cast<__m256i>(x)));
#else
    return reinterpret_cast<IntPart>(
        _mm_maddubs_epi16(reinterpret_cast<__m128i>(codes), reinterpret_cast<__m128i>(x)));
#endif
}
TW_INLINE IntPart add_pairs(IntPart a, IntPart b) {
    typedef int16_t Shorts __attribute__((vector_size(4 * WIDTH)));
    return reinterpret_cast<IntPart>(reinterpret_cast<Shorts>(a) + reinterpret_cast<Shorts>(b));
}
// Numbers that fit into int16, in pairs.
TW_INLINE IntPart pair_of(IntPart low, IntPart high) { return high << 16 | (low & 0xffff); }
// Dot products, int32, of pairs of int16.
TW_INLINE IntPart dot_pair(IntPart a, IntPart b) {
#if defined(__AVX512BW__)
    return reinterpret_cast<IntPart>(
        _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
    return reinterpret_cast<IntPart>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
    return reinterpret_cast<IntPart>(
        _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#endif
}
TW_INLINE IntPart ones() { return IntPart{} + 1; }
TW_INLINE WordPart magnitude(WordPart codes) {
#if defined(__AVX512BW__)
    return reinterpret_cast<WordPart>(_mm512_abs_epi8(reinterpret_cast<__m512i>(codes)));
#elif defined(__AVX2__)
    return reinterpret_cast<WordPart>(_mm256_abs_epi8(reinterpret_cast<__m256i>(codes)));
#else
    return reinterpret_cast<WordPart>(_mm_abs_epi8(reinterpret_cast<__m128i>(codes)));
#endif
}
// x, negated where the code is negative.
TW_INLINE WordPart with_sign_of(WordPart x, WordPart codes) {
#if defined(__AVX512BW__)
    const __m512i value = reinterpret_cast<__m512i>(x);
    const __mmask64 negative = _mm512_movepi8_mask(reinterpret_cast<__m512i>(codes));
    return reinterpret_cast<WordPart>(_mm512_mask_sub_epi8(value, negative, _mm512_setzero_si512(), value));
#elif defined(__AVX2__)
    return reinterpret_cast<WordPart>(
        _mm256_sign_epi8(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(codes)));
#else
    return reinterpret_cast<WordPart>(
        _mm_sign_epi8(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(codes)));
#endif
}

#if defined(__AVX512VNNI__)
TW_INLINE IntPart dot_word(IntPart sum, WordPart codes, WordPart x) {
    return reinterpret_cast<IntPart>(_mm512_dpbusd_epi32(
        reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(codes), reinterpret_cast<__m512i>(x)));
}
#endif

TW_INLINE WordPart word_of(const ActivationBlock& x, int word) {
    return WordPart{} + load_word(reinterpret_cast<const char*>(x.codes) + 4 * word);
}

// The dot product of words FIRST to LAST of the codes with x's, times `scale`, which fits into int16; exact, for
// unsigned codes of CODE_BITS bits. Sums of pairs are scaled by the product that widens them, at no cost. x is -127 to
// 127, so that so many sums of pairs fit into int16:
// 2 (2^4 - 1) 127 * 8 = 30,480, 2 (2^5 - 1) 127 * 4 = 31,496, 2 (2^6 - 1) 127 * 2 = 32,004. They are summed
// as a tree: a chain of additions would leave the processor waiting.
template <int CODE_BITS, int FIRST, int LAST>
TW_INLINE IntPart dot_unsigned(const WordPart (&codes)[GROUP_WORDS], const ActivationBlock& x,
                               IntPart scale = ones()) {
    IntPart sum = {};
#if defined(__AVX512VNNI__)
    TW_UNROLL for (int j = FIRST; j < LAST; ++j) sum = dot_word(sum, codes[j], word_of(x, j));
    sum *= scale;
#else
    constexpr int FIT = CODE_BITS == 4 ? 8 : CODE_BITS == 5 ? 4 : 2;
    TW_UNROLL for (int first = FIRST; first < LAST; first += FIT) {
        IntPart pairs[FIT];
        TW_UNROLL for (int j = 0; j < FIT; ++j) pairs[j] =
            multiply_pairs(codes[first + j], word_of(x, first + j));
        TW_UNROLL for (int half = FIT / 2; half > 0; half /= 2) TW_UNROLL for (int j = 0; j < half; ++j)
            pairs[j] = add_pairs(pairs[j], pairs[j + half]);
        const IntPart own = dot_pair(pairs[0], pair_of(scale, scale));
        sum = first == FIRST ? own : sum + own;
    }
#endif
    return sum;
}

// The same for all words and codes of -128 to 127: |code| times x with the code's sign; one sum of pairs,
// 2 * 128 * 127 = 32,512, fits into int16.
TW_INLINE IntPart dot_signed(const WordPart (&codes)[GROUP_WORDS], const ActivationBlock& x) {
    IntPart sum = {};
    TW_UNROLL for (int j = 0; j < GROUP_WORDS; ++j) {
        const WordPart word = word_of(x, j);
#if defined(__AVX512VNNI__)
        sum = dot_word(sum, codes[j], word);  // 128 too large each: SIGNED_AS_OFFSET
#else
        sum += dot_pair(multiply_pairs(magnitude(codes[j]), with_sign_of(word, codes[j])),
                        pair_of(ones(), ones()));
#endif
    }
    return sum;
}

TW_INLINE FloatPart to_floats(IntPart values) { return __builtin_convertvector(values, FloatPart); }
// WIDTH bytes as integers. By hand: the compiler takes them apart one by one.
TW_INLINE IntPart load_signed(const char* p) {
#if defined(__AVX512F__)
    return reinterpret_cast<IntPart>(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    return reinterpret_cast<IntPart>(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    return reinterpret_cast<IntPart>(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(static_cast<int>(load_word(p)))));
#endif
}
// The same for bytes below 128, as floats.
TW_INLINE FloatPart load_small(const char* p) { return to_floats(load_signed(p)); }

// float16 to float32, exact.
TW_INLINE FloatPart load_halves(const char* p) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    HalfPart half;
    memcpy(&half, p, sizeof(half));
    const WordPart word = __builtin_convertvector(half, WordPart);
    // The exponent's bias is 15 in one and 127 in the other; subnormal numbers come right by the product.
    const FloatPart shifted = reinterpret_cast<FloatPart>((word & 0x7fff) << 13) * 0x1p112f;
    const WordPart finite = reinterpret_cast<WordPart>(shifted);
    const WordPart other = ((word & 0x3ff) << 13) | 0x7f800000u;
    const WordPart special = reinterpret_cast<WordPart>((word & 0x7c00) == 0x7c00);
    return reinterpret_cast<FloatPart>((special & other) | (~special & finite) | (word & 0x8000) << 16);
#endif
}
TW_INLINE float load_half(const char* p) {
    alignas(64) char lanes[2 * WIDTH] = {};
    memcpy(lanes, p, 2);
    return load_halves(lanes)[0];
}

// The codes of WIDTH columns of a group, from column `vector` * WIDTH on, as bytes.
template <int FORMAT>
TW_INLINE void unpack(const char* group, int vector, WordPart (&codes)[GROUP_WORDS]) {
    using Layout = PanelLayout<FORMAT>;
    constexpr int BITS = Layout::Format::CODE_BITS;
    const char* const p = group + vector * WIDTH * 4;
    if constexpr (BITS == 8) {
        TW_UNROLL for (int j = 0; j < GROUP_WORDS; ++j) {
            codes[j] = load_part(p + j * PANEL * 4);
            if (SIGNED_AS_OFFSET) codes[j] ^= 0x80808080u;
        }
    } else {
        TW_UNROLL for (int j = 0; j < GROUP_WORDS / 2; ++j) {
            const WordPart both = load_part(p + j * PANEL * 4);
            codes[j] = both & 0x0f0f0f0fu;
            codes[j + GROUP_WORDS / 2] = (both >> 4) & 0x0f0f0f0fu;
        }
    }
    if constexpr (BITS == 5) {
        const WordPart high = load_part(p + Layout::HIGH_BITS);
        TW_UNROLL for (int j = 0; j < GROUP_WORDS; ++j) codes[j] |=
            (j < 4 ? high << (4 - j) : high >> (j - 4)) & 0x10101010u;
    }
    if constexpr (BITS == 6) {
        TW_UNROLL for (int j = 0; j < GROUP_WORDS; ++j) {
            const WordPart high = load_part(p + Layout::HIGH_BITS + j / 4 * PANEL * 4);
            codes[j] |= (j % 4 < 3 ? high << (4 - 2 * (j % 4)) : high >> 2) & 0x30303030u;
        }
    }
}

}  // namespace tokenweave::TW_ISA
