#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "arithmetic.h"
#include "row_scratch.h"

namespace tokenweave {
namespace {

// How the bits of a weight are taken apart, the highest first. Positive floats order as their bits do.
struct Digit {
    int shift;
    uint32_t mask;
};
constexpr Digit DIGITS[] = {{19, 0x7ff}, {8, 0x7ff}, {0, 0xff}};  // no weight is above 1

constexpr int64_t MIN_BRACKET_COUNT = 4096;  // from here on a guess saves more than it costs
constexpr int64_t MAX_FEW_SAMPLED = 256;     // of a sample
constexpr int64_t SAMPLED_PART = 16;         // so many of each chunk, which is the same fraction of it
static_assert(SAMPLED_PART * SAMPLED_PART == SAMPLING_CHUNK);

// The nucleus's edge is probably a weight in (low, high], and almost certainly one above `floor`. No guess: high is below
// 0.
struct Bracket {
    float low = -1, high = -1, floor = -1;
};

// Between these temperatures a difference of scores over the temperature is no infinity, and no NaN.
constexpr double MIN_ROUGH_TEMPERATURE = 1e-3, MAX_ROUGH_TEMPERATURE = 1e3;
constexpr double LOG2_E = 1.4426950408889634;

// One row on its way to a token.
class Row {
  public:
    Row(const SamplingTable& passes, const float* logits, int64_t vocab_size, const tw_sampling& params,
        const Scratch& scratch)
        : passes_(passes),
          logits_(logits),
          vocab_size_(vocab_size),
          params_(params),
          scratch_(scratch),
          quanta_(quanta_of_one(vocab_size)),
          magic_(magic_of(quanta_)) {}

    void sample(tw_sampled* sampled, int32_t* likeliest) {
        float highest = passes_.largest(logits_, vocab_size_, scratch_.maxima);
        sampled->largest =
            highest + 0.0f;  // no -0, whose place among equals depends on the order of comparison
        sampled->token = -1;
        if (!std::isfinite(highest)) return;
        const float* scores = penalised(&highest);
        const auto token = params_.temperature == 0 ? first_of(scores, highest) : draw(scores, highest);
        sampled->token = static_cast<int32_t>(token);
        if (params_.logprobs >= 0) rank(sampled, likeliest);
    }

  private:
    const float* penalised(float* highest) {
        if (params_.repetition_penalty == 1 && !counts_tokens(params_)) return logits_;
        std::memcpy(scratch_.scores, logits_, vocab_size_ * sizeof(float));
        if (params_.repetition_penalty != 1) penalise_repetition(logits_, params_, scratch_.scores);
        if (counts_tokens(params_)) penalise_output(params_, scratch_.places, scratch_.scores);
        *highest = passes_.largest(scratch_.scores, vocab_size_, scratch_.maxima);
        return scratch_.scores;
    }

    int64_t first_of(const float* scores, float value) const {
        int64_t chunk = 0;
        while (scratch_.maxima[chunk] != value) ++chunk;
        const int64_t start = chunk * SAMPLING_CHUNK;
        return start + passes_.find_equal(scores + start, vocab_size_ - start, value, 0);
    }

    bool has_top_k() const { return params_.top_k > 0 && params_.top_k < vocab_size_; }

    int64_t draw(const float* scores, float highest) {
        if (has_top_k()) {
            const int64_t count = keep_best(scores, params_.top_k);
            std::memcpy(scratch_.scores, scratch_.kept, count * sizeof(float));
            return scratch_.places[draw_of(scratch_.scores, count, highest, {})];
        }
        if (params_.top_p == 1 || vocab_size_ < MIN_BRACKET_COUNT)
            return draw_of(scores, vocab_size_, highest, {});
        const Bracket bracket = guess_edge(scores, highest);
        const int64_t token = draw_of_candidates(scores, highest, bracket);
        return token >= 0 ? token : draw_of(scores, vocab_size_, highest, bracket);
    }

    // Every value that is no less than the k-th best, to `kept` and `places`; equals of the k-th all stay. The k-th
    // best of the chunks' maxima cannot exceed the k-th best value, and leaves few to look at. Uses `weights`.
    int64_t keep_best(const float* values, int64_t k) {
        const int64_t num_chunks = (vocab_size_ + SAMPLING_CHUNK - 1) / SAMPLING_CHUNK;
        float floor = -INFINITY;
        if (k <= num_chunks) {
            std::copy(scratch_.maxima, scratch_.maxima + num_chunks, scratch_.weights);
            floor = kth(scratch_.weights, num_chunks, k);
        }
        int64_t count = floor == -INFINITY ? keep_all(values)
                                           : passes_.keep_above(values, vocab_size_, just_below(floor),
                                                                scratch_.kept, scratch_.places);
        std::copy(scratch_.kept, scratch_.kept + count, scratch_.weights);
        floor = kth(scratch_.weights, count, k);
        int64_t best = 0;
        for (int64_t i = 0; i < count; ++i) {
            scratch_.kept[best] = scratch_.kept[i];
            scratch_.places[best] = scratch_.places[i];
            best += scratch_.kept[i] >= floor;
        }
        return best;
    }

