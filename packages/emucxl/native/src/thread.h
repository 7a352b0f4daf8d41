/* The state that each thread of the program has in this library.
 *
 * It lies behind one pointer, and only one counter beside it (context/monitor.c): a library that is loaded
 * late (dlopen, Python) has to find room for its initial-exec variables in the few hundred bytes that the
 * loader keeps free for all such libraries, and cannot be loaded where they are used up. The general-dynamic
 * model needs no such room; it made an allocation with its free a third slower, these 16 bytes make it 3 %
 * slower than everything in place.
 *
 * Thread safety: a state is its thread's alone. Threads that end, and those for which there was no memory,
 * share one: it has no caches and the shared shard of counters, so that only the text of an error may be
 * another thread's.
 */
#ifndef EMX_THREAD_H
#define EMX_THREAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NUM_RECENT_CACHES = 16, DETAIL_BYTES = 512 };

/* Where a thread finds its cache of a heap. Heaps are numbered, so that 16 at a time never share an entry. */
typedef struct recent_cache {
    uint64_t heap_id;
    struct cache* cache;
} recent_cache;

typedef struct thread_state {
    recent_cache recent_caches[NUM_RECENT_CACHES];
    uint64_t number;           /* 0 before its first cache */
    unsigned shard;            /* of the monitor's counters: its number + 1; 0: none yet */
    bool is_ending;            /* it makes no more caches */
    char detail[DETAIL_BYTES]; /* of its last failed call */
} thread_state;

extern _Thread_local thread_state* thread_own
    __attribute__((tls_model("initial-exec"), visibility("hidden")));

thread_state* thread_begin(void); /* makes it */

static inline thread_state* thread_self(void) {
    thread_state* own = thread_own;
    return __builtin_expect(own != NULL, 1) ? own : thread_begin();
}

/* Has `end` called as a thread ends, with what it kept. For constructors. */
void thread_watch_ends(void (*end)(thread_state* state));

#endif
