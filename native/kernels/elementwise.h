// RMSNorm, with or without the residual before it, and SwiGLU's gate.
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

// Rows of the next iterations are asked for this far ahead: the parts lie in other cores' caches, or in memory.
constexpr int64_t AHEAD_BYTES = 1024;

template <typename T, int NUM_PARTS>
TW_INLINE Floats sum_parts(const T *const *parts, int num_parts, int64_t i, int64_t count) {
    Floats value = load_some(parts[0] + i, count);
    const int last = NUM_PARTS ? NUM_PARTS : num_parts;
    for (int part = 1; part < last; ++part) value = value + load_some(parts[part] + i, count);
    return value;
}

template <typename T, int NUM_PARTS>
void reduce_norm_row(const ReduceNormArgs &args, int64_t row) {
    constexpr int MAX_PARTS = 64;
    const T *parts[MAX_PARTS];
    for (int part = 0; part < args.num_parts; ++part) {
        parts[part] = static_cast<const T *>(args.parts[part]) + row * args.ldx;
    }
    float *residual = args.residual + row * args.ldr;
    Floats squares = zeros();
    for (int64_t i = 0; i < args.h; i += LANES) {
        const int64_t count = args.h - i;
        for (int part = 0; part < args.num_parts; ++part) {
            __builtin_prefetch(reinterpret_cast<const char *>(parts[part] + i) + AHEAD_BYTES);
        }
        const Floats value = sum_parts<T, NUM_PARTS>(parts, args.num_parts, i, count) + load_some(residual + i, count);
        store_some(residual + i, value, count);
        squares = fma(value, value, squares);
    }
    const float mean = reduce_add(squares) / static_cast<float>(args.h);
    const Floats scale = broadcast(1.0f / __builtin_sqrtf(mean + args.eps));
    const T *weight = static_cast<const T *>(args.weight);
    T *out = static_cast<T *>(args.out) + row * args.ldo;
    for (int64_t i = 0; i < args.h; i += LANES) {
        const int64_t count = args.h - i;
        store_some(out + i, load_some(residual + i, count) * scale * load_some(weight + i, count), count);
    }
}

static void reduce_norm(const ReduceNormArgs &args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        using T = decltype(type);
        const auto row_of = args.num_parts == 2 ? reduce_norm_row<T, 2> : reduce_norm_row<T, 0>;
        for (int64_t row = first_row; row < last_row; ++row) row_of(args, row);
    });
}

TW_INLINE Floats silu(Floats x) {
    const float minus_log2_e = -1.4426950408889634f;
    // exp2 takes no more than 127; there silu is 0 to the last bit of what float32 can tell from it.
    const Floats exponent = zeros() - max(x * broadcast(-minus_log2_e), broadcast(-127.0f));
    return x / (broadcast(1.0f) + exp2(exponent));
}

static void silu_and_mul(const GateArgs &args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        using T = decltype(type);
        for (int64_t row = first_row; row < last_row; ++row) {
            const T *gate = static_cast<const T *>(args.gate_up) + row * args.ldg;
            T *out = static_cast<T *>(args.out) + row * args.width;
            for (int64_t i = 0; i < args.width; i += LANES) {
                const int64_t count = args.width - i;
                const Floats up = load_some(gate + args.width + i, count);
                store_some(out + i, silu(load_some(gate + i, count)) * up, count);
            }
        }
    });
}

}  // namespace tokenweave::TW_ISA