    int64_t keep_all(const float* values) {
        for (int64_t i = 0; i < vocab_size_; ++i) {
            scratch_.kept[i] = values[i];
            scratch_.places[i] = static_cast<int32_t>(i);
        }
        return vocab_size_;
    }

    static float kth(float* values, int64_t count, int64_t k) {
        std::nth_element(values, values + (k - 1), values + count, [](float a, float b) { return a > b; });
        return values[k - 1];
    }

    // Draws among `count` scores. Those that stay weigh more than `edge_`, or as much and stand no later than
    // `last_equal_`.
    int64_t draw_of(const float* scores, int64_t count, float highest, Bracket bracket) {
        keep_all_of(scores, count, highest, bracket);
        has_chunk_masses_ = params_.top_p >= 1;
        if (!has_chunk_masses_) keep_nucleus(count, bracket, {});
        keep_min_p(count);
        return inverse_cdf(count);
    }

    // Draws among the tokens that are heavier than the bracket's floor, of which the nucleus probably is
    // a part; the others are weighed roughly, and exactly where that does not settle where the edge is. -1: the nucleus
    // may have others. A sampler that weighed all exactly would find the same edge.
    int64_t draw_of_candidates(const float* scores, float highest, Bracket bracket) {
        const double temperature = params_.temperature;
        if (!(bracket.floor > 0) || temperature < MIN_ROUGH_TEMPERATURE ||
            temperature > MAX_ROUGH_TEMPERATURE)
            return -1;
        const float floor = static_cast<float>(std::log(bracket.floor) * temperature);
        Split split;
        passes_.split({scores, vocab_size_, highest, floor, static_cast<float>(LOG2_E / temperature),
                       scratch_.maxima, scratch_.candidates, scratch_.standing},
                      &split);
        const int64_t count = split.num_candidates;
        const Bracket inner = count < MIN_BRACKET_COUNT ? Bracket{} : bracket;
        keep_all_of(scratch_.candidates, count, highest, inner);
        if (!keep_nucleus(count, inner, tail_of(split.tail, vocab_size_ - count, quanta_))) {
            const uint64_t all = weigh(scores, vocab_size_, highest, params_.temperature, {}).total;
            keep_all_of(scratch_.candidates, count, highest, inner);
            if (!keep_nucleus(count, inner, {all - total_, all - total_})) return -1;
        }
        if (edge_ <= std::exp(floor / temperature) * (1 + ROUGH_ERROR)) return -1;
        keep_min_p(count);
        return scratch_.standing[inverse_cdf(count)];
    }

    void keep_all_of(const float* scores, int64_t count, float highest, Bracket bracket) {
        weighed_ = weigh(scores, count, highest, params_.temperature, bracket);
        total_ = weighed_.total;
        edge_ = 0;
        last_equal_ = count;
    }

    void keep_min_p(int64_t count) {
        if (!(params_.min_p > edge_)) return;
        edge_ = params_.min_p;
        last_equal_ = count;
        has_chunk_masses_ = false;
        total_ = passes_.mass_above(scratch_.weights, count, just_below(edge_), magic_);
    }

    Weighed weigh(const float* scores, int64_t count, float highest, float temperature,
                  Bracket bracket) const {
        Weighed weighed;
        passes_.weigh({scores, count, highest, temperature, magic_, bracket.low, bracket.high,
                       scratch_.weights, scratch_.chunk_masses, scratch_.kept, scratch_.places},
                      &weighed);
        return weighed;
    }

    // Where the nucleus's edge probably is, from the best of each chunk and a sixteenth of the others. A wrong guess
    // costs time only.
    Bracket guess_edge(const float* scores, float highest) {
        float* const sample = scratch_.kept;
        int64_t num_sampled = 0, chunk = 0;
        for (; (chunk + 1) * SAMPLING_CHUNK <= vocab_size_; ++chunk) {
            const float* group = scores + chunk * SAMPLING_CHUNK + chunk * 5 % SAMPLED_PART * SAMPLED_PART;
            for (int64_t i = 0; i < SAMPLED_PART; ++i)
                sample[num_sampled++] = group[i] == scratch_.maxima[chunk] ? -INFINITY : group[i];
        }
        const int64_t num_chunks = (vocab_size_ + SAMPLING_CHUNK - 1) / SAMPLING_CHUNK;
        std::copy(scratch_.maxima, scratch_.maxima + num_chunks, sample + num_sampled);
        const int64_t count = num_sampled + num_chunks;
        weigh(sample, count, highest, params_.temperature, {});
        uint64_t* const masses = scratch_.histogram;
        std::fill(masses, masses + HISTOGRAM_BINS, 0);
        uint64_t all = 0;
        for (int64_t i = 0; i < count; ++i) {
            const float weight = scratch_.weights[i];
            const uint64_t mass = mass_of(weight, magic_) * (i < num_sampled ? SAMPLED_PART : 1);
            masses[bits_of(weight) >> DIGITS[0].shift] += mass;
            all += mass;
        }
        Bracket bracket = bracket_of(masses, static_cast<double>(all));
        // A few more candidates cost less than a wrong guess, and many more do not.
        const bool is_few = passes_.count_above(scratch_.weights, count, bracket.floor) < MAX_FEW_SAMPLED;
        if (!is_few) bracket.floor = bracket.low;
        return bracket;
    }

