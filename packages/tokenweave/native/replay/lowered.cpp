// What a captured pass has in place of operations of torch: the same bytes.
#include <cmath>
#include <cstring>

#include "../kernels/checks.h"

using namespace tokenweave;

namespace {

float from_bfloat16(uint16_t bits) {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// To the nearest, ties to even, as torch rounds.
uint16_t to_bfloat16(float value) {
    if (std::isnan(value)) return 0x7fc0;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

extern "C" int tw_set_zero(void* data, int64_t bytes) {
    if (bytes < 0 || (!data && bytes)) return TW_ERROR_INVALID_ARGUMENT;
    if (bytes) std::memset(data, 0, bytes);
    return TW_OK;
}

extern "C" int tw_copy(void* to, const void* from, int64_t bytes) {
    if (bytes < 0 || ((!to || !from) && bytes)) return TW_ERROR_INVALID_ARGUMENT;
    if (bytes) std::memmove(to, from, bytes);
    return TW_OK;
}

extern "C" int tw_scale(void* data, int64_t count, const float* factor, int dtype) {
    if (count < 0 || (!data && count) || !factor || !is_dtype(dtype)) return TW_ERROR_INVALID_ARGUMENT;
    if (dtype == TW_FLOAT32) {
        auto* values = static_cast<float*>(data);
        for (int64_t i = 0; i < count; ++i) values[i] *= *factor;
    } else {
        auto* values = static_cast<uint16_t*>(data);
        for (int64_t i = 0; i < count; ++i) values[i] = to_bfloat16(from_bfloat16(values[i]) * *factor);
    }
    return TW_OK;
}
