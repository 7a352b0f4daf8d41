/* Facts about heaps, one function each. `heap_facts` lists them, `heap_facts NAME` proves one. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap/heap.h"

#define MIB ((size_t)1 << 20)
#define GIB ((size_t)1 << 30)
#define PAGE ((size_t)4096)

#define REQUIRE(condition)                                                                      \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            fprintf(stderr, "%s:%d: %s is false; detail: %s\n", __FILE__, __LINE__, #condition, \
                    emx_error_detail());                                                        \
            _Exit(1);                                                                           \
        }                                                                                       \
    } while (0)

static char* reserve(size_t size, int protection) {
    char* found = mmap(NULL, size + 2 * MIB, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(found != MAP_FAILED);
    return (char*)(((uintptr_t)found + 2 * MIB - 1) / (2 * MIB) * (2 * MIB));
}

/* The pages of all heaps, which live as long as this process: it proves one fact. */
static pages* made_so_far;

static heap* make_on(const provider* provider, char* base, size_t capacity, bool fresh_is_zero,
                     bool touchable) {
    pages* pages = calloc(1, sizeof *pages);
    heap* made;
    REQUIRE(pages != NULL);
    pages->next = made_so_far, made_so_far = pages;
    pages->provider = provider, pages->base = base, pages->capacity_bytes = capacity;
    pages->fresh_is_zero = fresh_is_zero, pages->touchable = touchable;
    REQUIRE(heap_create(pages, &made) == EMX_OK);
    return made;
}

static heap* make(char* base, size_t capacity, bool touchable) {
    static const provider always_there;
    return make_on(&always_there, base, capacity, true, touchable);
}

static heap* make_anywhere(size_t capacity) {
    return make(reserve(capacity, PROT_READ | PROT_WRITE), capacity, true);
}

static void* get(heap* heap, size_t size) {
    void* pointer;
    REQUIRE(heap_alloc(heap, size, 0, &pointer) == EMX_OK);
    return pointer;
}

static heap_stats stats_of(heap* heap) {
    heap_stats stats;
    heap_get_stats(heap, &stats);
    return stats;
}

static void end(heap* heap) {
    REQUIRE(heap_check(heap) == EMX_OK);
    heap_destroy(heap);
}

/* A thread that does one thing, then waits until it is told to end. */
typedef struct helper {
    pthread_t thread;
    void (*task)(struct helper* helper);
    heap* heap;
    void* pointers[1000];
    atomic_int is_done, may_end;
} helper;

static void* help(void* argument) {
    helper* helper = argument;
    helper->task(helper);
    atomic_store(&helper->is_done, 1);
    while (!atomic_load(&helper->may_end)) usleep(100);
    return NULL;
}

static void start(helper* helper, heap* heap, void (*task)(struct helper*)) {
    *helper = (struct helper){.heap = heap, .task = task};
    REQUIRE(pthread_create(&helper->thread, NULL, help, helper) == 0);
}

static void await(helper* helper) {
    while (!atomic_load(&helper->is_done)) usleep(100);
}

static void stop(helper* helper) {
    atomic_store(&helper->may_end, 1);
    pthread_join(helper->thread, NULL);
}

static void alloc_and_free(helper* helper) {
    for (int i = 0; i < 1000; ++i) helper->pointers[i] = get(helper->heap, 64);
    for (int i = 0; i < 1000; ++i) REQUIRE(heap_free(helper->heap, helper->pointers[i]) == EMX_OK);
}

/* ---- sizes and places ---------------------------------------------------------------------------------- */

