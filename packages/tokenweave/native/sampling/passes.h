// The passes of sampling over a row of logits, sixteen lanes at a time; sampler.cpp has the order in which they run.
//
// Invariant: every instruction set gives the same bits. No sum of floats is taken, products and additions are not
// contracted, and masses are integers, whose sum no order changes.
#pragma once

#include "../kernels/simd.h"

namespace tokenweave::TW_ISA {

typedef uint64_t CountPart __attribute__((vector_size(4 * WIDTH)));
typedef double DoublePart __attribute__((vector_size(4 * WIDTH)));

// The first `count` < LANES of `values`, the others `other`. Apart, so that the loops stay short.
static __attribute__((noinline)) void copy_tail(const float* values, int64_t count, float other,
                                                float* lanes) {
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane < count ? values[lane] : other;
}

// The lanes of values[i ..] up to `count`, the others `other`.
TW_INLINE Floats load_lanes(const float* values, int64_t i, int64_t count, float other) {
    if (__builtin_expect(i + LANES <= count, 1)) return load(values + i);
    float lanes[LANES];
    copy_tail(values + i, count - i, other, lanes);
    return load(lanes);
}

// One bit for each lane where a > b; where a == b; where a is a NaN.
TW_INLINE uint32_t bits_of(const IntPart (&lanes)[PARTS]) {
    uint32_t bits = 0;
    TW_EACH_PART {
#if defined(__AVX512F__)
        bits |= static_cast<uint32_t>(_mm512_movepi32_mask(reinterpret_cast<__m512i>(lanes[i])));
#elif defined(__AVX2__)
        bits |= static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes[i]))) << (i * WIDTH);
#else
        bits |= static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(lanes[i]))) << (i * WIDTH);
#endif
    }
    return bits;
}
TW_INLINE uint32_t bits_above(Floats a, Floats b) {
    IntPart lanes[PARTS];
    TW_EACH_PART lanes[i] = a.part[i] > b.part[i];
    return bits_of(lanes);
}
TW_INLINE uint32_t bits_equal(Floats a, Floats b) {
    IntPart lanes[PARTS];
    TW_EACH_PART lanes[i] = a.part[i] == b.part[i];
    return bits_of(lanes);
}

// The largest of `values`; a NaN where there is one. chunk_maxima: one for each SAMPLING_CHUNK, as if no value were NaN.
static float largest(const float* values, int64_t count, float* chunk_maxima) {
    IntPart is_nan[PARTS] = {};
    float highest = -__builtin_inff();
    for (int64_t start = 0; start < count; start += SAMPLING_CHUNK) {
        const int64_t end = start + SAMPLING_CHUNK < count ? start + SAMPLING_CHUNK : count;
        Floats best[2] = {broadcast(-__builtin_inff()), broadcast(-__builtin_inff())};
        int turn = 0;
        for (int64_t i = start; i < end; i += LANES, turn ^= 1) {
            const Floats a = load_lanes(values, i, end, -__builtin_inff());
            TW_EACH_PART is_nan[i] |= a.part[i] != a.part[i];
            best[turn] = max(a, best[turn]);  // max gives its second operand where either is a NaN
        }
        const float chunk = reduce_max(max(best[0], best[1]));
        chunk_maxima[start / SAMPLING_CHUNK] = chunk;
        highest = chunk > highest ? chunk : highest;
    }
    return bits_of(is_nan) ? __builtin_nanf("") : highest;
}

// exp(x) for x <= 0, to one unit in the last place: exactly 1 at 0, exactly 0 below -87. r is within half of
// log(2) of 0, and e^r is 1 + r + r^2 p(r); the coefficients are a minimax fit of p there. log(2) in two parts,
// the first of so few bits that its products by integers are exact.
TW_INLINE Floats exp_of_negative(Floats x) {
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23, see exp2
    const Floats shifted = x * broadcast(1.44269504f) + magic;
    const Floats whole = shifted - magic;
    const Floats r = (x - whole * broadcast(0.693359375f)) - whole * broadcast(-2.12194440e-4f);
    Floats p = broadcast(1.3814599e-3f);
    p = p * r + broadcast(8.368717e-3f);
    p = p * r + broadcast(4.166839e-2f);
    p = p * r + broadcast(1.6666521e-1f);
    p = p * r + broadcast(4.9999994e-1f);
    p = (p * (r * r) + r) + broadcast(1.0f);
    TW_EACH_PART {
        const WordPart exponent = reinterpret_cast<WordPart>(shifted.part[i]) << 23;
        const FloatPart scaled =
            reinterpret_cast<FloatPart>(reinterpret_cast<WordPart>(p.part[i]) + exponent);
        p.part[i] = x.part[i] >= -87.0f ? scaled : FloatPart{};
    }
    return p;
}

// The lower and the upper half of a part, as doubles.
TW_INLINE DoublePart lower_doubles(FloatPart part) {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm512_castps512_ps256(part));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm256_castps256_ps128(part));
#else
    return _mm_cvtps_pd(part);
