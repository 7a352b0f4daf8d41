// The memory in which a worker samples a row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels/scratch.h"
#include "table.h"

namespace tokenweave {

constexpr int HISTOGRAM_BINS = 2048;

struct Scratch {
    float* scores;           // (vocab_size,)
    float* weights;          // (vocab_size,)
    float* kept;             // (vocab_size,)
    int32_t* places;         // (vocab_size,)
    float* candidates;       // (vocab_size,)
    int32_t* standing;       // (vocab_size,): where the candidates stand
    float* work;             // (vocab_size,)
    float* maxima;           // one for each chunk
    uint64_t* chunk_masses;  // one for each chunk
    uint64_t* histogram;     // (HISTOGRAM_BINS,)
};

inline size_t divide(char* memory, int64_t vocab_size, Scratch* scratch) {
    size_t used = 0;
    const auto take = [&](size_t size_bytes) { return take_scratch(memory, used, size_bytes); };
    const size_t entries = static_cast<size_t>(vocab_size);
    const size_t chunks = static_cast<size_t>(vocab_size) / SAMPLING_CHUNK + 1;
    scratch->scores = reinterpret_cast<float*>(take(entries * sizeof(float)));
    scratch->weights = reinterpret_cast<float*>(take(entries * sizeof(float)));
    scratch->kept = reinterpret_cast<float*>(take(entries * sizeof(float)));
    scratch->places = reinterpret_cast<int32_t*>(take(entries * sizeof(int32_t)));
    scratch->candidates = reinterpret_cast<float*>(take(entries * sizeof(float)));
    scratch->standing = reinterpret_cast<int32_t*>(take(entries * sizeof(int32_t)));
    scratch->work = reinterpret_cast<float*>(take(entries * sizeof(float)));
    scratch->maxima = reinterpret_cast<float*>(take(chunks * sizeof(float)));
    scratch->chunk_masses = reinterpret_cast<uint64_t*>(take(chunks * sizeof(uint64_t)));
    scratch->histogram = reinterpret_cast<uint64_t*>(take(HISTOGRAM_BINS * sizeof(uint64_t)));
    return used;
}

}  // namespace tokenweave
