/* The memory behind a heap. */
#include <string.h>
#include <sys/mman.h>

#include "heap_facts/facts.h"

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

void extents_are_committed_once_and_given_back_by_trim(void) {
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
