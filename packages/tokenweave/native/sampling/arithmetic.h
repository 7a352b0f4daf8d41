// The arithmetic of sampling on single numbers and single tokens.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tokenweave.h"

namespace tokenweave {

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// The largest float below `value`, so that "above it" is "at least `value`".
inline float just_below(float value) { return std::nextafterf(value, -INFINITY); }

// Weights become integers by this factor: 2^52 over the next power of two from the vocabulary's size on, so that
// even the sum of all of them is an integer that a double holds.
inline double quanta_of_one(int64_t vocab_size) {
    int log2 = 1;
    while (int64_t{1} << log2 < vocab_size) ++log2;
    return std::ldexp(1.0, 52 - log2);
}
// Of the doubles from this number on, the last bit is one quantum: see add_masses.
inline double magic_of(double quanta) { return 1.5 * 0x1p52 / quanta; }

inline uint64_t mass_of(float weight, double magic) {
    const double shifted = static_cast<double>(weight) + magic;
    uint64_t bits, offset;
    std::memcpy(&bits, &shifted, sizeof(bits));
    std::memcpy(&offset, &magic, sizeof(offset));
    return bits - offset;
}

// The mass of tokens that were weighed roughly lies between these.
struct Tail {
    uint64_t low = 0, high = 0;
};
// How far off, at most, a rough weight is: the scale is rounded, and its product, so the exponent of a weight of 2^-37
// is off by 37 * 2^-23; the fit by 1e-7; and a sum of a chunk by a few roundings. The double of that.
constexpr double ROUGH_ERROR = 1.2e-5;

// `sum`: of `count` rough weights. Rounding to quanta adds or takes half of one for each.
inline Tail tail_of(double sum, int64_t count, double quanta) {
    const double slack = 0.5 * static_cast<double>(count) + 2;
    const double low = sum * quanta * (1 - ROUGH_ERROR) - slack;
    const double high = sum * quanta * (1 + ROUGH_ERROR) + slack;
    return {low > 0 ? static_cast<uint64_t>(low) : 0, static_cast<uint64_t>(high)};
}

// SplitMix64 (Steele, Lea, Flood 2014).
inline uint64_t mix64(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}
inline double uniform(uint64_t seed, uint64_t index) {
    return static_cast<double>(mix64(mix64(seed) + (index + 1) * 0x9E3779B97F4A7C15u) >> 11) * 0x1p-53;
}

inline bool counts_tokens(const tw_sampling& params) {
    return params.frequency_penalty != 0 || params.presence_penalty != 0;
}

// Each token's new score comes of `logits`, so one that is there twice is changed once.
inline void penalise_repetition(const float* logits, const tw_sampling& params, float* scores) {
    for (int64_t i = 0; i < params.num_tokens; ++i) {
        const int32_t token = params.tokens[i];
        const float value = logits[token], penalty = params.repetition_penalty;
        const float changed = value > 0 ? value / penalty : value * penalty;
        scores[token] = std::min(std::max(changed, -FLT_MAX), FLT_MAX);
    }
}

inline void penalise_output(const tw_sampling& params, int32_t* counts, float* scores) {
    for (int64_t i = params.num_prompt; i < params.num_tokens; ++i) counts[params.tokens[i]] = 0;
    for (int64_t i = params.num_prompt; i < params.num_tokens; ++i) ++counts[params.tokens[i]];
    for (int64_t i = params.num_prompt; i < params.num_tokens; ++i) {
        const int32_t token = params.tokens[i];
        if (counts[token] == 0) continue;
        scores[token] -= params.frequency_penalty * static_cast<float>(counts[token]);
        scores[token] -= params.presence_penalty;
        counts[token] = 0;
    }
}

}  // namespace tokenweave
