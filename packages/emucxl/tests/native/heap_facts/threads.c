/* Threads and forks. */
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap_facts/facts.h"

void a_thread_that_ends_gives_its_cache_back(void) {
    heap* heap = make_anywhere(16 * MIB);
    static helper helper;
    start(&helper, heap, alloc_and_free);
    await(&helper);
    REQUIRE(stats_of(heap).reserved_bytes > 0);
    stop(&helper);
    const heap_stats stats = stats_of(heap);
    REQUIRE(stats.reserved_bytes == 0 && stats.total_allocations == 1000 && stats.num_allocations == 0);
    end(heap);
}

void caches_are_emptied_before_a_tier_is_full(void) {
    heap* heap = make_anywhere(16 * MIB);
    static helper helper;
    start(&helper, heap, alloc_and_free);
    await(&helper);
    REQUIRE(stats_of(heap).reserved_bytes > 0);
    get(heap, 16 * MIB);
    REQUIRE(stats_of(heap).reserved_bytes == 16 * MIB);
    stop(&helper);
    end(heap);
}

static void use_forty_heaps_in_turn(helper* helper) {
    heap* heaps[40];
    char* base = reserve(40 * MIB * 2, PROT_READ | PROT_WRITE);
    (void)helper;
    for (int i = 0; i < 40; ++i) heaps[i] = make(base + 2 * MIB * i, MIB, true);
    for (int round = 0; round < 20; ++round)
        for (int i = 0; i < 40; ++i) REQUIRE(heap_free(heaps[i], get(heaps[i], 100)) == EMX_OK);
    for (int i = 0; i < 40; ++i) end(heaps[i]);
}

void a_thread_uses_more_heaps_than_it_remembers(void) {
    static helper helper;
    start(&helper, NULL, use_forty_heaps_in_turn);
    stop(&helper);
}

void a_heap_may_end_before_the_threads_that_used_it(void) {
    static helper helpers[20];
    heap* heap = make_anywhere(16 * MIB);
    for (int i = 0; i < 20; ++i) start(&helpers[i], heap, alloc_and_free);
    for (int i = 0; i < 20; ++i) await(&helpers[i]);
    end(heap);
    for (int i = 0; i < 20; ++i) stop(&helpers[i]);
}

/* Keeps everything around the blocks of the main thread in motion until it may end. */
static void churn(helper* helper) {
    unsigned random = (unsigned)(uintptr_t)helper;
    while (!atomic_load(&helper->may_end)) {
        random = random * 1664525u + 1013904223u;
        void** slot = &helper->pointers[random >> 8 & 63];
        if (*slot) REQUIRE(heap_free(helper->heap, *slot) == EMX_OK);
        *slot = get(helper->heap, random >> 31 ? 1 + (random >> 16 & 1023) : 1 + (random >> 14 & 0xffff));
    }
    for (int i = 0; i < 64; ++i)
        if (helper->pointers[i]) REQUIRE(heap_free(helper->heap, helper->pointers[i]) == EMX_OK);
}

void lookups_are_exact_beside_threads_that_allocate(void) {
    heap* heap = make_anywhere(64 * MIB);
    static helper helpers[2];
    heap_block block;
    for (int i = 0; i < 2; ++i) start(&helpers[i], heap, churn);
    for (int round = 0; round < 300; ++round) {
        const size_t sizes[] = {24, 300, 5000, 30000, 100000, 600000};
        for (int i = 0; i < 6; ++i) {
            char* pointer = get(heap, sizes[i]);
            for (size_t offset = 0; offset < sizes[i]; offset += sizes[i] / 11 + 1)
                REQUIRE(heap_query(heap, pointer + offset, &block) == EMX_OK && block.base == pointer &&
                        block.size_bytes == sizes[i]);
            REQUIRE(heap_free(heap, pointer) == EMX_OK);
        }
        if (round % 50 == 0) REQUIRE(heap_check(heap) == EMX_OK && heap_trim(heap) == EMX_OK);
    }
    for (int i = 0; i < 2; ++i) stop(&helpers[i]);
    REQUIRE(stats_of(heap).num_allocations == 0 && stats_of(heap).allocated_bytes == 0);
    end(heap);
}

void a_fork_finds_the_heap_whole(void) {
    heap* heap = make_anywhere(32 * MIB);
    static helper helpers[2];
    char* mine = get(heap, 1000);
    for (int i = 0; i < 2; ++i) start(&helpers[i], heap, churn);
    for (int round = 0; round < 20; ++round) {
        int status;
        const pid_t child = fork();
        if (child == 0) {
            REQUIRE(heap_check(heap) == EMX_OK && heap_free(heap, mine) == EMX_OK);
            get(heap, 100), get(heap, 100000);
            REQUIRE(heap_trim(heap) == EMX_OK && heap_check(heap) == EMX_OK);
            _exit(0);
        }
        REQUIRE(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    }
    for (int i = 0; i < 2; ++i) stop(&helpers[i]);
    REQUIRE(heap_free(heap, mine) == EMX_OK && stats_of(heap).num_allocations == 0);
    end(heap);
}
