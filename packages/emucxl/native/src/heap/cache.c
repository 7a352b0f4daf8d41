#include "heap/cache.h"

#include <sched.h>
#include <stdlib.h>

cache* cache_create(const heap* heap) {
    size_t num_objects = 0;
    for (unsigned class = 0; class < NUM_CLASSES; ++class) num_objects += heap->classes[class].cached_objects;
    const size_t size_bytes = sizeof(cache) + num_objects * sizeof(free_object);
    /* No line in common with another thread's. */
    cache* made = aligned_alloc(64, (size_bytes + 63) / 64 * 64);
    if (!made) return NULL;
    *made = (cache){0};
    free_object* objects = made->objects;
    for (unsigned class = 0; class < NUM_CLASSES; ++class) {
        const uint32_t most = heap->classes[class].cached_objects;
        made->magazines[class] = (magazine){.max_objects = most, .objects = objects};
        objects += most;
    }
    return made;
}

/* ---- the owner's side ---------------------------------------------------------------------------------- */

void cache_enter_patiently(cache* cache) {
    while (!cache_enter(cache)) {
        registry_lock(); /* until whoever stopped us is done */
        registry_unlock();
    }
}

bool cache_refill(heap* heap, cache* cache, unsigned class) {
    magazine* magazine = &cache->magazines[class];
    emx_status status; /* whoever comes here tries again past the cache, and learns it there */
    pthread_mutex_lock(&heap->lock);
    const unsigned taken = slab_take(heap, class, magazine->objects, magazine->max_objects / 2, &status);
    pthread_mutex_unlock(&heap->lock);
    /* The first is to be given first: neighbours in memory stay neighbours in time. */
    for (unsigned low = 0, high = taken; low + 1 < high; ++low) {
        const free_object object = magazine->objects[low];
        magazine->objects[low] = magazine->objects[--high];
        magazine->objects[high] = object;
    }
    magazine->num_objects = taken;
    return taken > 0;
}

void cache_make_room(heap* heap, cache* cache, unsigned class) {
    magazine* magazine = &cache->magazines[class];
    const uint32_t oldest = magazine->num_objects / 2;
    pthread_mutex_lock(&heap->lock);
    for (uint32_t i = 0; i < oldest; ++i) slab_give(heap, magazine->objects[i]);
    pthread_mutex_unlock(&heap->lock);
    magazine->num_objects -= oldest;
    for (uint32_t i = 0; i < magazine->num_objects; ++i) magazine->objects[i] = magazine->objects[oldest + i];
}

/* ---- the others' side ---------------------------------------------------------------------------------- */

void caches_signal_stop(heap* heap, bool stop) {
    for (cache* cache = heap->caches; cache; cache = cache->next) atomic_store(&cache->stopped, stop);
}

void caches_await(heap* heap) {
    for (cache* cache = heap->caches; cache; cache = cache->next)
        while (atomic_load(&cache->inside)) sched_yield();
}

void caches_stop(heap* heap) {
    registry_lock();
    caches_signal_stop(heap, true);
    barrier_heavy(); /* from here on each owner sees `stopped`, or is seen inside */
    caches_await(heap);
}

void caches_resume(heap* heap) {
    caches_signal_stop(heap, false);
    registry_unlock();
}

static void empty(heap* heap, cache* cache) {
    for (unsigned class = 0; class < NUM_CLASSES; ++class) {
        magazine* magazine = &cache->magazines[class];
        for (uint32_t i = 0; i < magazine->num_objects; ++i) slab_give(heap, magazine->objects[i]);
        magazine->num_objects = 0;
    }
}

void caches_empty(heap* heap) {
    for (cache* cache = heap->caches; cache; cache = cache->next) empty(heap, cache);
}

void caches_drain(heap* heap) {
    caches_stop(heap);
    pthread_mutex_lock(&heap->lock);
    caches_empty(heap);
    pthread_mutex_unlock(&heap->lock);
    caches_resume(heap);
}

static void move_count(_Atomic uint64_t* to, _Atomic uint64_t* from) {
    count(to, atomic_load_explicit(from, memory_order_relaxed));
}

void cache_retire(heap* heap, cache* cache) {
    pthread_mutex_lock(&heap->lock);
    empty(heap, cache);
    move_count(&heap->counters.allocated_bytes, &cache->counters.allocated_bytes);
    move_count(&heap->counters.num_allocated, &cache->counters.num_allocated);
    move_count(&heap->counters.num_freed, &cache->counters.num_freed);
    pthread_mutex_unlock(&heap->lock);
    free(cache);
}
