// Rotary embedding of q and k, with an optional norm of each head before, and the write of k and v to the
// cache.
#pragma once

#include "simd.h"

namespace tokenweave::TW_ISA {

// One head (head_dim,) normed and rotated into `out`. `wide` holds head_dim floats.
template <typename T>
void rotate_head(const RopeArgs& args, const T* head, const T* norm, const float* cos_sin, float* wide,
                 T* out) {
    const int d = args.head_dim, half = d / 2;
    Floats squares = zeros();
    for (int i = 0; i < d; i += LANES) {
        const Floats value = load(head + i);
        store(wide + i, value);
        squares = fma(value, value, squares);
    }
    if (norm) {
        const Floats scale =
            broadcast(1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(d) + args.eps));
        for (int i = 0; i < d; i += LANES) store(wide + i, load(wide + i) * scale * load(norm + i));
    }
    for (int i = 0; i < half; i += LANES) {
        const int count = half - i;
        const Floats cos = load_some(cos_sin + i, count), sin = load_some(cos_sin + half + i, count);
        const Floats first = load_some(wide + i, count), second = load_some(wide + half + i, count);
        store_some(out + i, first * cos - second * sin, count);
        store_some(out + half + i, second * cos + first * sin, count);
    }
}

// K of a block is [word of head_dim][16 tokens].
template <typename T>
TW_INLINE void store_key(T* block, const T* key, int offset, int head_dim) {
    char* out = reinterpret_cast<char*>(block) + offset * 4;
    const int words = head_dim / WORD_ELEMENTS<T>;
    for (int i = 0; i < words; ++i) memcpy(out + i * BLOCK_SIZE * 4, key + i * WORD_ELEMENTS<T>, 4);
}

// V of a block is [word of tokens][head_dim].
template <typename T>
TW_INLINE void store_value(T* block, const T* value, int offset, int head_dim) {
    constexpr int E = WORD_ELEMENTS<T>;
    T* out = block + offset / E * head_dim * E + offset % E;
    for (int i = 0; i < head_dim; ++i) out[i * E] = value[i];
}

template <typename T>
void rope_row(const RopeArgs& args, int64_t row, float* wide) {
    const int d = args.head_dim;
    T* key = reinterpret_cast<T*>(wide + d);
    const T* in = static_cast<const T*>(args.qkv) + row * args.ldqkv;
    const float* cos_sin = args.cos_sin + static_cast<int64_t>(args.positions[row]) * d;
    const T *q_norm = static_cast<const T*>(args.q_norm), *k_norm = static_cast<const T*>(args.k_norm);
    T* q = static_cast<T*>(args.q) + row * args.num_heads * d;
    for (int head = 0; head < args.num_heads; ++head)
        rotate_head(args, in + head * d, q_norm, cos_sin, wide, q + head * d);

    const int64_t block = args.slots[row] / BLOCK_SIZE, head_size = BLOCK_SIZE * d;
    const int offset = args.slots[row] % BLOCK_SIZE;
    T* keys = static_cast<T*>(args.cache) + block * 2 * args.num_kv_heads * head_size;
    T* values = keys + args.num_kv_heads * head_size;
    const T *k = in + args.num_heads * d, *v = k + args.num_kv_heads * d;
    for (int head = 0; head < args.num_kv_heads; ++head) {
        rotate_head(args, k + head * d, k_norm, cos_sin, wide, key);
        store_key(keys + head * head_size, key, offset, d);
        store_value(values + head * head_size, v + head * d, offset, d);
    }
}

// `scratch` holds 2 * head_dim floats.
static void rope_and_store(const RopeArgs& args, int64_t first_row, int64_t last_row, char* scratch) {
    with_dtype(args.dtype, [&](auto type) {
        for (int64_t row = first_row; row < last_row; ++row)
            rope_row<decltype(type)>(args, row, reinterpret_cast<float*>(scratch));
    });
}

}  // namespace tokenweave::TW_ISA
