/* Sizes of blocks, and the places where they lie. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "heap_facts/facts.h"

void every_size_is_handed_out_exactly(void) {
    heap* heap = make_anywhere(64 * MIB);
    heap_block block;
    for (size_t size = 1; size < 140000; size += size < 1200 ? 1 : size < 40000 ? 13 : 997) {
        char* pointer = get(heap, size);
        REQUIRE((uintptr_t)pointer % 16 == 0);
        REQUIRE(heap_query(heap, pointer + size - 1, &block) == EMX_OK && block.base == pointer &&
                block.size_bytes == size);
        REQUIRE(heap_query(heap, pointer + size, &block) == EMX_E_BAD_POINTER || block.base != pointer);
        REQUIRE(heap_free(heap, pointer) == EMX_OK);
    }
    end(heap);
}

void small_blocks_waste_at_most_an_eighth(void) {
    for (size_t size = 129; size <= 32768; size += size / 50) {
        heap* heap = make_anywhere(64 * MIB);
        for (int i = 0; i < 1024; ++i) get(heap, size);
        heap_trim(heap); /* what the cache holds is not waste */
        const heap_stats stats = stats_of(heap);
        /* of the class, of the slab's end, and the last slab's free part */
        REQUIRE(stats.reserved_bytes * 49 <= stats.allocated_bytes * 64 + 49 * 65536);
        end(heap);
    }
}

void large_blocks_lie_on_extents(void) {
    heap* heap = make_anywhere(64 * MIB);
    get(heap, 100);
    REQUIRE((uintptr_t)get(heap, 3 * MIB) % (2 * MIB) == 0);
    REQUIRE((uintptr_t)get(heap, 2 * MIB) % (2 * MIB) == 0);
    end(heap);
}

void one_page_holds_256_small_blocks(void) {
    heap* heap = make_anywhere(PAGE);
    void* pointer;
    for (int i = 0; i < 256; ++i) get(heap, 16);
    REQUIRE(heap_alloc(heap, 16, 0, &pointer) == EMX_E_TIER_FULL &&
            strstr(emx_error_detail(), "capacity of 4096"));
    end(heap);
}

void few_blocks_of_many_sizes_fit_in_a_small_tier(void) {
    heap* heap = make_anywhere(512 * 1024);
    for (size_t size = 16; size <= 8192; size += size / 8 + 15) get(heap, size);
    end(heap);
}

void a_block_grows_into_free_pages_behind_it(void) {
    heap* heap = make_anywhere(8 * MIB);
    char *first = get(heap, 100000), *second = get(heap, 100000);
    memset(first, 1, 100000), memset(second, 2, 100000);
    REQUIRE(!heap_resize_in_place(heap, first, 150000));
    REQUIRE(heap_free(heap, second) == EMX_OK && heap_resize_in_place(heap, first, 150000));
    for (size_t i = 0; i < 150000; ++i) REQUIRE(first[i] == (i < 100000));
    REQUIRE(heap_resize_in_place(heap, first, 10) && stats_of(heap).reserved_bytes == PAGE);
    end(heap);
}

void a_terabyte_costs_what_is_used(void) {
    char* base = reserve(1024 * GIB, PROT_NONE);
    heap* heap = make(base, 1024 * GIB, false);
    char *small = get(heap, 100), *large = get(heap, 700 * GIB);
    heap_block block;
    long before, after;
    FILE* file = fopen("/proc/self/statm", "r");
    REQUIRE(file && fscanf(file, "%*d %ld", &before) == 1);
    fclose(file);
    REQUIRE(heap_query(heap, large + 699 * GIB, &block) == EMX_OK && block.base == large);
    REQUIRE(heap_query(heap, small + 99, &block) == EMX_OK && block.base == small);
    REQUIRE(heap_query(heap, base + 1023 * GIB, &block) == EMX_E_BAD_POINTER);
    REQUIRE(heap_free(heap, large) == EMX_OK && heap_alloc(heap, 1023 * GIB, 0, (void**)&large) == EMX_OK);
    file = fopen("/proc/self/statm", "r");
    REQUIRE(file && fscanf(file, "%*d %ld", &after) == 1);
    fclose(file);
    REQUIRE((after - before) * 4096 < (long)(16 * MIB)); /* a bit per page alone is 32 MiB */
    heap_destroy(heap);                                  /* a check would walk 32 MiB of bitmaps */
}
