// Elementwise sums over the ranks' buffers.
#ifndef TOKENWEAVE_COMM_SUM_H
#define TOKENWEAVE_COMM_SUM_H

#include <cstddef>

namespace tokenweave::shm {

// out[i] = parts[0][i] + ... + parts[num_parts - 1][i]: in that order, in float32 for floats (in the type
// itself, wrapping, for integers), rounded once to nearest even. `out` may be one of the parts. The bits
// depend on the element alone, never on its position, the count, or the processor's vector width.
using SumFunction = void (*)(void* out, const void* const* parts, int num_parts, size_t count);

// `dtype` is a tw_shm_dtype; null for one that is unknown.
SumFunction sum_function(int dtype);
size_t element_bytes(int dtype);

}  // namespace tokenweave::shm

#endif
