// One row's token, drawn as tw_sample says; the order of every decision is that of tokenweave/sampling/reference.py.
#pragma once

#include <cstddef>

#include "table.h"
#include "tokenweave.h"

namespace tokenweave {

// Scratch that sample_row uses for a vocabulary of this size.
size_t sampling_scratch_bytes(int64_t vocab_size);

// likeliest: room for params.logprobs ids.
void sample_row(const SamplingTable& passes, const float* logits, int64_t vocab_size,
                const tw_sampling& params, char* scratch, tw_sampled* sampled, int32_t* likeliest);

}  // namespace tokenweave
