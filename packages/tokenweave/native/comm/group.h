// A group of ranks that meet in one shared segment.
//
// Thread safety: one thread at a time per `tw_shm_group`, except `abort_group`, which any thread may call.
//
// Invariants
// 1. Every collective is a sequence of steps, numbered from 1 alike on all ranks. A rank *arrives* at step n
// by
//    storing n to its `arrived`, with release: its tag and its slot of parity n % 2 are then complete, and it
//    has finished reading everything of step n - 1.
// 2. A rank writes its tag and slot of parity n % 2 only after it has seen every rank arrive at step n - 1,
// that is,
//    when every rank has finished with step n - 2, the last that used them. So one wait per step is enough,
//    nothing is ever reset, and a root may run ahead of its receivers by one step.
// 3. `arrived` only grows (modulo 2^32). It is also the futex word that waiters sleep on.
// 4. The abort word goes from 0 to one value, once. Every wait looks at it, at least every 50 ms.
#ifndef TOKENWEAVE_COMM_GROUP_H
#define TOKENWEAVE_COMM_GROUP_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "tokenweave.h"

namespace tokenweave::shm {

constexpr int kMaxRanks = 64;
constexpr size_t kPageBytes = 4096;
constexpr size_t kReasonBytes = 512;
constexpr size_t kLineBytes = 128;  // two cache lines: the adjacent-line prefetcher pairs them
constexpr uint64_t kLayoutVersion = 2;

static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free,
              "atomics in shared memory must not need a lock");

enum class Operation : uint32_t {
    kBarrier,
    kAllReduce,
    kAllGather,
    kGatherColumns,
    kBroadcast,
    kBroadcastBytes,
    kReduceNorm
};

// What a rank calls at a step. Ranks whose tags differ are out of step.
struct Tag {
    Operation operation = Operation::kBarrier;
    int16_t dtype = 0;
    int16_t root = -1;
    uint64_t bytes = 0;
    uint64_t offset = 0;  // kReduceNorm: where in its region each rank's partial sum begins

    bool operator==(const Tag& other) const {
        return operation == other.operation && dtype == other.dtype && root == other.root &&
               bytes == other.bytes && offset == other.offset;
    }
};

enum Presence : uint32_t { kNeverCame, kPresent, kPresentUnwatched, kLeft };

// Written by its rank alone, but for `sleepers`.
struct alignas(kLineBytes) RankState {
    std::atomic<uint32_t> arrived;   // the last step this rank arrived at
    std::atomic<uint32_t> sleepers;  // how many waiters sleep on `arrived`
    std::atomic<uint32_t> presence;
    Tag tags[2];  // by the parity of the step
};

enum class AbortKind : uint32_t { kNone, kFailed, kMismatch };

// The segment: this header, a reason text per author, the ranks' states, then two slots per rank. All zero
// when new.
struct Header {
    std::atomic<uint64_t> shape;  // layout version, size and slot bytes, packed; 0 until the first rank came
    std::atomic<uint32_t> abort_word;  // kind | author + 1 << 8 | failed rank + 1 << 16
};

struct Layout {
    size_t reasons, ranks, slots, total;  // byte offsets
    Layout(int size, size_t slot_bytes);
};

}  // namespace tokenweave::shm

struct tw_shm_group {
    tokenweave::shm::Header* header;
    char* reasons;
    tokenweave::shm::RankState* ranks;
    char* slots;
    size_t slot_bytes;
    int rank;  // -1 for an observer, which may only abort
    int size;
    int lock_fd = -1;
    uint32_t generation = 0;  // fork_generation() of the process that joined
    int64_t timeout_ns;
    int64_t spin_ns;
    uint32_t step = 0;
    uint64_t pending_bytes = 0;  // of a message whose first chunk has arrived
    std::mutex abort_mutex;
    int failed_rank = -1;  // with `error`, what the last call that failed has to say
    char error[tokenweave::shm::kReasonBytes] = "";

    char* slot(int of_rank, uint32_t at_step) const {
        return slots + (2 * of_rank + (at_step & 1)) * slot_bytes;
    }
    char* reason(int author) const { return reasons + author * tokenweave::shm::kReasonBytes; }
};

namespace tokenweave::shm {

// Starts the next step: returns when this rank may write its slot of that step (invariant 2).
tw_status begin_step(tw_shm_group* group, Operation operation, bool idle);

// Arrives at the step begun. After it the slot is no longer this rank's to write.
void arrive(tw_shm_group* group, const Tag& tag);

// Waits until `rank` has arrived at the step begun, and checks that it calls the same. Its slot is readable
// after it, until this rank arrives at the next step.
tw_status await_rank(tw_shm_group* group, int rank, const Tag& tag, bool idle);
tw_status await_all(tw_shm_group* group, const Tag& tag);

// Makes every current and later wait end. The first abort is the one that is told.
void abort_group(tw_shm_group* group, AbortKind kind, int failed_rank, const char* reason);

// Fills the group's error from the abort word and returns the status that goes with it; TW_OK if not aborted.
tw_status check_aborted(tw_shm_group* group);

const char* name_of(Operation operation);

// Liveness: a rank holds a lock on its own byte of the segment's file for as long as it lives; the kernel
// lets go of it however the process ends. Returns -1 where such locks cannot be had.
int lock_presence(int segment_fd, int rank);
void unlock_presence(int lock_fd);
bool presence_lock_is_held(int lock_fd, int rank);

// How many forks lie between this process and the one that loaded the library: a group is of the process that
// joined.
uint32_t fork_generation();

}  // namespace tokenweave::shm

#endif
