// RMSNorm, with or without the residual before it, and the gates of gated MLPs.
#pragma once

#include "simd.h"

namespace tokenweave::TW_ISA {

// What a row is multiplied by so that its mean square is 1.
TW_INLINE Floats inverse_rms(float sum_of_squares, int64_t h, float eps) {
    return broadcast(1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(h) + eps));
}

template <typename T>
TW_INLINE float sum_of_squares(const T* x, int64_t h) {
    Floats squares = zeros();
    for (int64_t i = 0; i < h; i += LANES) {
        const Floats value = load_some(x + i, h - i);
        squares = fma(value, value, squares);
    }
    return reduce_add(squares);
}

// Adds x, normed where there is a post_weight, to the residual; the sum of squares of what it then is.
template <typename T>
TW_INLINE float add_row(const NormArgs& args, const T* x, float* residual) {
    const T* post_weight = static_cast<const T*>(args.post_weight);
    const Floats post_scale =
        post_weight ? inverse_rms(sum_of_squares(x, args.h), args.h, args.eps) : zeros();
    Floats squares = zeros();
    for (int64_t i = 0; i < args.h; i += LANES) {
        const int64_t count = args.h - i;
        Floats value = load_some(x + i, count);
        if (post_weight) value = value * post_scale * load_some(post_weight + i, count);
        value = value + load_some(residual + i, count);
        store_some(residual + i, value, count);
        squares = fma(value, value, squares);
    }
    return reduce_add(squares);
}

template <typename T>
void rms_norm_row(const NormArgs& args, int64_t row) {
    const T* x = static_cast<const T*>(args.x) + row * args.ldx;
    float* residual = args.residual ? args.residual + row * args.ldr : nullptr;
    const float squares = residual ? add_row(args, x, residual) : sum_of_squares(x, args.h);
    const Floats scale = inverse_rms(squares, args.h, args.eps);
    const T* weight = static_cast<const T*>(args.weight);
    T* out = static_cast<T*>(args.out) + row * args.ldo;
    for (int64_t i = 0; i < args.h; i += LANES) {
        const int64_t count = args.h - i;
        Floats value = residual ? load_some(residual + i, count) : load_some(x + i, count);
        if (weight) value = value * scale * load_some(weight + i, count);
        store_some(out + i, value, count);
    }
}

static void rms_norm(const NormArgs& args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        for (int64_t row = first_row; row < last_row; ++row) rms_norm_row<decltype(type)>(args, row);
    });
}

// What lies this far ahead is asked for: it is in other cores' caches, or in memory on a page to come, which
// the processor's own prefetcher does not reach for. 1 KiB is 16 lines of each stream: enough to cover the
// time that a line takes from another core at the rate at which a row is worked through, few enough to stay
// in a first-level cache.
constexpr int64_t AHEAD_BYTES = 1024;
// Sums of squares that do not wait for each other: a fused multiply-add takes 4 cycles, and one could begin
// in each.
constexpr int CHAINS = 4;
constexpr int MAX_PARTS = 64;  // ranks of a group: kMaxRanks of comm/group.h

template <typename T, int NUM_PARTS>
TW_INLINE Floats sum_parts(const T* const* parts, int num_parts, int64_t i, int64_t count) {
    Floats value = load_some(parts[0] + i, count);
    const int last = NUM_PARTS ? NUM_PARTS : num_parts;
    for (int part = 1; part < last; ++part) value = value + load_some(parts[part] + i, count);
    return value;
}

