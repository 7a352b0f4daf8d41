/* What all heaps of the process share: the list of them and of their caches, the end of threads, and forks.
 *
 * A fork finds every heap at rest: no lock held, nobody inside a cache. The child's copy of a heap is whole and its own,
 * and what the caches of the parent's threads held is given back when a tier runs full or is trimmed. Memory that both
 * share (shm, dax, a pool) has only one heap to the parent's mind, though: a child must not allocate from or free to it.
 */
#include <stdlib.h>

#include "heap_cache.h"

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static heap *heaps;
static uint64_t last_heap_id, last_thread;
static pthread_key_t thread_end;

static _Thread_local uint64_t this_thread; /* a number, 0 before its first cache */
static _Thread_local bool is_ending;
_Thread_local recent_cache recent_caches[NUM_RECENT_CACHES] __attribute__((tls_model("initial-exec")));

void registry_lock(void) { pthread_mutex_lock(&registry); }
void registry_unlock(void) { pthread_mutex_unlock(&registry); }

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static cache **find_own(heap *heap) {
  cache **link = &heap->caches;
  while (*link && (*link)->thread != this_thread) link = &(*link)->next;
  return link;
}

/* Runs as the thread ends. What its other destructors still allocate goes past the caches. */
static void end_thread(void *unused) {
  (void)unused;
  is_ending = true;
  registry_lock();
  for (heap *heap = heaps; heap; heap = heap->next) {
    cache **link = find_own(heap), *own = *link;
    if (!own) continue;
    *link = own->next;
    cache_retire(heap, own);
  }
  registry_unlock();
  for (unsigned i = 0; i < NUM_RECENT_CACHES; ++i) recent_caches[i].heap_id = 0;
}

static cache *find_or_create(heap *heap) {
  if (this_thread == 0) this_thread = ++last_thread;
  cache **link = find_own(heap);
  if (*link) return *link;
  if (pthread_setspecific(thread_end, &registry) != 0) return NULL; /* any value: it makes end_thread run */
  cache *made = cache_create(heap);
  if (!made) return NULL;
  made->thread = this_thread;
  made->next = heap->caches;
  return heap->caches = made;
}

cache *cache_of(heap *heap) {
  cache *cache = cache_recent(heap);
  if (cache || is_ending) return cache;
  registry_lock();
  cache = find_or_create(heap);
  registry_unlock();
  if (cache) recent_caches[heap->id % NUM_RECENT_CACHES] = (recent_cache){heap->id, cache};
  return cache;
}

/* ---- forks ------------------------------------------------------------------------------------------------------ */

static void before_fork(void) {
  registry_lock();
  for (heap *heap = heaps; heap; heap = heap->next) caches_signal_stop(heap, true);
  barrier_heavy();
  for (heap *heap = heaps; heap; heap = heap->next) caches_await(heap);
  for (heap *heap = heaps; heap; heap = heap->next) pthread_mutex_lock(&heap->lock);
}

static void after_fork(void) {
  for (heap *heap = heaps; heap; heap = heap->next) pthread_mutex_unlock(&heap->lock);
  for (heap *heap = heaps; heap; heap = heap->next) caches_signal_stop(heap, false);
  registry_unlock();
}

/* ---- heaps ------------------------------------------------------------------------------------------------------ */

static void prepare(void) {
  barrier_prepare();
  pthread_key_create(&thread_end, end_thread);
  pthread_atfork(before_fork, after_fork, after_fork);
}

void registry_add(heap *heap) {
  pthread_once(&prepared, prepare);
  registry_lock();
  heap->id = ++last_heap_id;
  heap->next = heaps;
  heap->link = &heaps;
  if (heaps) heaps->link = &heap->next;
  heaps = heap;
  registry_unlock();
}

void registry_remove(heap *heap) {
  registry_lock();
  *heap->link = heap->next;
  if (heap->next) heap->next->link = heap->link;
  for (cache *cache = heap->caches, *next; cache; cache = next) {
    next = cache->next;
    free(cache);
  }
  registry_unlock();
}