#endif
}
TW_INLINE DoublePart upper_doubles(FloatPart part) {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(part, 1));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm256_extractf128_ps(part, 1));
#else
    return _mm_cvtps_pd(_mm_movehl_ps(part, part));
#endif
}

// Sums of masses. Adding `magic` rounds a weight to a whole number of quanta, which are then the low bits of the
// sum: so each lane counts the bits of `magic` too much, which total() takes off.
struct MassSums {
    CountPart lower[PARTS] = {}, upper[PARTS] = {};
};
TW_INLINE void add_masses(MassSums& sums, Floats weights, double magic) {
    TW_EACH_PART {
        sums.lower[i] += reinterpret_cast<CountPart>(lower_doubles(weights.part[i]) + magic);
        sums.upper[i] += reinterpret_cast<CountPart>(upper_doubles(weights.part[i]) + magic);
    }
}
TW_INLINE uint64_t total(const MassSums& sums, int64_t num_groups, double magic) {
    CountPart lanes = {};
    TW_EACH_PART lanes += sums.lower[i] + sums.upper[i];
    uint64_t all = 0, bits;
    for (int i = 0; i < WIDTH / 2; ++i) all += lanes[i];
    memcpy(&bits, &magic, sizeof(bits));
    return all - static_cast<uint64_t>(num_groups * LANES) * bits;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each mask of eight lanes, the places of its bits.
struct PackOrders {
    uint8_t order[256][8];
    constexpr PackOrders() : order() {
        for (int mask = 0; mask < 256; ++mask)
            for (int lane = 0, found = 0; lane < 8; ++lane)
                if (mask >> lane & 1) order[mask][found++] = static_cast<uint8_t>(lane);
    }
};
alignas(64) constexpr PackOrders PACK_ORDERS;
#endif

// Appends the lanes whose bits are set to what is kept, and where they stand. Writes a whole group of lanes each time:
// `found` is at most `first`, so that ends within as many groups as were read.
TW_INLINE int64_t append(uint32_t bits, Floats values, int64_t first, float* kept, int32_t* places,
                         int64_t found) {
    if (!bits) return found;
#if defined(__AVX512F__)
    const __mmask16 mask = static_cast<__mmask16>(bits);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i where = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first)));
    _mm512_storeu_ps(kept + found, _mm512_maskz_compress_ps(mask, values.part[0]));
    _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(mask, where));
    return found + __builtin_popcount(bits);
#elif defined(__AVX2__)
    TW_EACH_PART {
        const uint32_t mask = bits >> (8 * i) & 0xff;
        const __m256i order =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(PACK_ORDERS.order[mask])));
        const __m256i where = _mm256_add_epi32(order, _mm256_set1_epi32(static_cast<int>(first) + 8 * i));
        _mm256_storeu_ps(kept + found, _mm256_permutevar8x32_ps(values.part[i], order));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(places + found), where);
        found += __builtin_popcount(mask);
    }
    return found;
#else
    float lanes[LANES];
    store(lanes, values);
    for (; bits; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        kept[found] = lanes[lane];
        places[found++] = static_cast<int32_t>(first + lane);
    }
    return found;
#endif
}

TW_INLINE Floats above_or_zero(Floats weights, float floor) {
    TW_EACH_PART weights.part[i] = weights.part[i] > floor ? weights.part[i] : FloatPart{};
    return weights;
}

template <bool SPLITS, bool DIVIDES>
TW_INLINE void weigh_row(const WeighArgs& args, Weighed* out) {
    const Floats offset = broadcast(args.highest), divisor = broadcast(args.temperature);
    const Floats low = broadcast(args.low), high = broadcast(args.high);
    out->total = out->above = 0;
    out->num_between = 0;
    for (int64_t start = 0; start < args.count; start += SAMPLING_CHUNK) {
        const int64_t end = start + SAMPLING_CHUNK < args.count ? start + SAMPLING_CHUNK : args.count;
        MassSums all, above;
        for (int64_t i = start; i < end; i += LANES) {
            Floats x = load_lanes(args.scores, i, end, -__builtin_inff()) - offset;
            if (DIVIDES) x = x / divisor;
            const Floats weight = exp_of_negative(x);
            store_some(args.weights + i, weight, end - i);
            add_masses(all, weight, args.magic);
            if (!SPLITS) continue;
            add_masses(above, above_or_zero(weight, args.high), args.magic);
            const uint32_t between = bits_above(weight, low) & ~bits_above(weight, high);
            out->num_between = append(between, weight, i, args.between, args.places, out->num_between);
        }
        const int64_t groups = (end - start + LANES - 1) / LANES;
        const uint64_t mass = total(all, groups, args.magic);
        out->total += mass;
        const uint64_t kept = SPLITS ? total(above, groups, args.magic) : mass;
        args.chunk_masses[start / SAMPLING_CHUNK] = kept;
        out->above += kept;
    }
}

