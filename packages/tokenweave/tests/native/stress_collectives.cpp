// Threads as ranks run thousands of collectives of changing kind and size, checking every result. Built with
// a sanitizer by tests/test_sanitizers.py. Usage: stress_collectives SIZE ROUNDS
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "tokenweave.h"

namespace {

constexpr size_t kSlotBytes = 4096;

struct Shared {
    void* base;
    size_t bytes;
    int size;
};

tw_shm_group* join(const Shared& shared, int rank) {
    tw_shm_options options{};
    options.rank = rank;
    options.size = shared.size;
    options.slot_bytes = kSlotBytes;
    options.timeout_ns = 60'000'000'000;
    options.spin_ns = rank % 2 ? 0 : 20'000;  // some sleep at once, some spin
    tw_shm_group* group = nullptr;
    CHECK(tw_shm_attach(shared.base, shared.bytes, -1, &options, &group) == TW_OK);
    return group;
}

void sum(tw_shm_group* group, int rank, int size, size_t count, int round) {
    std::vector<float> data(count);
    for (size_t i = 0; i < count; ++i) data[i] = float(rank + round + int(i % 100));
    CHECK(tw_shm_all_reduce(group, data.data(), count, TW_SHM_FLOAT32) == TW_OK);
    const int ranks = size * (size - 1) / 2;
    for (size_t i = 0; i < count; ++i) CHECK(data[i] == float(ranks + size * (round + int(i % 100))));
}

void gather(tw_shm_group* group, int rank, int size, size_t bytes, int round) {
    std::vector<char> data(bytes, char(rank + round)), gathered(bytes * size);
    CHECK(tw_shm_all_gather(group, data.data(), gathered.data(), bytes) == TW_OK);
    for (size_t i = 0; i < gathered.size(); ++i) CHECK(gathered[i] == char(int(i / bytes) + round));
}

void broadcast(tw_shm_group* group, int rank, int root, size_t bytes, int round) {
    std::vector<char> data(bytes, char(rank == root ? round : -1));
    CHECK(tw_shm_broadcast(group, data.data(), bytes, root) == TW_OK);
    for (char value : data) CHECK(value == char(round));
}

void message(tw_shm_group* group, int rank, int root, size_t bytes, int round) {
    std::vector<char> data(bytes, char(round));
    if (rank == root) {
        CHECK(tw_shm_send_bytes(group, data.data(), bytes, round % 2) == TW_OK);
        return;
    }
    uint64_t length = 0;
    CHECK(tw_shm_receive_begin(group, root, round % 2, &length) == TW_OK && length == bytes);
    std::vector<char> received(length);
    CHECK(tw_shm_receive_rest(group, root, received.data()) == TW_OK && received == data);
}

void work(const Shared& shared, int rank, int rounds) {
    tw_shm_group* group = join(shared, rank);
    unsigned random = 1;  // the same on every rank
    for (int round = 0; round < rounds; ++round) {
        random = random * 1664525u + 1013904223u;
        const size_t count = random >> 16 & 63 ? random >> 20 & 511 : 40000;
        const int root = int(random >> 8) % shared.size;
        switch (random >> 28) {
            case 0:
                CHECK(tw_shm_barrier(group) == TW_OK);
                break;
            case 1:
            case 2:
            case 3:
                gather(group, rank, shared.size, count, round);
                break;
            case 4:
            case 5:
            case 6:
                broadcast(group, rank, root, count, round);
                break;
            case 7:
            case 8:
                message(group, rank, root, count, round);
                break;
            default:
                sum(group, rank, shared.size, count, round);
        }
    }
    if (rank == 0) CHECK(tw_shm_abort(group, 0, "the test is over") == TW_OK);
    CHECK(rank == 0 || tw_shm_barrier(group) == TW_ERROR_ABORTED);
    char text[64];
    CHECK(rank == 0 ||
          (tw_shm_last_error(group, text, sizeof text) == 0 && !strcmp(text, "the test is over")));
    tw_shm_detach(group);
}

}  // namespace

int main(int, char** arguments) {
    Shared shared{nullptr, 0, atoi(arguments[1])};
    shared.bytes = tw_shm_segment_bytes(shared.size, kSlotBytes);
    shared.base = mmap(nullptr, shared.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared.base != MAP_FAILED);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < shared.size; ++rank)
        ranks.emplace_back(work, std::cref(shared), rank, atoi(arguments[2]));
    for (std::thread& rank : ranks) rank.join();
    munmap(shared.base, shared.bytes);
    puts("every result was right");
}
