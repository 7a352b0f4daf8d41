// RMSNorm, with or without the residual before it, and the gates of gated MLPs.
#pragma once

#include "simd.h"

namespace tokenweave::TW_ISA {

template <typename T>
void rms_norm_row(const NormArgs &args, int64_t row) {
    const T *x = static_cast<const T *>(args.x) + row * args.ldx;
    float *residual = args.residual ? args.residual + row * args.ldr : nullptr;
    Floats squares = zeros();
    for (int64_t i = 0; i < args.h; i += LANES) {
        const int64_t count = args.h - i;
        Floats value = load_some(x + i, count);
        if (residual) {
            value = value + load_some(residual + i, count);
            store_some(residual + i, value, count);
        }
        squares = fma(value, value, squares);
    }
    const float mean = reduce_add(squares) / static_cast<float>(args.h);
    const Floats scale = broadcast(1.0f / __builtin_sqrtf(mean + args.eps));
    const T *weight = static_cast<const T *>(args.weight);
    T *out = static_cast<T *>(args.out) + row * args.ldo;
    for (int64_t i = 0; i < args.h; i += LANES) {
        const int64_t count = args.h - i;
        const Floats value = residual ? load_some(residual + i, count) : load_some(x + i, count);
        store_some(out + i, value * scale * load_some(weight + i, count), count);
    }
}

static void rms_norm(const NormArgs &args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        for (int64_t row = first_row; row < last_row; ++row) rms_norm_row<decltype(type)>(args, row);
    });
}

// What lies this far ahead is asked for: it is in other cores' caches, or in memory on a page to come.
constexpr int64_t AHEAD_BYTES = 1024;
constexpr int CHAINS = 4;  // sums of squares that do not wait for each other
constexpr int MAX_PARTS = 64;

template <typename T, int NUM_PARTS>
TW_INLINE Floats sum_parts(const T *const *parts, int num_parts, int64_t i, int64_t count) {
    Floats value = load_some(parts[0] + i, count);
    const int last = NUM_PARTS ? NUM_PARTS : num_parts;
    for (int part = 1; part < last; ++part) value = value + load_some(parts[part] + i, count);
    return value;
}

// Adds the parts into the residual; the sum of squares of what it then is.
template <typename T, int NUM_PARTS>
TW_INLINE float add_parts_row(const T *const *parts, int num_parts, float *residual, int64_t h) {
    const auto add = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        const Floats value = sum_parts<T, NUM_PARTS>(parts, num_parts, i, count) + load_some(residual + i, count);
        store_some(residual + i, value, count);
        return value;
    };
    Floats squares[CHAINS];
    TW_UNROLL for (int chain = 0; chain < CHAINS; ++chain) squares[chain] = zeros();
    int64_t i = 0;
    for (; i + CHAINS * LANES <= h; i += CHAINS * LANES) {
        const int last = NUM_PARTS ? NUM_PARTS : num_parts;
        TW_UNROLL for (size_t line = 0; line < CHAINS * LANES * sizeof(float); line += 64)
            _mm_prefetch(reinterpret_cast<const char *>(residual + i) + AHEAD_BYTES + line, _MM_HINT_T0);
        for (int part = 0; part < last; ++part) {
            TW_UNROLL for (size_t line = 0; line < CHAINS * LANES * sizeof(T); line += 64)
                _mm_prefetch(reinterpret_cast<const char *>(parts[part] + i) + AHEAD_BYTES + line, _MM_HINT_T0);
        }
        TW_UNROLL for (int chain = 0; chain < CHAINS; ++chain) {
            const Floats value = add(i + chain * LANES, LANES);
            squares[chain] = fma(value, value, squares[chain]);
        }
    }
    for (; i < h; i += LANES) {
        const Floats value = add(i, h - i);
        squares[0] = fma(value, value, squares[0]);
    }
    return reduce_add((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

// PAST_CACHES: `out` is a multiple of 64 bytes, and so is what a row of it takes.
template <typename T, bool PAST_CACHES>
TW_INLINE void scale_row(const float *residual, const T *weight, Floats scale, T *out, int64_t h) {
    int64_t i = 0;
    for (; i + LANES <= h; i += LANES) {
        const Floats value = load(residual + i) * scale * load(weight + i);
        PAST_CACHES ? stream(out + i, value) : store(out + i, value);
    }
    for (; i < h; i += LANES) {
        const int64_t count = h - i;
        store_some(out + i, load_some(residual + i, count) * scale * load_some(weight + i, count), count);
    }
}

template <typename T, int NUM_PARTS, bool PAST_CACHES>
void reduce_norm_row(const ReduceNormArgs &args, int64_t row) {
    const T *parts[MAX_PARTS];
    for (int part = 0; part < args.num_parts; ++part) {
        parts[part] = static_cast<const T *>(args.parts[part]) + row * args.ldx;
    }
    float *residual = args.residual + row * args.ldr;
    const float squares = add_parts_row<T, NUM_PARTS>(parts, args.num_parts, residual, args.h);
    const Floats scale = broadcast(1.0f / __builtin_sqrtf(squares / static_cast<float>(args.h) + args.eps));
    scale_row<T, PAST_CACHES>(residual, static_cast<const T *>(args.weight), scale,
                              static_cast<T *>(args.out) + row * args.ldo, args.h);
}

template <typename T, int NUM_PARTS>
void reduce_norm_rows(const ReduceNormArgs &args, int64_t first_row, int64_t last_row) {
    const bool is_aligned = (reinterpret_cast<uintptr_t>(args.out) | args.ldo * sizeof(T)) % 64 == 0;
    if (args.past_caches && is_aligned) {
        for (int64_t row = first_row; row < last_row; ++row) reduce_norm_row<T, NUM_PARTS, true>(args, row);
        _mm_sfence();  // before the synchronisation that tells others of it
    } else {
        for (int64_t row = first_row; row < last_row; ++row) reduce_norm_row<T, NUM_PARTS, false>(args, row);
    }
}

static void reduce_norm(const ReduceNormArgs &args, int64_t first_row, int64_t last_row) {
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

template <typename Activation>
void gate_and_mul(const GateArgs &args, int64_t first_row, int64_t last_row, Activation activation) {
    with_dtype(args.dtype, [&](auto type) {
        using T = decltype(type);
        for (int64_t row = first_row; row < last_row; ++row) {
            const T *gate = static_cast<const T *>(args.gate_up) + row * args.ldg;
            T *out = static_cast<T *>(args.out) + row * args.width;
            for (int64_t i = 0; i < args.width; i += LANES) {
                const int64_t count = args.width - i;
                const Floats up = load_some(gate + args.width + i, count);
                store_some(out + i, activation(load_some(gate + i, count)) * up, count);
            }
        }
    });
}

static void silu_and_mul(const GateArgs &args, int64_t first_row, int64_t last_row) {
    gate_and_mul(args, first_row, last_row, [](Floats x) __attribute__((always_inline)) { return silu(x); });
}

static void gelu_tanh_and_mul(const GateArgs &args, int64_t first_row, int64_t last_row) {
    gate_and_mul(args, first_row, last_row, [](Floats x) __attribute__((always_inline)) { return gelu_tanh(x); });
}

}  // namespace tokenweave::TW_ISA
