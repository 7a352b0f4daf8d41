// How far the lanes of a captured pass have come.
//
// Thread safety: `tw_lane_done` is for the lane's own thread; waits and `tw_lanes_fail` are for any.
//
// Invariants
// 1. A lane's word counts the steps that it has done. It grows by one a step and by nothing else, until the next
//    `tw_lanes_begin`; its highest bit says that a lane has failed.
// 2. What a lane wrote before it counted a step is visible to whoever has waited for that step: the count releases,
//    the look of the wait acquires.
// 3. No wake-up is lost: a waiter says that it sleeps before it looks a last time, and both what it waits for and a
//    failure change the word that it sleeps on.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <ctime>
#include <memory>
#include <new>

#include "tokenweave.h"

namespace {

constexpr size_t kLineBytes = 128;  // two cache lines: the adjacent-line prefetcher pairs them
constexpr uint32_t kFailed = uint32_t{1} << 31;
constexpr int64_t kSecondNs = 1'000'000'000;

struct alignas(kLineBytes) LaneState {
    std::atomic<uint32_t> done{0};      // steps, and kFailed
    std::atomic<uint32_t> sleepers{0};  // on `done`
};

int64_t now_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * kSecondNs + time.tv_nsec;
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen, int64_t patience_ns) {
    const timespec patience{patience_ns / kSecondNs, patience_ns % kSecondNs};
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, &patience, nullptr, 0);
}

void wake_sleepers(LaneState& lane) {
    if (lane.sleepers.load(std::memory_order_seq_cst) != 0)
        syscall(SYS_futex, &lane.done, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void pause_core() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Whether a wait for `steps` ends at a lane's word, and how.
bool is_over(uint32_t word, uint32_t steps, int* status) {
    *status = word & kFailed ? TW_ERROR_ABORTED : TW_OK;
    return (word & kFailed) != 0 || word >= steps;
}

}  // namespace

struct tw_lanes {
    std::unique_ptr<LaneState[]> lanes;
    int num_lanes;
    int64_t timeout_ns, spin_ns;

    LaneState* at(int lane) { return lane < 0 || lane >= num_lanes ? nullptr : &lanes[lane]; }
};

extern "C" int tw_lanes_create(int num_lanes, int64_t timeout_ns, int64_t spin_ns, tw_lanes** lanes_out) {
    if (num_lanes < 1 || timeout_ns <= 0 || spin_ns < 0 || !lanes_out) return TW_ERROR_INVALID_ARGUMENT;
    auto* lanes = new (std::nothrow) tw_lanes{nullptr, num_lanes, timeout_ns, spin_ns};
    if (!lanes) return TW_ERROR_OUT_OF_MEMORY;
    lanes->lanes.reset(new (std::nothrow) LaneState[num_lanes]);
    if (!lanes->lanes) {
        delete lanes;
        return TW_ERROR_OUT_OF_MEMORY;
    }
    *lanes_out = lanes;
    return TW_OK;
}

extern "C" void tw_lanes_destroy(tw_lanes* lanes) { delete lanes; }

extern "C" int tw_lanes_begin(tw_lanes* lanes) {
    if (!lanes) return TW_ERROR_INVALID_ARGUMENT;
    // Relaxed: whoever starts the lanes' threads on their work orders this before it.
    for (int lane = 0; lane < lanes->num_lanes; ++lane)
        lanes->lanes[lane].done.store(0, std::memory_order_relaxed);
    return TW_OK;
}

extern "C" int tw_lane_wait(tw_lanes* lanes, int lane, int64_t steps) {
    LaneState* state = lanes ? lanes->at(lane) : nullptr;
    if (!state || steps < 0 || steps >= kFailed) return TW_ERROR_INVALID_ARGUMENT;
    const auto wanted = static_cast<uint32_t>(steps);
    int status = TW_OK;
    if (is_over(state->done.load(std::memory_order_acquire), wanted, &status)) return status;
    const int64_t start = now_ns(), deadline = start + lanes->timeout_ns;
    while (now_ns() - start < lanes->spin_ns) {
        for (int look = 0; look < 16; ++look) {
            if (is_over(state->done.load(std::memory_order_acquire), wanted, &status)) return status;
            pause_core();
        }
    }
    for (;;) {
        state->sleepers.fetch_add(1, std::memory_order_seq_cst);
        const uint32_t seen = state->done.load(std::memory_order_seq_cst);
        const int64_t left = deadline - now_ns();
        if (!is_over(seen, wanted, &status) && left > 0) futex_wait(state->done, seen, left);
        state->sleepers.fetch_sub(1, std::memory_order_relaxed);
        if (is_over(state->done.load(std::memory_order_acquire), wanted, &status)) return status;
        if (left <= 0) return TW_ERROR_TIMEOUT;
    }
}

extern "C" int tw_lane_done(tw_lanes* lanes, int lane) {
    LaneState* state = lanes ? lanes->at(lane) : nullptr;
    if (!state) return TW_ERROR_INVALID_ARGUMENT;
    // Sequentially consistent, and not only release, for the sleepers: see tw_lane_wait.
    const uint32_t before = state->done.fetch_add(1, std::memory_order_seq_cst);
    wake_sleepers(*state);
    return before & kFailed ? TW_ERROR_ABORTED : TW_OK;
}

extern "C" int tw_lanes_fail(tw_lanes* lanes) {
    if (!lanes) return TW_ERROR_INVALID_ARGUMENT;
    for (int lane = 0; lane < lanes->num_lanes; ++lane) {
        lanes->lanes[lane].done.fetch_or(kFailed, std::memory_order_seq_cst);
        wake_sleepers(lanes->lanes[lane]);
    }
    return TW_OK;
}
