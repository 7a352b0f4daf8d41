#include "group.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

namespace tokenweave::shm {
namespace {

constexpr int64_t kSecond = 1000000000;
// A sleeper looks for deaths and aborts this often: system calls for each rank, so not in every microsecond.
constexpr int64_t kSleepSlice = kSecond / 20;

int64_t now_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * kSecond + time.tv_nsec;
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// The futex is not PRIVATE: the word is mapped by several processes.
void futex_wait(std::atomic<uint32_t>& word, uint32_t seen, int64_t at_most_ns) {
    timespec time{at_most_ns / kSecond, at_most_ns % kSecond};
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, seen, &time, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

// Acquires what `arrive` of that rank released: its tag and slot are then ours to read, and its reads of the
// step before lie behind us, so that our next writes cannot reach them (invariants 1 and 2 of group.h).
bool reached(const RankState& state, uint32_t step, std::memory_order order = std::memory_order_acquire) {
    return static_cast<int32_t>(state.arrived.load(order) - step) >= 0;
}

__attribute__((format(printf, 3, 4))) void say(tw_shm_group* group, int failed_rank, const char* format,
                                               ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(group->error, sizeof group->error, format, arguments);
    va_end(arguments);
    group->failed_rank = failed_rank;
}

// Awake without yielding: on a busy host a yield can cost a whole time slice, where a sleeper is woken at
// once.
bool spin(tw_shm_group* group, const RankState& state, uint32_t step) {
    const int64_t until = now_ns() + group->spin_ns;
    for (uint32_t turn = 1;; ++turn) {
        if (reached(state, step)) return true;
        relax();
        // The clock costs more than the look above, so it is read less often. Relaxed: the abort only ends
        // the spin; check_aborted reads it again, with acquire, before its text.
        if (turn % 16 == 0 &&
            (now_ns() > until || group->header->abort_word.load(std::memory_order_relaxed) != 0)) {
            return reached(state, step);
        }
    }
}

tw_status time_out(tw_shm_group* group, uint32_t step, Operation operation) {
    char missing[192] = "";
    int count = 0;
    for (int rank = 0, used = 0; rank < group->size && used < int(sizeof missing) - 8; ++rank) {
        if (rank != group->rank && !reached(group->ranks[rank], step)) {
            used += snprintf(missing + used, sizeof missing - used, count++ ? ", %d" : "%d", rank);
        }
    }
    say(group, -1, "rank %d waited %g s in %s for rank%s %s", group->rank,
        double(group->timeout_ns) / kSecond, name_of(operation), count == 1 ? "" : "s", missing);
    abort_group(group, AbortKind::kFailed, -1, group->error);
    return TW_ERROR_TIMEOUT;
}

bool has_died(const tw_shm_group* group, int rank) {
    const RankState& state = group->ranks[rank];
    // Two looks: it did not leave between them. A rank that leaves stores kLeft (release, tw_shm_detach)
    // before it lets go of the lock, so whoever has found the lock free finds kLeft with the second acquire.
    // The first is the partner of the exchange in tw_shm_attach: a rank that is seen as present has its lock
    // already.
    return state.presence.load(std::memory_order_acquire) == kPresent && group->lock_fd >= 0 &&
           !presence_lock_is_held(group->lock_fd, rank) &&
           state.presence.load(std::memory_order_acquire) == kPresent;
}

// TW_ERROR_ABORTED, and the group is told, when `awaited` can no longer arrive or any rank has died: the one
// awaited may itself be waiting for that one, or be asleep until its next command.
tw_status check_alive(tw_shm_group* group, int awaited, uint32_t step, Operation operation) {
    int lost = -1;
    const char* how = "died: its process ended";
    for (int rank = 0; rank < group->size && lost < 0; ++rank) {
        if (rank != group->rank && has_died(group, rank)) lost = rank;
    }
    // Acquires the kLeft of tw_shm_detach: `reached` below then sees every step that the rank came to before.
    if (lost < 0 && group->ranks[awaited].presence.load(std::memory_order_acquire) == kLeft) {
        lost = awaited;
        how = "has left the group";
    }
    if (lost < 0 || reached(group->ranks[awaited], step)) return TW_OK;
    say(group, lost, "rank %d %s; rank %d was waiting in %s", lost, how, group->rank, name_of(operation));
    abort_group(group, AbortKind::kFailed, lost, group->error);
    return check_aborted(group);
}

// Waits until `rank` has arrived at `step`: first awake, then asleep in slices.
tw_status wait_for(tw_shm_group* group, int rank, uint32_t step, Operation operation, bool idle) {
    RankState& state = group->ranks[rank];
    if (reached(state, step) || spin(group, state, step)) return TW_OK;
    const int64_t deadline = now_ns() + group->timeout_ns;
    for (;;) {
        // Partner: the store to `arrived` and the load of `sleepers` in `arrive`. Each side writes one word
        // and then reads the other's; with all four in one order (seq_cst; acquire and release do not forbid
        // that both read old values) either the arriving rank counts this waiter, and wakes it, or this load
        // sees it arrive. If it arrives between the load and the sleep, the kernel finds that the word is no
        // longer `seen`.
        state.sleepers.fetch_add(1, std::memory_order_seq_cst);
        const uint32_t seen = state.arrived.load(std::memory_order_seq_cst);
        const int64_t left = idle ? kSleepSlice : deadline - now_ns();
        // An abort between this look and the sleep changes no futex word: the end of the slice is what ends
        // that sleep. Later aborts wake it (abort_group).
        if (!reached(state, step) && left > 0 &&
            group->header->abort_word.load(std::memory_order_acquire) == 0) {
            futex_wait(state.arrived, seen, std::min(left, kSleepSlice));
        }
        // Relaxed: it publishes nothing, and a count that is seen too high costs a wake-up of nobody.
        state.sleepers.fetch_sub(1, std::memory_order_relaxed);
        if (reached(state, step)) return TW_OK;
        if (tw_status status = check_aborted(group)) return status;
        if (tw_status status = check_alive(group, rank, step, operation)) return status;
        if (left <= 0) return time_out(group, step, operation);
    }
}

void describe(const Tag& tag, char* text, size_t bytes) {
    static const char* const kDtypes[] = {"",          " of float32", " of bfloat16", " of float16",
                                          " of int32", " of int64",   " of uint8"};
    const char* dtype = tag.dtype >= 0 && tag.dtype <= TW_SHM_UINT8 ? kDtypes[tag.dtype] : "";
    int used = snprintf(text, bytes, "%s", name_of(tag.operation));
    if (tag.operation != Operation::kBarrier && tag.operation != Operation::kBroadcastBytes) {
        used += snprintf(text + used, bytes - used, "(%llu bytes%s)",
                         static_cast<unsigned long long>(tag.bytes), dtype);
    }
    if (tag.operation == Operation::kReduceNorm) {
        used += snprintf(text + used, bytes - used, " at offset %llu",
                         static_cast<unsigned long long>(tag.offset));
    }
    if (tag.root >= 0) snprintf(text + used, bytes - used, " from rank %d", tag.root);
}

tw_status mismatch(tw_shm_group* group, const Tag& own, int rank, const Tag& other) {
    char mine[128], theirs[128], reason[kReasonBytes];
    describe(own, mine, sizeof mine);
    describe(other, theirs, sizeof theirs);
    snprintf(reason, sizeof reason, "rank %d called %s where rank %d called %s", group->rank, mine, rank,
             theirs);
    abort_group(group, AbortKind::kMismatch, -1, reason);
    return check_aborted(group);
}

// A child of a fork has the parent's memory, and would take the parent's steps.
tw_status check_process(tw_shm_group* group) {
    if (group->generation == fork_generation()) return TW_OK;
    say(group, -1,
        "rank %d was called in a process forked from it; only the process that joined the group may call",
        group->rank);
    return TW_ERROR_ABORTED;
}

constexpr size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

uint64_t pack_shape(int size, size_t slot_bytes) {
    return kLayoutVersion << 56 | static_cast<uint64_t>(size) << 48 | slot_bytes;
}

}  // namespace

Layout::Layout(int size, size_t slot_bytes) {
    reasons = round_up(sizeof(Header), kLineBytes);
    ranks = round_up(reasons + (size + 1) * kReasonBytes, kLineBytes);
    slots = round_up(ranks + size * sizeof(RankState), kPageBytes);
    total = slots + size_t(2) * size * slot_bytes;
}

const char* name_of(Operation operation) {
    static const char* const kNames[] = {
        "barrier",   "all_reduce",      "all_gather",         "gather_columns",
        "broadcast", "broadcast_bytes", "all_reduce_rms_norm"};
    return kNames[static_cast<uint32_t>(operation)];
}

tw_status begin_step(tw_shm_group* group, Operation operation, bool idle) {
    if (tw_status status = check_process(group)) return status;
    if (tw_status status = check_aborted(group)) return status;
    const uint32_t previous = group->step;
    // Acquires every rank's arrival at the step before: whatever they read from our slot of this parity, they
    // read before what we are about to write there.
    for (int rank = 0; rank < group->size; ++rank) {
        if (tw_status status = wait_for(group, rank, previous, operation, idle)) return status;
    }
    group->step = previous + 1;
    return TW_OK;
}

void arrive(tw_shm_group* group, const Tag& tag) {
    RankState& own = group->ranks[group->rank];
    own.tags[group->step & 1] = tag;
    // Releases the tag and the slot, and ends our reads of the others' slots of the step before; partner: the
    // acquire of `reached`. Sequentially consistent, and not only release, for the sleepers: see wait_for.
    own.arrived.store(group->step, std::memory_order_seq_cst);
    if (own.sleepers.load(std::memory_order_seq_cst) != 0) futex_wake_all(own.arrived);
}

tw_status await_rank(tw_shm_group* group, int rank, const Tag& tag, bool idle) {
    if (tw_status status = wait_for(group, rank, group->step, tag.operation, idle)) return status;
    // A plain read: `reached` has acquired it, and its rank writes it again only after we have arrived once
    // more.
    const Tag& other = group->ranks[rank].tags[group->step & 1];
    return other == tag ? TW_OK : mismatch(group, tag, rank, other);
}

tw_status await_all(tw_shm_group* group, const Tag& tag) {
    for (int rank = 0; rank < group->size; ++rank) {
        if (tw_status status = await_rank(group, rank, tag, false)) return status;
    }
    return TW_OK;
}

void abort_group(tw_shm_group* group, AbortKind kind, int failed_rank, const char* reason) {
    std::lock_guard<std::mutex> one_writer_of_our_text(group->abort_mutex);
    Header* header = group->header;
    // Not only to save work: our text may have been told already, and then others read it.
    if (header->abort_word.load(std::memory_order_acquire) != 0) return;
    const int author = group->rank < 0 ? group->size : group->rank;
    snprintf(group->reason(author), kReasonBytes, "%s", reason);
    const uint32_t word = static_cast<uint32_t>(kind) | (author + 1) << 8 | (failed_rank + 1) << 16;
    uint32_t none = 0;
    // Releases the text; partner: the acquire of check_aborted. Of several that abort at once the first wins,
    // and each writes a text of its own, so nobody reads one that is being written.
    header->abort_word.compare_exchange_strong(none, word, std::memory_order_acq_rel);
    for (int rank = 0; rank < group->size; ++rank) futex_wake_all(group->ranks[rank].arrived);
}

tw_status check_aborted(tw_shm_group* group) {
    // Acquires the text of the author that the word names; partner: the exchange of abort_group.
    const uint32_t word = group->header->abort_word.load(std::memory_order_acquire);
    if (word == 0) return TW_OK;
    const int author = static_cast<int>(word >> 8 & 0xff) - 1;
    const int failed_rank = static_cast<int>(word >> 16) - 1;
    const bool known = author >= 0 && author <= group->size;
    say(group, failed_rank, "%.*s", int(kReasonBytes) - 1,
        known ? group->reason(author) : "the segment is damaged");
    return (word & 0xff) == static_cast<uint32_t>(AbortKind::kMismatch) ? TW_ERROR_MISMATCH
                                                                        : TW_ERROR_ABORTED;
}

}  // namespace tokenweave::shm

using namespace tokenweave::shm;

extern "C" size_t tw_shm_segment_bytes(int size, size_t slot_bytes) {
    if (size < 1 || size > kMaxRanks || slot_bytes == 0 || slot_bytes % kPageBytes != 0) return 0;
    return Layout(size, slot_bytes).total;
}

extern "C" int tw_shm_attach(void* base, size_t segment_bytes, int segment_fd, const tw_shm_options* options,
                             tw_shm_group** group_out) {
    if (!base || !options || !group_out) return TW_ERROR_INVALID_ARGUMENT;
    const int size = options->size, rank = options->rank;
    const size_t needed = tw_shm_segment_bytes(size, options->slot_bytes);
    if (needed == 0 || segment_bytes < needed || rank < -1 || rank >= size || options->timeout_ns <= 0) {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    const Layout layout(size, options->slot_bytes);
    char* start = static_cast<char*>(base);
    auto* header = reinterpret_cast<Header*>(start);
    uint64_t shape = 0;
    const uint64_t wanted = pack_shape(size, options->slot_bytes);
    // Partner: the same exchange of the other ranks. It publishes nothing but itself, as a new segment is all
    // zero and needs no other preparation: so any rank may be the first, and none waits for it.
    if (!header->shape.compare_exchange_strong(shape, wanted, std::memory_order_acq_rel) && shape != wanted) {
        return TW_ERROR_INVALID_ARGUMENT;
    }
    auto* group = new (std::nothrow) tw_shm_group;
    if (!group) return TW_ERROR_OUT_OF_MEMORY;
    group->header = header;
    group->reasons = start + layout.reasons;
    group->ranks = reinterpret_cast<RankState*>(start + layout.ranks);
    group->slots = start + layout.slots;
    group->slot_bytes = options->slot_bytes;
    group->rank = rank;
    group->size = size;
    group->timeout_ns = options->timeout_ns;
    group->spin_ns = options->spin_ns;
    group->generation = fork_generation();
    if (rank >= 0) {
        group->lock_fd = lock_presence(segment_fd, rank);
        uint32_t expected = kNeverCame;
        const uint32_t presence = group->lock_fd >= 0 ? kPresent : kPresentUnwatched;
        // With release, so that whoever sees this rank present finds its lock held; partner: the first look
        // of has_died. A second rank of this number fails.
        if (!group->ranks[rank].presence.compare_exchange_strong(expected, presence,
                                                                 std::memory_order_acq_rel)) {
            unlock_presence(group->lock_fd);
            delete group;
            return TW_ERROR_INVALID_ARGUMENT;
        }
    }
    *group_out = group;
    return TW_OK;
}

extern "C" void tw_shm_detach(tw_shm_group* group) {
    if (!group) return;
    if (group->rank >= 0 && group->generation == fork_generation()) {
        // Left first, unlocked second, or a waiter could take the one for a death. Releases the steps that
        // this rank came to; partners: the acquires of has_died and check_alive.
        group->ranks[group->rank].presence.store(kLeft, std::memory_order_release);
        futex_wake_all(group->ranks[group->rank].arrived);
    }
    unlock_presence(group->lock_fd);
    delete group;
}

extern "C" int tw_shm_set_spin(tw_shm_group* group, int64_t spin_ns) {
    if (!group || spin_ns < 0) return TW_ERROR_INVALID_ARGUMENT;
    group->spin_ns = spin_ns;
    return TW_OK;
}

extern "C" int tw_shm_check(tw_shm_group* group) {
    return group ? check_aborted(group) : TW_ERROR_INVALID_ARGUMENT;
}

extern "C" int tw_shm_abort(tw_shm_group* group, int failed_rank, const char* reason) {
    if (!group || !reason || failed_rank < -1 || failed_rank >= group->size) return TW_ERROR_INVALID_ARGUMENT;
    if (tw_status status = check_process(group)) return status;
    abort_group(group, AbortKind::kFailed, failed_rank, reason);
    return TW_OK;
}

extern "C" int tw_shm_last_error(const tw_shm_group* group, char* text, size_t text_bytes) {
    if (text && text_bytes) snprintf(text, text_bytes, "%s", group->error);
    return group->failed_rank;
}