    // From the largest digit at which the mass from there up reaches a little less than top_p, to that at which it
    // reaches a little more: three standard deviations of what so large a sample says of an even distribution. The
    // floor leaves out a tenth of what top_p does.
    Bracket bracket_of(const uint64_t* masses, double all) const {
        const double p = params_.top_p;
        const double slack = std::min(0.08 * std::sqrt(p * (1 - p)), 0.75 * (1 - p));
        uint32_t digit = HISTOGRAM_BINS - 1;
        uint64_t above = 0;
        const auto descend = [&](double target) {
            while (digit > 0 && static_cast<double>(above + masses[digit]) < target) above += masses[digit--];
            return digit << DIGITS[0].shift;
        };
        const auto below = [](uint32_t bits) { return bits ? float_of(bits - 1) : 0.0f; };
        const uint32_t high = descend((p - slack) * all) + (1u << DIGITS[0].shift) - 1;
        const uint32_t low = descend((p + slack) * all);
        return {below(low), float_of(high), below(descend((1 - 0.1 * (1 - p)) * all))};
    }

    // The likeliest that reach top_p of the mass: a token stays when those before it, the likeliest first and of
    // equals the first, hold less than top_p. Digit by digit finds the weight at the edge without a sort. False where
    // that depends on what `tail` weighs, or goes beyond what was weighed.
    bool keep_nucleus(int64_t count, Bracket bracket, Tail tail) {
        const uint64_t weighed = total_;
        const double target = params_.top_p * static_cast<double>(weighed + tail.high);
        num_between_ = weighed_.num_between;
        has_chunk_masses_ =
            bracket.high >= 0 && static_cast<double>(weighed_.above) < target && num_between_ > 0;
        if (has_chunk_masses_) {
            std::copy(scratch_.kept, scratch_.kept + num_between_, scratch_.work);
            has_chunk_masses_ = find_edge(num_between_, target, weighed_.above, scratch_.work);
        }
        if (!has_chunk_masses_) {
            const bool is_floor = bracket.high >= 0 && static_cast<double>(weighed_.above) >= target;
            const int64_t left = keep_candidates(count, target, is_floor ? bracket.high : 0);
            if (!find_edge(left, target, 0, scratch_.kept)) return false;
        }
        const uint64_t before = total_ - mass_of(edge_, magic_);  // what the last that stays has before it
        if (static_cast<double>(before) >= params_.top_p * static_cast<double>(weighed + tail.low))
            return false;
        last_equal_ = passes_.find_equal(scratch_.weights, count, edge_, num_equal_ - 1);
        return true;
    }

    // The edge among `count` weights in `kept`, when the heavier ones have the mass `above`. False if all of them
    // together do not reach the target.
    bool find_edge(int64_t count, double target, uint64_t above, float* kept) {
        for (const Digit digit : DIGITS)
            if (!keep_edge(&count, digit, target, &above, kept)) return false;
        edge_ = kept[0];  // and all that are left weigh the same
        const uint64_t mass = mass_of(edge_, magic_);
        num_equal_ = 0;
        while (num_equal_ < count && static_cast<double>(above + num_equal_ * mass) < target) ++num_equal_;
        total_ = above + num_equal_ * mass;
        return true;
    }

    // Leaves out what weighs no more than `floor`, and what is too light to be in the nucleus: were all as light, they
    // could not hold half of what top_p leaves over. Half a quantum is the most that rounding adds to a mass.
    int64_t keep_candidates(int64_t count, double target, float floor) const {
        const double spare =
            (static_cast<double>(total_) - target) / (2.0 * static_cast<double>(count)) - 0.5;
        floor = std::max(floor, static_cast<float>(std::max(0.0, spare / quanta_)));
        return passes_.keep_above(scratch_.weights, count, floor, scratch_.kept,
                                  reinterpret_cast<int32_t*>(scratch_.work));
    }

