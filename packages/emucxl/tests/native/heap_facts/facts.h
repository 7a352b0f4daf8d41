/* Heaps to prove facts about, and threads that use them. */
#ifndef EMUCXL_TESTS_FACTS_H
#define EMUCXL_TESTS_FACTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "heap/heap.h"
#include "require.h"

#define MIB ((size_t)1 << 20)
#define GIB ((size_t)1 << 30)
#define PAGE ((size_t)4096)

/* heaps.c */
char* reserve(size_t size, int protection);
heap* make_on(const provider* provider, char* base, size_t capacity, bool fresh_is_zero, bool touchable);
heap* make(char* base, size_t capacity, bool touchable);
heap* make_anywhere(size_t capacity);
void* get(heap* heap, size_t size);
heap_stats stats_of(heap* heap);
void end(heap* heap);

/* A thread that does one thing, then waits until it is told to end. */
typedef struct helper {
    pthread_t thread;
    void (*task)(struct helper* helper);
    heap* heap;
    void* pointers[1000];
    atomic_int is_done, may_end;
} helper;
void start(helper* helper, heap* heap, void (*task)(struct helper*));
void await(helper* helper);
void stop(helper* helper);
void alloc_and_free(helper* helper);

#endif
