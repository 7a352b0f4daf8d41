/* Heaps over memory of this process, and threads that do one thing. */
#include <sys/mman.h>
#include <unistd.h>

#include "heap_facts/facts.h"

char* reserve(size_t size, int protection) {
    char* found = mmap(NULL, size + 2 * MIB, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(found != MAP_FAILED);
    return (char*)(((uintptr_t)found + 2 * MIB - 1) / (2 * MIB) * (2 * MIB));
}

/* The pages of all heaps, which live as long as this process: it proves one fact. */
static pages* made_so_far;

heap* make_on(const provider* provider, char* base, size_t capacity, bool fresh_is_zero, bool touchable) {
    pages* pages = calloc(1, sizeof *pages);
    heap* made;
    REQUIRE(pages != NULL);
    pages->next = made_so_far, made_so_far = pages;
    pages->provider = provider, pages->base = base, pages->capacity_bytes = capacity;
    pages->fresh_is_zero = fresh_is_zero, pages->touchable = touchable;
    REQUIRE(heap_create(pages, &made) == EMX_OK);
    return made;
}

heap* make(char* base, size_t capacity, bool touchable) {
    static const provider always_there;
    return make_on(&always_there, base, capacity, true, touchable);
}

heap* make_anywhere(size_t capacity) {
    return make(reserve(capacity, PROT_READ | PROT_WRITE), capacity, true);
}

void* get(heap* heap, size_t size) {
    void* pointer;
    REQUIRE(heap_alloc(heap, size, 0, &pointer) == EMX_OK);
    return pointer;
}

heap_stats stats_of(heap* heap) {
    heap_stats stats;
    heap_get_stats(heap, &stats);
    return stats;
}

void end(heap* heap) {
    REQUIRE(heap_check(heap) == EMX_OK);
    heap_destroy(heap);
}

static void* help(void* argument) {
    helper* helper = argument;
    helper->task(helper);
    atomic_store(&helper->is_done, 1);
    while (!atomic_load(&helper->may_end)) usleep(100);
    return NULL;
}

void start(helper* helper, heap* heap, void (*task)(struct helper*)) {
    *helper = (struct helper){.heap = heap, .task = task};
    REQUIRE(pthread_create(&helper->thread, NULL, help, helper) == 0);
}

void await(helper* helper) {
    while (!atomic_load(&helper->is_done)) usleep(100);
}

void stop(helper* helper) {
    atomic_store(&helper->may_end, 1);
    pthread_join(helper->thread, NULL);
}

void alloc_and_free(helper* helper) {
    for (int i = 0; i < 1000; ++i) helper->pointers[i] = get(helper->heap, 64);
    for (int i = 0; i < 1000; ++i) REQUIRE(heap_free(helper->heap, helper->pointers[i]) == EMX_OK);
}
