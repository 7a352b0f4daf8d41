// Two lanes replay their lists of calls again and again, and every result is checked; now and then one of them
// fails. Built with a sanitizer by tests/test_sanitizers.py. Usage: stress_replay ROUNDS
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "check.h"
#include "functions.h"
#include "tokenweave.h"

namespace {

constexpr int kSteps = 40, kParts = 2;
constexpr int64_t kTimeoutNs = 60'000'000'000;
enum FunctionNumber { kWait, kDone, kAdd, kFail };

template <typename Type>
Type* pointer(uint64_t word) {
    return reinterpret_cast<Type*>(static_cast<uintptr_t>(word));
}

// A plain addition: that the lanes never do it at the same time is what the waits are for.
int add(uint64_t* value, uint64_t amount) {
    *value = 3 * *value + amount;
    return TW_OK;
}

}  // namespace

// The functions of this program's captured passes, in place of the library's.
namespace tokenweave::replay {

constexpr Function kFunctions[] = {
    {"wait", 3,
     [](const uint64_t* w) { return tw_lane_wait(pointer<tw_lanes>(w[0]), int(w[1]), int64_t(w[2])); }},
    {"done", 2, [](const uint64_t* w) { return tw_lane_done(pointer<tw_lanes>(w[0]), int(w[1])); }},
    {"add", 2, [](const uint64_t* w) { return add(pointer<uint64_t>(w[0]), w[1]); }},
    {"fail", 0, [](const uint64_t*) { return int{TW_ERROR_UNSUPPORTED}; }},
};

int num_functions() { return sizeof kFunctions / sizeof kFunctions[0]; }
const Function& function_at(int index) { return kFunctions[index]; }

}  // namespace tokenweave::replay

namespace {

tw_record record(FunctionNumber function, std::vector<uint64_t> words) {
    tw_record made{};
    made.function = function;
    made.num_words = int32_t(words.size());
    for (size_t at = 0; at < words.size(); ++at) made.words[at] = words[at];
    return made;
}

uint64_t word(const void* address) { return reinterpret_cast<uintptr_t>(address); }

// Two parts go back and forth between two lanes: while one is on the first, the other is on the second.
std::vector<tw_record> list_of(tw_lanes* lanes, int lane, uint64_t* parts, int failing_step) {
    std::vector<tw_record> calls;
    for (int step = 0; step < kSteps; ++step) {
        // The first lane's step n works on what the other lane did two steps before; the other, on the first's n.
        const int64_t awaited = lane == 0 ? step - kParts + 1 : step + 1;
        if (awaited > 0) calls.push_back(record(kWait, {word(lanes), uint64_t(1 - lane), uint64_t(awaited)}));
        if (step == failing_step) calls.push_back(record(kFail, {}));
        calls.push_back(record(kAdd, {word(parts + step % kParts), uint64_t(2 * step + lane)}));
        calls.push_back(record(kDone, {word(lanes), uint64_t(lane)}));
    }
    return calls;
}

int replay(tw_lanes* lanes, const std::vector<tw_record>& calls) {
    int64_t done = 0;
    const int status = tw_replay(calls.data(), int64_t(calls.size()), nullptr, &done);
    CHECK((status == TW_OK) == (done == int64_t(calls.size())));
    if (status != TW_OK) CHECK(tw_lanes_fail(lanes) == TW_OK);
    return status;
}

void check_parts(const uint64_t* parts) {
    uint64_t expected[kParts] = {};
    for (int step = 0; step < kSteps; ++step)
        for (int lane = 0; lane < 2; ++lane) add(expected + step % kParts, 2 * step + lane);
    for (int part = 0; part < kParts; ++part) CHECK(parts[part] == expected[part]);
}

void run(tw_lanes* lanes, int failing_lane, int failing_step) {
    uint64_t parts[kParts] = {};
    std::vector<tw_record> calls[2];
    for (int lane = 0; lane < 2; ++lane)
        calls[lane] = list_of(lanes, lane, parts, lane == failing_lane ? failing_step : -1);
    CHECK(tw_lanes_begin(lanes) == TW_OK);
    int statuses[2];
    std::thread other([&] { statuses[1] = replay(lanes, calls[1]); });
    statuses[0] = replay(lanes, calls[0]);
    other.join();
    if (failing_lane < 0) {
        CHECK(statuses[0] == TW_OK && statuses[1] == TW_OK);
        check_parts(parts);
    } else {
        const bool is_first = failing_lane == 0;
        const int failed = statuses[is_first ? 0 : 1], beside = statuses[is_first ? 1 : 0];
        CHECK(failed == TW_ERROR_UNSUPPORTED);
        CHECK(beside == TW_ERROR_ABORTED || beside == TW_OK);
    }
}

}  // namespace

int main(int count, char** arguments) {
    const int rounds = count > 1 ? atoi(arguments[1]) : 1000;
    for (int round = 0; round < rounds; ++round) {
        tw_lanes* lanes = nullptr;
        CHECK(tw_lanes_create(2, kTimeoutNs, round % 2 ? 0 : 20'000, &lanes) == TW_OK);  // some sleep at once
        for (int again = 0; again < 4; ++again) run(lanes, -1, -1);
        run(lanes, round % 2, round % kSteps);
        run(lanes, -1, -1);
        tw_lanes_destroy(lanes);
    }
    printf("every result was right\n");
    return 0;
}
