// Rows of x as blocks of int8 codes with one scale each.
#pragma once

#include "codes.h"

namespace tokenweave::TW_ISA {

// Blocks whose largest value is below it are zero: 127 over it is still a float.
constexpr float SMALLEST_LARGEST = 1e-30f;

TW_INLINE int32_t reduce_max(IntPart a) {
    TW_UNROLL for (int half = WIDTH / 2; half > 0; half /= 2) {
        IntPart other = a;
        TW_UNROLL for (int i = 0; i < half; ++i) other[i] = a[i + half];
        a = a > other ? a : other;
    }
    return a[0];
}
TW_INLINE int32_t reduce_sum(IntPart a) {
    int32_t lanes[WIDTH], sum = 0;
    memcpy(lanes, &a, sizeof(lanes));
    TW_UNROLL for (int i = 0; i < WIDTH; ++i) sum += lanes[i];
    return sum;
}

// The bits of the largest |x|. As integers they are in the order of the numbers, with infinity and NaN above.
TW_INLINE int32_t largest_bits(const Floats (&x)[2]) {
    IntPart largest = {};
    TW_UNROLL for (int h = 0; h < 2; ++h) TW_EACH_PART {
        const IntPart bits = reinterpret_cast<IntPart>(x[h].part[i]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return reduce_max(largest);
}

// A block with infinity or NaN in it has the scale NaN and spoils its own row only.
TW_INLINE void quantise_block(const Floats (&x)[2], ActivationBlock* out) {
    const int32_t bits = largest_bits(x);
    float largest;
    memcpy(&largest, &bits, sizeof(largest));
    const bool finite = bits < 0x7f800000, zero = largest < SMALLEST_LARGEST;
    const float inverse = finite && !zero ? 127.0f / largest : 0.0f;
    out->scale = !finite ? __builtin_nanf("") : zero ? 0.0f : largest / 127.0f;
    // 1.5 * 2^23: adding it rounds to an integer, ties to even, left in the low bits.
    const float magic = 12582912.0f;
    int32_t magic_bits;
    memcpy(&magic_bits, &magic, sizeof(magic_bits));
    int32_t all = 0;
    TW_UNROLL for (int h = 0; h < 2; ++h) {
        IntPart sum = {};
        TW_EACH_PART {
            const FloatPart scaled = (finite ? x[h].part[i] : FloatPart{}) * inverse + magic;
            const IntPart code = reinterpret_cast<IntPart>(scaled) - magic_bits;
            sum += code;
            const SignedBytePart bytes = __builtin_convertvector(code, SignedBytePart);
            memcpy(out->codes + h * LANES + i * WIDTH, &bytes, sizeof(bytes));
        }
        const int32_t half_sum = reduce_sum(sum);
        out->half_sum[h] = static_cast<int16_t>(half_sum);
        all += half_sum;
    }
    out->sum = out->scale * static_cast<float>(all);
}

// Groups are those of the weight: where it begins or ends inside one, x is 0 outside.
template <typename T>
void quantise_row(const QuantiseArgs& args, int64_t row) {
    const T* const x = static_cast<const T*>(args.x) + row * args.ldx;
    const int64_t before = args.first_column % GROUP_VALUES;
    const int64_t num_groups = (before + args.k + GROUP_VALUES - 1) / GROUP_VALUES;
    for (int64_t g = 0; g < num_groups; ++g) {
        const int64_t column = g * GROUP_VALUES - before, left = args.k - column;
        ActivationBlock* const out = args.out + g * args.m + row;
        if (column >= 0 && left >= GROUP_VALUES) {
            const Floats values[2] = {load(x + column), load(x + column + LANES)};
            quantise_block(values, out);
            continue;
        }
        T inside[GROUP_VALUES] = {};
        const int64_t first = column < 0 ? -column : 0, last = left < GROUP_VALUES ? left : GROUP_VALUES;
        memcpy(inside + first, x + column + first, (last - first) * sizeof(T));
        const Floats values[2] = {load(inside), load(inside + LANES)};
        quantise_block(values, out);
    }
}

static void quantise(const QuantiseArgs& args, int64_t first_row, int64_t last_row) {
    with_dtype(args.dtype, [&](auto type) {
        for (int64_t row = first_row; row < last_row; ++row) quantise_row<decltype(type)>(args, row);
    });
}

}  // namespace tokenweave::TW_ISA
