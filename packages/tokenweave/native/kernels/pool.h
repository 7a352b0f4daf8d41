// The worker team behind a tw_pool.
//
// Thread safety: run(), reserve() and reserve_shared() are for one caller at a time.
// Invariants:
//  1. `remaining_` > 0 only while run() is active, so whoever takes an item may read the job's description.
//  2. run() returns when every item is finished; it never waits for a worker that took no item. What the
//  items wrote
//     is visible to the caller then.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace tokenweave {

struct KernelTable;

class Pool {
  public:
    using Task = void (*)(const void* context, char* scratch, int64_t item);

    Pool(int num_threads, const KernelTable& kernels);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Calls task(context, scratch, item) for every item in [0, num_items), in ascending order of start.
    void run(Task task, const void* context, int64_t num_items);

    // Gives each worker `size_bytes` of scratch, 64-byte aligned, valid until the next call. Throws
    // std::bad_alloc.
    void reserve(size_t size_bytes);

    // Memory for what one task leaves for a later one: aligned and valid as above, and nobody's own. Throws
    // std::bad_alloc.
    char* reserve_shared(size_t size_bytes);

    // The caller's own scratch, which every worker may read while a task that writes no scratch runs.
    char* caller_scratch() const { return scratch_[0].get(); }

    int num_threads() const { return static_cast<int>(scratch_.size()); }
    const KernelTable& kernels() const { return kernels_; }

  private:
    struct Free {
        void operator()(char* memory) const;
    };

    void stop();
    void work(int worker);
    bool take_item(int worker);
    void await_work();
    void await_items();

    const KernelTable& kernels_;
    Task task_ = nullptr;
    const void* context_ = nullptr;
    uint32_t num_items_ = 0;
    alignas(64) std::atomic<uint32_t> remaining_{0};
    alignas(64) std::atomic<uint32_t> finished_{0};
    std::atomic<uint32_t> num_asleep_{0};
    std::atomic<bool> caller_asleep_{false};
    size_t scratch_bytes_ = 0;
    std::vector<std::unique_ptr<char, Free>> scratch_;
    size_t shared_bytes_ = 0;
    std::unique_ptr<char, Free> shared_;
    std::vector<std::thread> threads_;
};

}  // namespace tokenweave
