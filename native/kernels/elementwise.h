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