    // Of `count` weights in `kept`, leaves those whose digit is that of the edge: the largest digit at which the
    // mass from there up, and `above`, reaches the target. False if none is.
    bool keep_edge(int64_t* count, Digit digit, double target, uint64_t* above, float* kept) const {
        uint64_t* const masses = scratch_.histogram;
        const auto digit_of = [&](float weight) { return bits_of(weight) >> digit.shift & digit.mask; };
        std::fill(masses, masses + HISTOGRAM_BINS, 0);
        for (int64_t i = 0; i < *count; ++i) masses[digit_of(kept[i])] += mass_of(kept[i], magic_);
        uint32_t edge = HISTOGRAM_BINS - 1;
        while (static_cast<double>(*above + masses[edge]) < target) {
            if (edge == 0) return false;
            *above += masses[edge--];
        }
        int64_t left = 0;
        for (int64_t i = 0; i < *count; ++i) {
            kept[left] = kept[i];
            left += digit_of(kept[left]) == edge;
        }
        *count = left;
        return true;
    }

    // The first that stays at which the running mass passes the fraction `uniform` of all that stays.
    int64_t inverse_cdf(int64_t count) const {
        const double target = uniform(params_.seed, params_.index) * static_cast<double>(total_);
        uint64_t running = 0;
        int64_t between = 0;  // of what lies around the edge, the first that stands in no chunk before this
        for (int64_t start = 0;; start += SAMPLING_CHUNK) {
            const int64_t end = std::min(start + SAMPLING_CHUNK, count);
            const uint64_t mass = has_chunk_masses_ ? scratch_.chunk_masses[start / SAMPLING_CHUNK] +
                                                          mass_between(&between, end)
                                                    : mass_that_stays(start, end);
            if (static_cast<double>(running + mass) <= target) {
                running += mass;
                continue;
            }
            for (int64_t i = start; i < end; ++i) {
                if (stays(i)) running += mass_of(scratch_.weights[i], magic_);
                if (static_cast<double>(running) > target) return i;
            }
        }
    }

    uint64_t mass_between(int64_t* between, int64_t end) const {
        uint64_t mass = 0;
        for (; *between < num_between_ && scratch_.places[*between] < end; ++*between)
            if (stays(scratch_.places[*between])) mass += mass_of(scratch_.kept[*between], magic_);
        return mass;
    }

    bool stays(int64_t i) const {
        const float weight = scratch_.weights[i];
        return weight > edge_ || (weight == edge_ && i <= last_equal_);
    }

    uint64_t mass_that_stays(int64_t start, int64_t end) const {
        if (start <= last_equal_ && last_equal_ < end - 1) {
            uint64_t mass = 0;
            for (int64_t i = start; i < end; ++i)
                if (stays(i)) mass += mass_of(scratch_.weights[i], magic_);
            return mass;
        }
        const float floor = start <= last_equal_ ? just_below(edge_) : edge_;
        return passes_.mass_above(scratch_.weights + start, end - start, floor, magic_);
    }

    // Of the model's own logits: the likeliest tokens, the chosen one's place, and what all weigh together.
    void rank(tw_sampled* sampled, int32_t* likeliest) {
        sampled->total =
            static_cast<double>(weigh(logits_, vocab_size_, sampled->largest, 1.0f, {}).total) / quanta_;
        sampled->rank = 1 + passes_.count_above(logits_, vocab_size_, logits_[sampled->token]);
        const int64_t wanted = std::min<int64_t>(params_.logprobs, vocab_size_);
        if (wanted == 0) return;
        passes_.largest(logits_, vocab_size_, scratch_.maxima);
        const int64_t count = keep_best(logits_, wanted);
        int32_t* places = scratch_.places;
        std::partial_sort(places, places + wanted, places + count, [this](int32_t a, int32_t b) {
            return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
        });
        std::copy(places, places + wanted, likeliest);
    }

    const SamplingTable& passes_;
    const float* logits_;
    const int64_t vocab_size_;
    const tw_sampling& params_;
    const Scratch& scratch_;
    const double quanta_, magic_;
    uint64_t total_ = 0;  // the mass of all that stays
    float edge_ = 0;
    int64_t last_equal_ = 0, num_equal_ = 0, num_between_ = 0;
    Weighed weighed_{};
    // Whether chunk_masses, and what stays of `kept` and `places`, are all that stays.
    bool has_chunk_masses_ = false;
};

}  // namespace

size_t sampling_scratch_bytes(int64_t vocab_size) {
    Scratch scratch;
    return divide(nullptr, vocab_size, &scratch);
}

void sample_row(const SamplingTable& passes, const float* logits, int64_t vocab_size,
                const tw_sampling& params, char* memory, tw_sampled* sampled, int32_t* likeliest) {
    Scratch scratch;
    divide(memory, vocab_size, &scratch);
    Row(passes, logits, vocab_size, params, scratch).sample(sampled, likeliest);
}

}  // namespace tokenweave