static void every_size_is_handed_out_exactly(void) {
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

static void small_blocks_waste_at_most_an_eighth(void) {
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

static void large_blocks_lie_on_extents(void) {
    heap* heap = make_anywhere(64 * MIB);
    get(heap, 100);
    REQUIRE((uintptr_t)get(heap, 3 * MIB) % (2 * MIB) == 0);
    REQUIRE((uintptr_t)get(heap, 2 * MIB) % (2 * MIB) == 0);
    end(heap);
}

static void one_page_holds_256_small_blocks(void) {
    heap* heap = make_anywhere(PAGE);
    void* pointer;
    for (int i = 0; i < 256; ++i) get(heap, 16);
    REQUIRE(heap_alloc(heap, 16, 0, &pointer) == EMX_E_TIER_FULL &&
            strstr(emx_error_detail(), "capacity of 4096"));
    end(heap);
}

static void few_blocks_of_many_sizes_fit_in_a_small_tier(void) {
    heap* heap = make_anywhere(512 * 1024);
    for (size_t size = 16; size <= 8192; size += size / 8 + 15) get(heap, size);
    end(heap);
}

static void a_block_grows_into_free_pages_behind_it(void) {
    heap* heap = make_anywhere(8 * MIB);
    char *first = get(heap, 100000), *second = get(heap, 100000);
    memset(first, 1, 100000), memset(second, 2, 100000);
    REQUIRE(!heap_resize_in_place(heap, first, 150000));
    REQUIRE(heap_free(heap, second) == EMX_OK && heap_resize_in_place(heap, first, 150000));
    for (size_t i = 0; i < 150000; ++i) REQUIRE(first[i] == (i < 100000));
    REQUIRE(heap_resize_in_place(heap, first, 10) && stats_of(heap).reserved_bytes == PAGE);
    end(heap);
}

static void a_terabyte_costs_what_is_used(void) {
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

/* ---- threads ------------------------------------------------------------------------------------------- */

static void a_thread_that_ends_gives_its_cache_back(void) {
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

static void caches_are_emptied_before_a_tier_is_full(void) {
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

static void a_thread_uses_more_heaps_than_it_remembers(void) {
    static helper helper;
    start(&helper, NULL, use_forty_heaps_in_turn);
    stop(&helper);
}

static void a_heap_may_end_before_the_threads_that_used_it(void) {
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

static void lookups_are_exact_beside_threads_that_allocate(void) {
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

static void a_fork_finds_the_heap_whole(void) {
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

/* ---- pointers that are wrong --------------------------------------------------------------------------- */

static void a_wrong_pointer_is_refused(void) {
    heap* heap = make_anywhere(16 * MIB);
    heap_block block;
    for (size_t size = 16; size <= MIB; size *= 4) {
        char* pointer = get(heap, size);
        REQUIRE(heap_free(heap, pointer + 8) == EMX_E_BAD_POINTER &&
                strstr(emx_error_detail(), "8 bytes into"));
        REQUIRE(!heap_resize_in_place(heap, pointer + 8, 1));
        REQUIRE(heap_free(heap, pointer) == EMX_OK);
        REQUIRE(heap_free(heap, pointer) == EMX_E_BAD_POINTER && strstr(emx_error_detail(), "freed already"));
        REQUIRE(heap_query(heap, pointer, &block) == EMX_E_BAD_POINTER);
    }
    REQUIRE(heap_free(heap, NULL) == EMX_E_BAD_POINTER && heap_free(heap, &heap) == EMX_E_BAD_POINTER);
    end(heap);
}

static void arguments_that_make_no_sense_are_refused(void) {
    heap *heap = make_anywhere(4 * MIB), *none = NULL;
    pages off_alignment = {.base = (char*)(2 * MIB) + 4096, .capacity_bytes = MIB};
    pages part_of_a_page = {.base = (char*)(2 * MIB), .capacity_bytes = 100};
    void* pointer;
    REQUIRE(heap_alloc(heap, 0, 0, &pointer) == EMX_E_INVALID);
    REQUIRE(heap_alloc(heap, 1, 3, &pointer) == EMX_E_INVALID &&
            heap_alloc(heap, 1, 4 * MIB, &pointer) == EMX_E_INVALID);
    REQUIRE(heap_alloc(heap, SIZE_MAX, 0, &pointer) == EMX_E_TIER_FULL);
    REQUIRE(heap_alloc(heap, 5 * MIB, 0, &pointer) == EMX_E_TIER_FULL);
    REQUIRE(heap_create(&off_alignment, &none) == EMX_E_INVALID);
    REQUIRE(heap_create(&part_of_a_page, &none) == EMX_E_INVALID && none == NULL);
    end(heap);
}

/* ---- poison -------------------------------------------------------------------------------------------- */

static void a_poisoned_page_is_never_handed_out_again(void) {
    heap* heap = make_anywhere(MIB);
    char* base = get(heap, MIB);
    const void* bad;
    REQUIRE(heap_poison(heap, base + 100 * PAGE + 70, 1) == EMX_OK); /* live: kept until it is freed */
    REQUIRE(heap_first_poison(heap, base, MIB, &bad) && bad == base + 100 * PAGE + 64);
    REQUIRE(heap_free(heap, base) == EMX_OK && heap_poison(heap, base, 1) == EMX_OK); /* free: at once */
    REQUIRE(stats_of(heap).poisoned_bytes == 2 * PAGE);
    void* pointer;
    size_t num_pages = 0;
    while (heap_alloc(heap, PAGE, 0, &pointer) == EMX_OK) {
        REQUIRE(!heap_first_poison(heap, pointer, PAGE, &bad));
        ++num_pages;
    }
    REQUIRE(num_pages == MIB / PAGE - 2);
    end(heap);
}

static void objects_on_a_poisoned_page_are_retired(void) {
    heap* heap = make_anywhere(MIB);
    static helper helper;
    char* pointers[2000];
    const void* bad;
    start(&helper, heap, alloc_and_free); /* its cache may hold some of them */
    await(&helper);
    for (int i = 0; i < 2000; ++i) pointers[i] = get(heap, 64);
    REQUIRE(heap_poison(heap, pointers[700], 1) == EMX_OK && heap_check(heap) == EMX_OK);
    for (int i = 0; i < 2000; ++i) REQUIRE(heap_free(heap, pointers[i]) == EMX_OK);
    REQUIRE(heap_free(heap, pointers[700]) == EMX_E_BAD_POINTER);
    REQUIRE(heap_check(heap) == EMX_OK);
    for (int i = 0; i < 2000; ++i) REQUIRE(!heap_first_poison(heap, get(heap, 64), 64, &bad));
    stop(&helper);
    end(heap);
}

/* ---- memory behind ------------------------------------------------------------------------------------- */

static size_t num_commits, committed;
static bool refuses;

static emx_status commit(pages* pages, size_t offset, size_t size) {
    (void)pages, (void)offset;
    if (refuses) return EMX_E_NO_MEMORY;
    ++num_commits, committed += size;
    return EMX_OK;
}

static emx_status decommit(pages* pages, size_t offset, size_t size) {
    REQUIRE(madvise(pages->base + offset, size, MADV_DONTNEED) == 0);
    committed -= size;
    return EMX_OK;
}

static void extents_are_committed_once_and_given_back_by_trim(void) {
    char* base = reserve(64 * MIB, PROT_READ | PROT_WRITE);
    static const provider counted = {.commit = commit, .decommit = decommit};
    heap* heap = make_on(&counted, base, 64 * MIB, true, true);
    void* pointer;
    for (int i = 0; i < 200; ++i) get(heap, 1000);
    REQUIRE(num_commits == 1 && committed == 2 * MIB);
    char* large = get(heap, 10 * MIB);
    REQUIRE(num_commits == 2 && committed == 12 * MIB);
    memset(large, 1, 10 * MIB);
    REQUIRE(heap_free(heap, large) == EMX_OK && heap_trim(heap) == EMX_OK && committed < 2 * MIB);
    refuses = true;
    REQUIRE(heap_alloc(heap, 10 * MIB, 0, &pointer) == EMX_E_NO_MEMORY && heap_check(heap) == EMX_OK);
    refuses = false;
    large = get(heap, 10 * MIB);
    for (size_t i = 0; i < 10 * MIB; ++i) REQUIRE(large[i] == 0);
    end(heap);
}

/* ---- the list ------------------------------------------------------------------------------------------ */

#define FACT(name) {#name, name}
static const struct {
    const char* name;
    void (*prove)(void);
} facts[] = {
    FACT(every_size_is_handed_out_exactly),
    FACT(small_blocks_waste_at_most_an_eighth),
    FACT(large_blocks_lie_on_extents),
    FACT(one_page_holds_256_small_blocks),
    FACT(few_blocks_of_many_sizes_fit_in_a_small_tier),
    FACT(a_block_grows_into_free_pages_behind_it),
    FACT(a_terabyte_costs_what_is_used),
    FACT(a_thread_that_ends_gives_its_cache_back),
    FACT(caches_are_emptied_before_a_tier_is_full),
    FACT(a_thread_uses_more_heaps_than_it_remembers),
    FACT(a_heap_may_end_before_the_threads_that_used_it),
    FACT(lookups_are_exact_beside_threads_that_allocate),
    FACT(a_fork_finds_the_heap_whole),
    FACT(a_wrong_pointer_is_refused),
    FACT(arguments_that_make_no_sense_are_refused),
    FACT(a_poisoned_page_is_never_handed_out_again),
    FACT(objects_on_a_poisoned_page_are_retired),
    FACT(extents_are_committed_once_and_given_back_by_trim),
};

int main(int count, char** arguments) {
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; ++i) {
        if (count < 2) puts(facts[i].name);
        else if (strcmp(facts[i].name, arguments[1]) == 0) facts[i].prove();
    }
    return 0;
}