// The sum of squares of what use(i, count, sum of the parts there) returns, over a row. Chains are joined in
// a fixed order, so a row's bits are the same wherever it is computed.
template <typename T, int NUM_PARTS, typename Use>
TW_INLINE float for_each_sum(const T* const* parts, int num_parts, const float* residual, int64_t h,
                             const Use& use) {
    Floats squares[CHAINS];
    TW_UNROLL for (int chain = 0; chain < CHAINS; ++chain) squares[chain] = zeros();
    int64_t i = 0;
    for (; i + CHAINS * LANES <= h; i += CHAINS * LANES) {
        const int last = NUM_PARTS ? NUM_PARTS : num_parts;
        TW_UNROLL for (size_t line = 0; line < CHAINS * LANES * sizeof(float); line += 64)
            _mm_prefetch(reinterpret_cast<const char*>(residual + i) + AHEAD_BYTES + line, _MM_HINT_T0);
        for (int part = 0; part < last; ++part) {
            TW_UNROLL for (size_t line = 0; line < CHAINS * LANES * sizeof(T); line += 64) _mm_prefetch(
                reinterpret_cast<const char*>(parts[part] + i) + AHEAD_BYTES + line, _MM_HINT_T0);
        }
        TW_UNROLL for (int chain = 0; chain < CHAINS; ++chain) {
            const int64_t at = i + chain * LANES;
            const Floats value = use(at, LANES, sum_parts<T, NUM_PARTS>(parts, num_parts, at, LANES));
            squares[chain] = fma(value, value, squares[chain]);
        }
    }
    for (; i < h; i += LANES) {
        const Floats value = use(i, h - i, sum_parts<T, NUM_PARTS>(parts, num_parts, i, h - i));
        squares[0] = fma(value, value, squares[0]);
    }
    return reduce_add((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

// Adds the sum of the parts to the residual; the sum of squares of what it then is. With a norm of the sum
// before, the parts are read twice: a row of them is in the first-level cache by then, and nowhere needs to
// be kept.
template <typename T, int NUM_PARTS, bool HAS_POST>
TW_INLINE float add_parts_row(const T* const* parts, const ReduceNormArgs& args, float* residual) {
    const int n = args.num_parts;
    const T* post_weight = static_cast<const T*>(args.post_weight);
    Floats post_scale = zeros();
    if constexpr (HAS_POST) {
        const auto keep = [](int64_t, int64_t, Floats sum) __attribute__((always_inline)) { return sum; };
        post_scale =
            inverse_rms(for_each_sum<T, NUM_PARTS>(parts, n, residual, args.h, keep), args.h, args.eps);
    }
    const auto add = [&](int64_t i, int64_t count, Floats sum) __attribute__((always_inline)) {
        if constexpr (HAS_POST) sum = sum * post_scale * load_some(post_weight + i, count);
        const Floats value = sum + load_some(residual + i, count);
        store_some(residual + i, value, count);
        return value;
    };
    return for_each_sum<T, NUM_PARTS>(parts, n, residual, args.h, add);
}

// PAST_CACHES: `out` is a multiple of 64 bytes, and so is what a row of it takes. Without HAS_WEIGHT the row
// is copied.
template <typename T, bool PAST_CACHES, bool HAS_WEIGHT>
TW_INLINE void scale_row(const float* residual, const T* weight, Floats scale, T* out, int64_t h) {
    int64_t i = 0;
    for (; i + LANES <= h; i += LANES) {
        Floats value = load(residual + i);
        if constexpr (HAS_WEIGHT) value = value * scale * load(weight + i);
        PAST_CACHES ? stream(out + i, value) : store(out + i, value);
    }
    for (; i < h; i += LANES) {
        const int64_t count = h - i;
        Floats value = load_some(residual + i, count);
        if constexpr (HAS_WEIGHT) value = value * scale * load_some(weight + i, count);
        store_some(out + i, value, count);
    }
}

template <typename T, int NUM_PARTS, bool PAST_CACHES>
void reduce_norm_row(const ReduceNormArgs& args, int64_t row) {
    const T* parts[MAX_PARTS];
    for (int part = 0; part < args.num_parts; ++part) {
        parts[part] = static_cast<const T*>(args.parts[part]) + row * args.ldx;
    }
    float* residual = args.residual + row * args.ldr;
    const float squares = args.post_weight ? add_parts_row<T, NUM_PARTS, true>(parts, args, residual)
                                           : add_parts_row<T, NUM_PARTS, false>(parts, args, residual);
    T* out = static_cast<T*>(args.out) + row * args.ldo;
    const T* weight = static_cast<const T*>(args.weight);
    if (weight) {
        scale_row<T, PAST_CACHES, true>(residual, weight, inverse_rms(squares, args.h, args.eps), out,
                                        args.h);
    } else {
        scale_row<T, PAST_CACHES, false>(residual, weight, zeros(), out, args.h);
    }
}

template <typename T, int NUM_PARTS>
void reduce_norm_rows(const ReduceNormArgs& args, int64_t first_row, int64_t last_row) {
    const bool is_aligned = (reinterpret_cast<uintptr_t>(args.out) | args.ldo * sizeof(T)) % 64 == 0;
    if (args.past_caches && is_aligned) {
        for (int64_t row = first_row; row < last_row; ++row) reduce_norm_row<T, NUM_PARTS, true>(args, row);
        // Stores past the caches are not ordered with the release that tells others of them; the fence orders
        // them.
        _mm_sfence();
    } else {
        for (int64_t row = first_row; row < last_row; ++row) reduce_norm_row<T, NUM_PARTS, false>(args, row);
    }
}

static void reduce_norm(const ReduceNormArgs& args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        using T = decltype(type);
        args.num_parts == 2 ? reduce_norm_rows<T, 2>(args, first_row, last_row)
                            : reduce_norm_rows<T, 0>(args, first_row, last_row);
    });
}

TW_INLINE Floats silu(Floats x) {
    const float minus_log2_e = -1.4426950408889634f;
    // exp2 takes no more than 127; there silu is 0 to the last bit of what float32 can tell from it.
    const Floats exponent = zeros() - max(x * broadcast(-minus_log2_e), broadcast(-127.0f));
    return x / (broadcast(1.0f) + exp2(exponent));
}

// GELU by its tanh: x / 2 * (1 + tanh(y)) = x / (1 + exp(-2y)), with y = sqrt(2 / pi) * (x + 0.044715 x^3).
TW_INLINE Floats gelu_tanh(Floats x) {
    const Floats two_y_log2_e = x * fma(x * x, broadcast(0.10294323f), broadcast(2.3022082f));
    return x / (broadcast(1.0f) + exp2(zeros() - max(two_y_log2_e, broadcast(-127.0f))));
}

template <typename T, typename Out, typename Activation>
void gate_rows(const GateArgs& args, int64_t first_row, int64_t last_row, Activation activation) {
    for (int64_t row = first_row; row < last_row; ++row) {
        const T* gate = static_cast<const T*>(args.gate) + row * args.ldg;
        const T* up = static_cast<const T*>(args.up) + row * args.ldg;
        Out* out = static_cast<Out*>(args.out) + row * args.ldo;
        for (int64_t i = 0; i < args.width; i += LANES) {
            const int64_t count = args.width - i;
            store_some(out + i, activation(load_some(gate + i, count)) * load_some(up + i, count), count);
        }
    }
}

static void gate_and_mul(const GateArgs& args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        with_dtype(args.out_dtype, [&](auto out_type) {
            const auto rows = [&](auto activation) {
                gate_rows<decltype(type), decltype(out_type)>(args, first_row, last_row, activation);
            };
            if (args.activation == TW_SILU)
                rows([](Floats x) __attribute__((always_inline)) { return silu(x); });
            else rows([](Floats x) __attribute__((always_inline)) { return gelu_tanh(x); });
        });
    });
}

}  // namespace tokenweave::TW_ISA
