/* A barrier in two unequal halves: the side that runs often pays (almost) nothing, the rare side pays for both.
 *
 * Of a thread that stores a, calls barrier_light() and loads b, and one that stores b, calls barrier_heavy() and loads a,
 * at least one sees the other's store.
 */
#ifndef EMX_PRIM_BARRIER_H
#define EMX_PRIM_BARRIER_H

#include <stdatomic.h>
#include <stdbool.h>

/* Whether the kernel runs a barrier on our other threads when asked to (membarrier(2)). If not, both halves are full
 * barriers. Set by barrier_prepare, which must run before the first use. */
extern bool barrier_is_unequal __attribute__((visibility("hidden")));

void barrier_prepare(void);
void barrier_heavy(void);

/* A full barrier that every sanitizer understands. */
static inline void barrier_full(void) {
  _Atomic int any = 0;
  atomic_exchange(&any, 1);
#ifndef __SANITIZE_THREAD__
  atomic_thread_fence(memory_order_seq_cst);
#endif
}

static inline void barrier_light(void) {
  atomic_signal_fence(memory_order_seq_cst); /* the compiler keeps the order; the heavy side sees to the processor */
  if (!barrier_is_unequal) barrier_full();
}

#endif
