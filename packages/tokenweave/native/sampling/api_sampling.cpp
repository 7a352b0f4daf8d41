// The C ABI of sampling. Every token id is checked here, before it is used.
#include <algorithm>
#include <cmath>

#include "../kernels/checks.h"
#include "sampler.h"

using namespace tokenweave;

namespace {

bool is_penalty(float value) { return std::isfinite(value); }

bool is_sampling(const tw_sampling& params, int64_t vocab_size, int64_t max_logprobs) {
    const bool has_penalties =
        params.repetition_penalty != 1 || params.frequency_penalty != 0 || params.presence_penalty != 0;
    if (!(params.top_p > 0) || !(params.temperature >= 0) || !(params.min_p <= 1) ||
        params.logprobs > max_logprobs || !(params.repetition_penalty > 0) ||
        !is_penalty(params.repetition_penalty) || !is_penalty(params.frequency_penalty) ||
        !is_penalty(params.presence_penalty))
        return false;
    if (!has_penalties) return true;
    return params.num_prompt >= 0 && params.num_tokens >= params.num_prompt &&
           std::all_of(params.tokens, params.tokens + params.num_tokens,
                       [vocab_size](int32_t token) { return token >= 0 && token < vocab_size; });
}

}  // namespace

int tw_sample(tw_pool* pool, const float* logits, int64_t ldl, int64_t m, int64_t vocab_size,
              const tw_sampling* params, tw_sampled* sampled, int32_t* likeliest, int64_t max_logprobs) {
    if (!pool || m < 0 || vocab_size < 1 || vocab_size > INT32_MAX || ldl < vocab_size || max_logprobs < 0 ||
        !std::all_of(
            params, params + m,
            [=](const tw_sampling& row) { return is_sampling(row, vocab_size, max_logprobs); }))
        return TW_ERROR_INVALID_ARGUMENT;
    try {
        pool->pool.reserve(sampling_scratch_bytes(vocab_size));
    } catch (const std::bad_alloc&) {
        return TW_ERROR_OUT_OF_MEMORY;
    }
    const SamplingTable& passes = pool->pool.kernels().sampling;
    run_range(pool->pool, m, 1, [&](int64_t first, int64_t last, char* scratch) {
        for (int64_t row = first; row < last; ++row)
            sample_row(passes, logits + row * ldl, vocab_size, params[row], scratch, sampled + row,
                       likeliest + row * max_logprobs);
    });
    return TW_OK;
}
