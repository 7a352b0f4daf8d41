// One call that makes the calls of a captured pass.
#include <ctime>

#include "functions.h"
#include "tokenweave.h"

using namespace tokenweave::replay;

namespace {

// CLOCK_MONOTONIC, as Python's time.perf_counter reads it on Linux.
double now_s() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

bool is_record(const tw_record& record) {
    return record.function >= 0 && record.function < num_functions() &&
           record.num_words == function_at(record.function).num_words;
}

}  // namespace

extern "C" int tw_replay(const tw_record* records, int64_t count, double* times_s, int64_t* num_done) {
    if ((!records && count) || count < 0 || !num_done) return TW_ERROR_INVALID_ARGUMENT;
    *num_done = 0;
    for (int64_t index = 0; index < count; ++index) {
        const tw_record& record = records[index];
        if (!is_record(record)) return TW_ERROR_INVALID_ARGUMENT;
        if (times_s) times_s[index] = now_s();
        const int status = function_at(record.function).call(record.words);
        if (status != TW_OK) return status;
        *num_done = index + 1;
    }
    if (times_s) times_s[count] = now_s();
    return TW_OK;
}
