/* The registry of all heaps of the process: the list of them and of their caches, the end of threads, and
 * forks.
 *
 * A fork finds every heap at rest: no lock held, nobody inside a cache. The child's copy of a heap is whole
 * and its own, and what the caches of the parent's threads held is given back when a tier runs full or is
 * trimmed. Memory that both share (shm, dax, a pool) has only one heap to the parent's mind, though: a child
 * must not allocate from or free to it.
 */
#include <stdlib.h>

#include "fork.h"
#include "heap/cache.h"

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static heap* heaps;
static uint64_t last_heap_id, last_thread;

void registry_lock(void) { pthread_mutex_lock(&registry); }
void registry_unlock(void) { pthread_mutex_unlock(&registry); }

/* ---- threads ------------------------------------------------------------------------------------------- */

static cache** find_own(heap* heap, const thread_state* self) {
    cache** link = &heap->caches;
    while (*link && (*link)->thread != self->number) link = &(*link)->next;
    return link;
}

static void end_thread(thread_state* self) {
    if (self->number == 0) return;
    registry_lock();
    for (heap* heap = heaps; heap; heap = heap->next) {
        cache **link = find_own(heap, self), *own = *link;
        if (!own) continue;
        *link = own->next;
        cache_retire(heap, own);
    }
    registry_unlock();
}

static cache* find_or_create(heap* heap, thread_state* self) {
    if (self->number == 0) self->number = ++last_thread;
    cache** link = find_own(heap, self);
    if (*link) return *link;
    cache* made = cache_create(heap);
    if (!made) return NULL;
    made->thread = self->number;
    made->next = heap->caches;
    return heap->caches = made;
}

cache* cache_of(heap* heap) {
    thread_state* self = thread_self();
    cache* cache = cache_recent(heap);
    if (cache || self->is_ending) return cache;
    registry_lock();
    cache = find_or_create(heap, self);
    registry_unlock();
    if (cache) self->recent_caches[heap->id % NUM_RECENT_CACHES] = (recent_cache){heap->id, cache};
    return cache;
}

/* ---- forks --------------------------------------------------------------------------------------------- */

static void hold(void) {
    registry_lock();
    for (heap* heap = heaps; heap; heap = heap->next) caches_signal_stop(heap, true);
    barrier_heavy(); /* one for all heaps: as in caches_stop */
    for (heap* heap = heaps; heap; heap = heap->next) caches_await(heap);
    for (heap* heap = heaps; heap; heap = heap->next) pthread_mutex_lock(&heap->lock);
}

static void let_go(bool is_child) {
    (void)is_child;
    for (heap* heap = heaps; heap; heap = heap->next) pthread_mutex_unlock(&heap->lock);
    for (heap* heap = heaps; heap; heap = heap->next) caches_signal_stop(heap, false);
    registry_unlock();
}

__attribute__((constructor)) static void prepare(void) {
    fork_watch(FORK_HEAPS, hold, let_go);
    thread_watch_ends(end_thread);
}

/* ---- heaps --------------------------------------------------------------------------------------------- */

void registry_add(heap* heap) {
    pthread_once(&prepared, barrier_prepare);
    registry_lock();
    heap->id = ++last_heap_id;
    heap->next = heaps;
    heap->link = &heaps;
    if (heaps) heaps->link = &heap->next;
    heaps = heap;
    registry_unlock();
}

void registry_remove(heap* heap) {
    registry_lock();
    *heap->link = heap->next;
    if (heap->next) heap->next->link = heap->link;
    for (cache *cache = heap->caches, *next; cache; cache = next) {
        next = cache->next;
        free(cache);
    }
    registry_unlock();
}