// See WeighArgs.
static void weigh(const WeighArgs& args, Weighed* out) {
    const bool divides = args.temperature != 1.0f;
    if (args.high < 0)
        return divides ? weigh_row<false, true>(args, out) : weigh_row<false, false>(args, out);
    return divides ? weigh_row<true, true>(args, out) : weigh_row<true, false>(args, out);
}

// 2^(x * scale) for x <= 0, about; x * scale is -64 at least. The coefficients are a minimax fit of 2^f, f within half
// of 0, to 3e-6. Tail says how far off a sum may be.
TW_INLINE Floats exp2_about(Floats x, Floats scale) {
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23, see exp2
    const Floats shifted = fma(x, scale, magic);
    const Floats f = fma(x, scale, magic - shifted);
    Floats p = broadcast(9.58285282e-03f);
    p = fma(p, f, broadcast(5.59064278e-02f));
    p = fma(p, f, broadcast(2.40240986e-01f));
    p = fma(p, f, broadcast(6.93124193e-01f));
    p = fma(p, f, broadcast(1.0f));
    TW_EACH_PART {
        const WordPart exponent = reinterpret_cast<WordPart>(shifted.part[i]) << 23;
        p.part[i] = reinterpret_cast<FloatPart>(reinterpret_cast<WordPart>(p.part[i]) + exponent);
    }
    return p;
}

// Of one chunk; a chunk without candidates (KEEPS false) is only weighed.
template <bool KEEPS>
TW_INLINE void split_chunk(const SplitArgs& args, int64_t start, int64_t end, DoublePart (&sums)[2],
                           Split* out) {
    const Floats highest = broadcast(args.highest), scale = broadcast(args.scale);
    const Floats floor = broadcast(args.floor), lowest = broadcast(-64.0f / args.scale);
    Floats sum = zeros();
    for (int64_t i = start; i < end; i += LANES) {
        const Floats scores = load_lanes(args.scores, i, end, -__builtin_inff());
        const Floats x = scores - highest;
        Floats weight = exp2_about(max(x, lowest), scale);
        if (KEEPS) {
            TW_EACH_PART weight.part[i] = x.part[i] > floor.part[i] ? FloatPart{} : weight.part[i];
            out->num_candidates =
                append(bits_above(x, floor), scores, i, args.candidates, args.places, out->num_candidates);
        }
        sum = sum + weight;
    }
    TW_EACH_PART {
        sums[0] += lower_doubles(sum.part[i]);
        sums[1] += upper_doubles(sum.part[i]);
    }
}

// See SplitArgs.
static void split(const SplitArgs& args, Split* out) {
    DoublePart sums[2] = {};
    out->num_candidates = 0;
    for (int64_t start = 0; start < args.count; start += SAMPLING_CHUNK) {
        const int64_t end = start + SAMPLING_CHUNK < args.count ? start + SAMPLING_CHUNK : args.count;
        if (args.maxima[start / SAMPLING_CHUNK] - args.highest > args.floor)
            split_chunk<true>(args, start, end, sums, out);
        else split_chunk<false>(args, start, end, sums, out);
    }
    const DoublePart lanes = sums[0] + sums[1];
    out->tail = 0;
    for (int i = 0; i < WIDTH / 2; ++i) out->tail += lanes[i];
}

// The mass of the weights above `floor`.
static uint64_t mass_above(const float* weights, int64_t count, float floor, double magic) {
    MassSums sums;
    for (int64_t i = 0; i < count; i += LANES)
        add_masses(sums, above_or_zero(load_lanes(weights, i, count, 0.0f), floor), magic);
    return total(sums, (count + LANES - 1) / LANES, magic);
}

// The values above `floor`, in order, to `kept`, and where they stand to `places`. Returns how many there are.
static int64_t keep_above(const float* values, int64_t count, float floor, float* kept, int32_t* places) {
    const Floats bound = broadcast(floor);
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        const Floats group = load_lanes(values, i, count, -__builtin_inff());
        found = append(bits_above(group, bound), group, i, kept, places, found);
    }
    return found;
}

static int64_t count_above(const float* values, int64_t count, float floor) {
    const Floats bound = broadcast(floor);
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += LANES)
        found += __builtin_popcount(bits_above(load_lanes(values, i, count, -__builtin_inff()), bound));
    return found;
}

// Where the n-th (from 0) of the values that equal `value` stands; `count` if there are fewer.
static int64_t find_equal(const float* values, int64_t count, float value, int64_t n) {
    const Floats wanted = broadcast(value);
    for (int64_t i = 0; i < count; i += LANES) {
        uint32_t bits = bits_equal(load_lanes(values, i, count, __builtin_nanf("")), wanted);
        const int found = __builtin_popcount(bits);
        if (n >= found) {
            n -= found;
            continue;
        }
        for (; n > 0; --n) bits &= bits - 1;
        return i + __builtin_ctz(bits);
    }
    return count;
}

}  // namespace tokenweave::TW_ISA
