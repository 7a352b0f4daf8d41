/* The fast way: what a thread does with its own cache. */
#ifndef EMX_HEAP_CACHE_H
#define EMX_HEAP_CACHE_H

#include "heap/internal.h"
#include "prim/barrier.h"
#include "thread.h"

/* This thread's cache of the heap if it used it lately, or NULL. */
static inline cache* cache_recent(const heap* heap) {
    const recent_cache* recent = &thread_self()->recent_caches[heap->id % NUM_RECENT_CACHES];
    return LIKELY(recent->heap_id == heap->id) ? recent->cache : NULL;
}

/* The same, made if need be; NULL while the thread ends, or when there is no memory for one. */
cache* cache_of(heap* heap);

/* Release: pairs with the load in caches_await, so that who stops the cache sees all that was done inside. */
static inline void cache_leave(cache* cache) {
    atomic_store_explicit(&cache->inside, 0, memory_order_release);
}

/* The owner's half of the lock: a store and a load, and later a store. False: another thread has stopped the
 * cache. Visible inside: all that others did to the cache while it was stopped. */
static inline bool cache_enter(cache* cache) {
    if (LIKELY(barrier_is_unequal)) {
        atomic_store_explicit(&cache->inside, 1, memory_order_relaxed);
        atomic_signal_fence(memory_order_seq_cst); /* caches_stop sees to the processor */
    } else {
        atomic_exchange(&cache->inside, 1);
    }
    /* Pairs with the store in caches_signal_stop: who finds the cache resumed sees what was done while it
     * stood still. */
    if (LIKELY(!atomic_load(&cache->stopped))) return true;
    cache_leave(cache);
    return false;
}

void cache_enter_patiently(cache* cache);

/* Inside, without the lock: fills an empty magazine. False: there is nothing to be had without draining
 * caches. */
bool cache_refill(heap* heap, cache* cache, unsigned class);
/* Inside, without the lock: makes room in a full magazine. */
void cache_make_room(heap* heap, cache* cache, unsigned class);

/* The others' half. Nothing is inside any of the heap's caches from stop to resume; the registry is held
 * meanwhile. Visible after it: all that the owners did. Not for a thread that is inside itself, or that holds
 * a heap's lock. */
void caches_stop(heap* heap);
void caches_resume(heap* heap);
void caches_empty(heap* heap); /* stopped, lock held: back into the slabs */
void caches_drain(heap* heap); /* stop, lock, empty, unlock, resume */

/* All caches of the heap and its own: of living and ended threads. The registry is held. */
void registry_lock(void);
void registry_unlock(void);
void registry_add(heap* heap);
void registry_remove(heap* heap); /* frees its caches */

/* Cache calls that registry and fork need. The registry is held. */
void caches_signal_stop(heap* heap, bool stop);
void caches_await(heap* heap);
cache* cache_create(const heap* heap);
void cache_retire(heap* heap, cache* cache); /* its thread ended: empties and frees it */

#endif
