// A worker's scratch, divided into arrays that each begin on a cache line.
#pragma once

#include <cstddef>

namespace tokenweave {

// The next array of `size_bytes` after the `used` bytes of `scratch`. Without scratch only the bytes are counted.
// Always inlined: builds of several instruction sets include it.
static inline __attribute__((always_inline)) char* take_scratch(char* scratch, size_t& used,
                                                                size_t size_bytes) {
    char* const part = scratch ? scratch + used : nullptr;
    used += (size_bytes + 63) / 64 * 64;
    return part;
}

}  // namespace tokenweave
