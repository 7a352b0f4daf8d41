// Loops that do nothing but saturate one unit: the ceilings that measured rates are compared with.
#pragma once

#include "simd.h"

namespace tokenweave::TW_ISA {

#if defined(__AVX512F__)
#define TW_VECTOR_REGISTER "+v"
#else
#define TW_VECTOR_REGISTER "+x"
#endif

TW_INLINE void hide(Words& words) { TW_EACH_PART __asm__ volatile("" : TW_VECTOR_REGISTER(words.part[i])); }

// Enough independent accumulators to hide the latency of a fused multiply-add on two ports.
template <typename T>
double spin_dot(double flops_per_word) {
    constexpr int ACCUMULATORS = WIDTH == 16 ? 16 : WIDTH == 8 ? 6 : 3;
    static_assert(ACCUMULATORS <= MAX_UNROLL);
    constexpr int STEPS = 4000;
    Floats acc[ACCUMULATORS];
    Words factor;
    TW_EACH_PART factor.part[i] = WordPart{} + 0x3f803f80u;  // about 1, as a float and as two bfloat16
    TW_UNROLL for (int a = 0; a < ACCUMULATORS; ++a) acc[a] = zeros();
    for (int step = 0; step < STEPS; ++step) {
        TW_UNROLL for (int a = 0; a < ACCUMULATORS; ++a) {
            hide(factor);  // the compiler must not see that every product is the same
            acc[a] = dot<T>(acc[a], 0x00003f80u, factor);
        }
    }
    TW_UNROLL for (int a = 0; a < ACCUMULATORS; ++a) __asm__ volatile("" : : "m"(acc[a]));
    return flops_per_word * LANES * ACCUMULATORS * STEPS;
}

static double spin_fma() { return spin_dot<float>(2); }
static double spin_bf16() { return spin_dot<BFloat16>(4); }

static double read_bytes(const char* memory, size_t size_bytes) {
    Words sum = {};
    for (size_t at = 0; at + 256 <= size_bytes; at += 256) {
        TW_UNROLL for (int line = 0; line < 4; ++line) {
            _mm_prefetch(memory + at + 4096 + line * 64, _MM_HINT_T0);
            const Words words = load_words(memory + at + line * 64);
            TW_EACH_PART sum.part[i] ^= words.part[i];
        }
    }
    __asm__ volatile("" : : "m"(sum));
    return static_cast<double>(size_bytes);
}

static double mix_bytes(const MixArgs& args) {
    constexpr size_t LINE = 64, AHEAD = 1024;
    const size_t ratio = args.update_ratio;
    char *first = args.memory, *second = first + args.size_bytes, *updated = second + args.size_bytes;
    char* written = updated + ratio * args.size_bytes;
    for (size_t at = 0; at < args.size_bytes; at += LINE) {
        _mm_prefetch(first + at + AHEAD, _MM_HINT_T0);
        _mm_prefetch(second + at + AHEAD, _MM_HINT_T0);
        Words sum = load_words(first + at);
        const Words other = load_words(second + at);
        TW_EACH_PART sum.part[i] += other.part[i];
        for (size_t line = 0; line < ratio; ++line) {
            char* to = updated + (at * ratio + line * LINE);
            _mm_prefetch(to + AHEAD, _MM_HINT_T0);
            Words words = load_words(to);
            TW_EACH_PART words.part[i] += sum.part[i];
            store_words(to, words);
        }
        args.past_caches ? stream_words(written + at, sum) : store_words(written + at, sum);
    }
    if (args.past_caches) _mm_sfence();
    return static_cast<double>(args.size_bytes * (3 + 2 * ratio));
}

}  // namespace tokenweave::TW_ISA
