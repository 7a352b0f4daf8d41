#include "pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <cstdlib>
#include <new>

namespace tokenweave {
namespace {

// Longer than the gap between two kernels of a layer, shorter than anything a sleeping machine would notice.
constexpr auto SPIN_TIME = std::chrono::microseconds(50);
constexpr uint32_t STOP = UINT32_MAX;

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word, int count) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

template <typename Done>
bool spin_until(Done done) {
    const auto deadline = std::chrono::steady_clock::now() + SPIN_TIME;
    do {
        for (int i = 0; i < 16; ++i) {
            if (done()) return true;
            _mm_pause();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return done();
}

}  // namespace

void Pool::Free::operator()(char* memory) const { std::free(memory); }

Pool::Pool(int num_threads, const KernelTable& kernels) : kernels_(kernels), scratch_(num_threads) {
    try {
        for (int worker = 1; worker < num_threads; ++worker) threads_.emplace_back(&Pool::work, this, worker);
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    remaining_.store(STOP);
    futex_wake(remaining_, INT_MAX);
    for (auto& thread : threads_) thread.join();
}

void Pool::reserve(size_t size_bytes) {
    if (size_bytes <= scratch_bytes_) return;
    size_bytes = (size_bytes + 63) / 64 * 64;
    for (auto& scratch : scratch_) {
        scratch.reset(static_cast<char*>(std::aligned_alloc(64, size_bytes)));
        if (!scratch) {
            scratch_bytes_ = 0;
            throw std::bad_alloc();
        }
    }
    scratch_bytes_ = size_bytes;
}

char* Pool::reserve_shared(size_t size_bytes) {
    if (size_bytes <= shared_bytes_) return shared_.get();
    // Callers that need a little more each time, as a sequence grows, find room most times.
    size_t room_bytes = 4096;
    while (room_bytes < size_bytes) room_bytes *= 2;
    shared_bytes_ = 0;
    shared_.reset();
    shared_.reset(static_cast<char*>(std::aligned_alloc(64, room_bytes)));
    if (!shared_) throw std::bad_alloc();
    shared_bytes_ = room_bytes;
    return shared_.get();
}

void Pool::run(Task task, const void* context, int64_t num_items) {
    if (threads_.empty() || num_items <= 1) {
        for (int64_t item = 0; item < num_items; ++item) task(context, scratch_[0].get(), item);
        return;
    }
    task_ = task;
    context_ = context;
    num_items_ = static_cast<uint32_t>(num_items);
    finished_.store(0, std::memory_order_relaxed);
    remaining_.store(num_items_);  // publishes the job; sequentially consistent against num_asleep_
    if (num_asleep_.load() > 0) futex_wake(remaining_, static_cast<int>(num_items - 1));
    while (take_item(0)) {}
    await_items();
}

// True if an item was taken, and then it is finished.
bool Pool::take_item(int worker) {
    uint32_t remaining = remaining_.load(std::memory_order_relaxed);
    do {
        if (remaining == 0 || remaining == STOP) return false;
    } while (!remaining_.compare_exchange_weak(remaining, remaining - 1, std::memory_order_acquire));
    const uint32_t num_items = num_items_;
    task_(context_, scratch_[worker].get(), num_items - remaining);
    if (finished_.fetch_add(1) + 1 == num_items && caller_asleep_.load()) futex_wake(finished_, 1);
    return true;
}

void Pool::work(int worker) {
    while (remaining_.load() != STOP) {
        if (!take_item(worker)) await_work();
    }
}

void Pool::await_work() {
    if (spin_until([this] { return remaining_.load(std::memory_order_relaxed) != 0; })) return;
    num_asleep_.fetch_add(1);
    futex_wait(remaining_, 0);
    num_asleep_.fetch_sub(1);
}

void Pool::await_items() {
    if (spin_until([this] { return finished_.load(std::memory_order_acquire) == num_items_; })) return;
    caller_asleep_.store(true);
    for (uint32_t finished; (finished = finished_.load()) != num_items_;) futex_wait(finished_, finished);
    caller_asleep_.store(false);
}

}  // namespace tokenweave
