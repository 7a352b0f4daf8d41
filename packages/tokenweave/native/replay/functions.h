// The functions that a captured pass may call, as functions of an array of words.
#pragma once

#include <cstdint>

namespace tokenweave::replay {

struct Function {
    const char* name;
    int num_words;
    int (*call)(const uint64_t* words);
};

int num_functions();
const Function& function_at(int index);

}  // namespace tokenweave::replay
