// What each instruction set's build offers to sampling: one pass over a row each, on one thread. See passes.h.
#pragma once

#include <cstdint>

namespace tokenweave {

constexpr int SAMPLING_CHUNK = 256;  // entries whose mass or maximum is kept, so that few are visited twice

// Turns scores into weights = exp((scores - highest) / temperature), and takes their masses. With high >= 0 the
// weights are split as well: those in (low, high] go to `between`, in order, with where they stand.
struct WeighArgs {
    const float* scores;
    int64_t count;
    float highest, temperature;
    double magic;  // the number whose last bit is one quantum; see add_masses
    float low, high;
    float* weights;          // (count,)
    uint64_t* chunk_masses;  // of the weights above `high`
    float* between;          // (count,)
    int32_t* places;         // (count,)
};
struct Weighed {
    uint64_t total, above;  // the mass of all, and of those above `high`
    int64_t num_between;
};

// Lays aside the scores that are more than `floor` above `highest` (floor < 0), in order, with where they stand, and sums
// up roughly what the others weigh: see Tail.
struct SplitArgs {
    const float* scores;
    int64_t count;
    float highest, floor;
    float scale;          // log2(e) / temperature
    const float* maxima;  // of each chunk
    float* candidates;    // (count,), rounded up to whole groups of lanes
    int32_t* places;      // likewise
};
struct Split {
    int64_t num_candidates;
    double tail;
};

struct SamplingTable {
    float (*largest)(const float* values, int64_t count, float* chunk_maxima);
    void (*weigh)(const WeighArgs& args, Weighed* out);
    void (*split)(const SplitArgs& args, Split* out);
    uint64_t (*mass_above)(const float* weights, int64_t count, float floor, double magic);
    int64_t (*keep_above)(const float* values, int64_t count, float floor, float* kept, int32_t* places);
    int64_t (*count_above)(const float* values, int64_t count, float floor);
    int64_t (*find_equal)(const float* values, int64_t count, float value, int64_t n);
};

}  // namespace tokenweave
