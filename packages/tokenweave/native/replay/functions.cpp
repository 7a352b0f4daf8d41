#include "functions.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "tokenweave.h"

namespace tokenweave::replay {
namespace {

template <typename Parameter>
Parameter from_word(uint64_t word) {
    if constexpr (std::is_pointer_v<Parameter>) {
        return reinterpret_cast<Parameter>(static_cast<uintptr_t>(word));
    } else {
        static_assert(std::is_integral_v<Parameter>, "a word holds an integer or a pointer");
        return static_cast<Parameter>(word);
    }
}

template <auto function, typename... Parameters, size_t... index>
int call_with(int (*)(Parameters...), const uint64_t* words, std::index_sequence<index...>) {
    return function(from_word<Parameters>(words[index])...);
}

template <typename... Parameters>
constexpr int count(int (*)(Parameters...)) {
    static_assert(sizeof...(Parameters) <= TW_RECORD_WORDS, "a record has no room for so many arguments");
    return sizeof...(Parameters);
}

template <auto function, typename... Parameters>
int call_unpacked(int (*type)(Parameters...), const uint64_t* words) {
    return call_with<function>(type, words, std::index_sequence_for<Parameters...>{});
}

template <auto function>
int call(const uint64_t* words) {
    return call_unpacked<function>(function, words);
}

template <auto function>
constexpr Function entry(const char* name) {
    return {name, count(function), call<function>};
}

#define TW_REPLAYED(function) entry<function>(#function)

// Whatever a step calls. One that is not here keeps the models that call it from being captured.
constexpr Function FUNCTIONS[] = {
    TW_REPLAYED(tw_linear),
    TW_REPLAYED(tw_gated_linear),
    TW_REPLAYED(tw_gather_rows),
    TW_REPLAYED(tw_stored_linear),
    TW_REPLAYED(tw_stored_gated_linear),
    TW_REPLAYED(tw_stored_gather_rows),
    TW_REPLAYED(tw_rms_norm),
    TW_REPLAYED(tw_silu_and_mul),
    TW_REPLAYED(tw_gelu_tanh_and_mul),
    TW_REPLAYED(tw_rope_and_store),
    TW_REPLAYED(tw_paged_attention),
    TW_REPLAYED(tw_set_zero),
    TW_REPLAYED(tw_copy),
    TW_REPLAYED(tw_scale),
    TW_REPLAYED(tw_shm_all_reduce),
    TW_REPLAYED(tw_shm_all_reduce_rms_norm),
    TW_REPLAYED(tw_shm_reduce_norm_begin),
    TW_REPLAYED(tw_shm_reduce_norm_rows),
    TW_REPLAYED(tw_shm_reduce_norm_end),
    TW_REPLAYED(tw_lane_wait),
    TW_REPLAYED(tw_lane_done),
};

#undef TW_REPLAYED

}  // namespace

int num_functions() { return static_cast<int>(sizeof(FUNCTIONS) / sizeof(FUNCTIONS[0])); }

const Function& function_at(int index) { return FUNCTIONS[index]; }

}  // namespace tokenweave::replay

extern "C" int tw_replay_function(const char* name) {
    using namespace tokenweave::replay;
    if (!name) return TW_ERROR_INVALID_ARGUMENT;
    for (int index = 0; index < num_functions(); ++index)
        if (std::strcmp(function_at(index).name, name) == 0) return index;
    return TW_ERROR_UNSUPPORTED;
}
